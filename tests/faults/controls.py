"""Harmless changes, which compute the same in a different way. Nothing may be blamed for them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.graph import Dim, TensorValue
from max.graph import ops as max_ops

from maxwhisper.engine.graphs import Scope
from maxwhisper.engine.ops import backend_for
from tests.faults.in_audio import numpy_with
from tests.faults.in_graphs import by_parts, by_steps
from tests.faults.in_weights import change_matching
from tests.faults.plant import control, instead


def scaled_twice(q: TensorValue, k: TensorValue) -> TensorValue:
    """Scale queries and keys by head_dim^-1/4 each, as OpenAI Whisper without fused attention."""
    scale = max_ops.pow(max_ops.cast(TensorValue(q.shape[-1]), DType.float32), -0.25)
    return max_ops.matmul(q * scale, max_ops.transpose(k * scale, -2, -1))


def biased_keys(original: Any) -> Any:
    """Add a bias to the keys of cross-attention.

    It adds the same number to all scores of a query, which softmax ignores.
    """

    def linear(at: Scope, x: TensorValue, bias: bool = True) -> TensorValue:
        if not at.path.endswith("cross_attn.key"):
            return original(at, x, bias)
        key_bias = np.linspace(-1, 1, int(at.weight("weight").shape[0]), dtype=np.float32)
        return at.record(
            at.ops.linear(x, at.weight("weight"), max_ops.constant(key_bias, DType.float32, device=x.device))
        )

    return linear


def scaled_weight(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Compute layer norm with one product and one sum for each centred element."""
    centred = x - max_ops.mean(x, axis=-1)
    return centred * (weight * max_ops.rsqrt(max_ops.mean(centred * centred, axis=-1) + 1e-5)) + bias


def gelu_by_erf(x: TensorValue) -> TensorValue:
    """Compute GELU as x/2 + x/2 · erf(x/√2), the paper's formula multiplied out."""
    half = x * 0.5
    return half + half * max_ops.erf(x * (2.0**-0.5))


def unfolded_conv1d(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
    """Convolve by one matrix product; the three input frames of each output lie side by side."""
    n_frames = x.shape[1]
    padded = max_ops.pad(x, [0, 0, 1, 1, 0, 0])
    frames = [padded[:, (slice(TensorValue(Dim(tap)), TensorValue(n_frames + tap)), n_frames), :] for tap in range(3)]
    columns = max_ops.concat(frames, axis=-1)[:, ::stride, :]
    return backend_for(x.device).linear(columns, max_ops.concat([weight[:, :, tap] for tap in range(3)], axis=-1), bias)


def garbage_in_cache(original: Any) -> Any:
    """Fill the KV cache with NaN at first; positions beyond the valid length are never read."""

    def take(states: Any, runtime: Any, n_audio: int, n_group: int) -> Any:
        state = original(states, runtime, n_audio, n_group)
        state.self_kv = [
            Buffer.from_numpy(np.full(kv.shape, np.nan, np.float32)).to(runtime.device) for kv in state.self_kv
        ]
        return state

    return take


def heads_in_another_order(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put the second half of the heads first, in the projections and in the output weights."""
    weights = change_matching(r".*attn\.(query|key|value)\.\w+", lambda w: np.roll(w, len(w) // 2, axis=0))(weights)
    return change_matching(r".*attn\.out\.weight", lambda w: np.roll(w, w.shape[1] // 2, axis=1))(weights)


CONTROLS = [
    control("OpenAI Whisper in MAX's place", "PyTorch without fused attention", by_torch=True),
    control(
        "scale split, d^-1/4 twice",
        "OpenAI Whisper without fused attention",
        replaces={"engine.ops.attention": by_steps, "engine.ops.attention_scores": instead(scaled_twice)},
        op="attention_scores",
    ),
    control(
        "a bias invented for keys",
        "ports whose linear layers all have a bias",
        replaces={"engine.graphs.linear": biased_keys},
    ),
    control(
        "layer norm by a scaled weight",
        "fused kernels, which multiply and add once",
        replaces={"engine.ops.layer_norm": instead(scaled_weight)},
        op="layer_norm",
    ),
    control(
        "GELU by erf",
        "the paper's formula, multiplied out",
        replaces={"engine.ops.gelu": instead(gelu_by_erf)},
        op="gelu",
    ),
    control(
        "convolution unfolded", "im2col", replaces={"engine.ops.conv1d": instead(unfolded_conv1d)}, op="conv1d_stride1"
    ),
    control(
        "the decoder's block in its parts",
        "a port that was written op by op",
        replaces={"engine.graphs.decoder_block": by_parts},
    ),
    control(
        "heads in another order",
        "a checkpoint from a different source",
        weights=heads_in_another_order,
        judge_sees_weights=True,
    ),
    control(
        "garbage beyond the valid length",
        "a cache that is not cleared",
        replaces={"engine.decoder_state.DecoderStates.take": garbage_in_cache},
    ),
    control(
        "spectrum in float64",
        "a different library's FFT",
        replaces={
            "audio.np": numpy_with(fft=SimpleNamespace(rfft=lambda frames: np.fft.rfft(frames.astype(np.float64))))
        },
        op="log_mel",
    ),
    control(
        "log-sum-exp pair by pair",
        "np.logaddexp",
        replaces={"decoding.rules.logsumexp": instead(lambda logits: np.logaddexp.reduce(logits, axis=-1))},
    ),
]
