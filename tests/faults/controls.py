"""Other ways to compute the same. Nothing may be blamed for them."""

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
from tests.faults.in_weights import every
from tests.faults.plant import control, instead


def scaled_twice(q: TensorValue, k: TensorValue) -> TensorValue:
    """The fourth root of the scale on queries and on keys, as OpenAI Whisper's own attention by hand has it."""
    scale = max_ops.pow(max_ops.cast(TensorValue(q.shape[-1]), DType.float32), -0.25)
    return max_ops.matmul(q * scale, max_ops.transpose(k * scale, -2, -1))


def biased_keys(right: Any) -> Any:
    """Softmax does not see what is added to all scores of a query."""

    def linear(at: Scope, x: TensorValue, bias: bool = True) -> TensorValue:
        if not at.path.endswith("cross_attn.key"):
            return right(at, x, bias)
        invented = np.linspace(-1, 1, int(at.weight("weight").shape[0]), dtype=np.float32)
        return at.record(
            at.ops.linear(x, at.weight("weight"), max_ops.constant(invented, DType.float32, device=x.device))
        )

    return linear


def scaled_weight(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Layer norm as one product and one sum for each element."""
    centred = x - max_ops.mean(x, axis=-1)
    return centred * (weight * max_ops.rsqrt(max_ops.mean(centred * centred, axis=-1) + 1e-5)) + bias


def gelu_by_erf(x: TensorValue) -> TensorValue:
    """Both halves of the paper's formula, multiplied before they are added."""
    half = x * 0.5
    return half + half * max_ops.erf(x * (2.0**-0.5))


def unfolded_conv1d(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
    """One product with the three frames that each output sees side by side."""
    n_frames = x.shape[1]
    padded = max_ops.pad(x, [0, 0, 1, 1, 0, 0])
    seen = [padded[:, (slice(TensorValue(Dim(tap)), TensorValue(n_frames + tap)), n_frames), :] for tap in range(3)]
    columns = max_ops.concat(seen, axis=-1)[:, ::stride, :]
    return backend_for(x.device).linear(columns, max_ops.concat([weight[:, :, tap] for tap in range(3)], axis=-1), bias)


def garbage_in_cache(right: Any) -> Any:
    """What lies beyond the valid length is never read."""

    def init(decoder: Any, model: Any, audio: Any, n_group: int) -> None:
        right(decoder, model, audio, n_group)
        decoder._self_kv = [
            Buffer.from_numpy(np.full(kv.shape, np.nan, np.float32)).to(model.device) for kv in decoder._self_kv
        ]

    return init


def heads_in_another_order(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The second half of the heads first, wherever heads are made and where they are read."""
    weights = every(r".*attn\.(query|key|value)\.\w+", lambda w: np.roll(w, len(w) // 2, axis=0))(weights)
    return every(r".*attn\.out\.weight", lambda w: np.roll(w, w.shape[1] // 2, axis=1))(weights)


CONTROLS = [
    control("OpenAI Whisper in MAX's place", "PyTorch, attention by hand", by_torch=True),
    control(
        "scale split, d^-1/4 twice",
        "OpenAI Whisper's own attention by hand",
        replaces={"engine.ops.attention": by_steps, "engine.ops.attention_scores": instead(scaled_twice)},
        op="attention_scores",
    ),
    control(
        "a bias invented for keys",
        "ports whose linear layers all have one",
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
    control("heads in another order", "a checkpoint of another origin", weights=heads_in_another_order, knows=True),
    control(
        "garbage beyond the valid length",
        "a cache that is not cleared",
        replaces={"engine.decoder.Decoder.__init__": garbage_in_cache},
    ),
    control(
        "spectrum in float64",
        "another library's transform",
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
