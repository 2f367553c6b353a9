"""Mistakes in graph building: wrong operations, or parts of the model combined wrongly."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from max.dtype import DType
from max.graph import Dim, TensorValue
from max.graph import ops as max_ops

from maxwhisper.engine import graphs
from maxwhisper.engine.graphs import Scope
from maxwhisper.engine.ops import backend_for, portable
from tests.faults.plant import Fault, instead

Build = Callable[..., TensorValue]


def in_half(x: TensorValue) -> TensorValue:
    """Round to float16 and cast back."""
    return max_ops.cast(max_ops.cast(x, DType.float16), x.dtype)


def layer_norm(epsilon: float = 1e-5, outside: float = 0.0, lost: int = 0) -> Callable[[Any], Build]:
    """Make a wrong layer norm.

    Args:
        epsilon: Added to the variance.
        outside: Added to the square root of the variance.
        lost: The variance is divided by n - lost instead of n.
    """

    def build(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
        centred = x - max_ops.mean(x, axis=-1)
        n = max_ops.cast(TensorValue(x.shape[-1]), x.dtype)
        variance = max_ops.mean(centred * centred, axis=-1) * (n / (n - lost))
        return centred / (max_ops.sqrt(variance + epsilon) + outside) * weight + bias

    return instead(build)


def conv1d(
    taps: Sequence[int] = (0, 1, 2), padding: tuple[int, int] = (1, 1), add: Build = max_ops.add
) -> Callable[[Any], Build]:
    """Make a wrong convolution.

    Args:
        taps: Kernel positions to use, of 0, 1 and 2.
        padding: Numbers of zero frames before and after the input.
        add: Adds the products of two taps.
    """

    def build(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
        n_frames = x.shape[1]
        padded = max_ops.pad(x, [0, 0, *padding, 0, 0])

        def frames_of(tap: int) -> TensorValue:
            frames = slice(TensorValue(Dim(tap)), TensorValue(n_frames + tap), stride)
            return padded[:, (frames, (n_frames + (stride - 1)) // stride), :]

        linear = backend_for(x.device).linear
        return reduce(add, (linear(frames_of(tap), weight[:, :, tap]) for tap in taps)) + bias

    return instead(build)


def stride_missing(original: Build) -> Build:
    """Convolve with stride 1, and cut the result to the length that the stride gives."""

    def build(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
        return original(x, weight, bias)[:, : int(x.shape[1]) // stride]

    return build


def scores(exponent: float, by_state: bool = False) -> Callable[[Any], Build]:
    """Scale attention scores by head_dim**exponent, or by n_state**exponent if `by_state`."""

    def build(q: TensorValue, k: TensorValue) -> TensorValue:
        dim = q.shape[-1] * q.shape[1] if by_state else q.shape[-1]
        scale = max_ops.pow(max_ops.cast(TensorValue(dim), DType.float32), exponent)
        return max_ops.matmul(q * scale, max_ops.transpose(k, -2, -1))

    return instead(build)


def softmax_over_queries(original: Build) -> Build:
    """Compute softmax along the wrong axis."""
    return lambda x: max_ops.transpose(original(max_ops.transpose(x, -2, -1)), -2, -1)


# Attention by separate steps, and the decoder's block by separate parts, so that one of them can
# be replaced.
by_steps, by_parts = instead(portable.attention_by_steps), instead(graphs.decoder_block_by_parts)


def mask_after_softmax() -> dict[str, Callable[[Any], Any]]:
    """Set masked weights to zero after the softmax, so that they still count in its sum."""
    masks: list[TensorValue] = []

    def apply_mask(original: Any) -> Build:
        def build(scores: TensorValue, mask: TensorValue) -> TensorValue:
            masks.append(mask)
            return scores

        return build

    def softmax(original: Any) -> Build:
        return lambda scores: original(scores) * max_ops.exp(masks.pop()) if masks else original(scores)

    return {"engine.graphs.decoder_block": by_parts, "engine.ops.apply_mask": apply_mask, "engine.ops.softmax": softmax}


def mask_one_later(original: Any) -> Build:
    """Let each token attend to the next token as well."""

    def build(scores: TensorValue, mask: TensorValue) -> TensorValue:
        return original(scores, max_ops.concat([mask[:, :1], mask[:, :-1]], axis=1))

    return build


def heads_interleaved(original: Build) -> Build:
    """Split n_state into [head_dim, n_head] instead of [n_head, head_dim]."""

    def build(x: TensorValue, n_head: int) -> TensorValue:
        batch, n, n_state = x.shape
        return max_ops.permute(max_ops.reshape(x, [batch, n, int(n_state) // n_head, n_head]), [0, 1, 3, 2])

    return build


def cache_one_off(original: Build) -> Build:
    """Write new keys and values one position too early, except at position 0."""

    def build(cache: Any, new: TensorValue, page_table: TensorValue, positions: TensorValue) -> TensorValue:
        first = positions[0:1]
        before = max_ops.max(first - 1, 0)
        return original(cache, new, page_table, positions - first + before)

    return build


def logits_shifted(original: Build) -> Build:
    """Give each token the logit of the next token."""

    def build(x: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
        logits = original(x, weight, scale)
        return max_ops.concat([logits[:, 1:], logits[:, :1]], axis=1)

    return build


def ln_post_missing(original: Any) -> Any:
    """Leave out layer norm after the encoder's last block."""
    return lambda at, x: at.record(x * 1.0) if at.path == "encoder.ln_post" else original(at, x)


def last_layer_dropped() -> dict[str, Callable[[Any], Any]]:
    """End the loop over the encoder's layers one layer too early."""
    before: dict[str, TensorValue] = {}

    def self_attention(original: Any) -> Any:
        def build(at: Scope, x: TensorValue, n_head: int) -> TensorValue:
            before[at.path] = x
            return original(at, x, n_head)

        return build

    def mlp(original: Any) -> Any:
        def build(at: Scope, x: TensorValue) -> TensorValue:
            y = original(at, x)
            *path, i = at.path.split(".")
            is_last = path[0] == "encoder" and ".".join([*path, str(int(i) + 1), "mlp_ln.weight"]) not in at.weights
            return before[at.path] if is_last else y

        return build

    return {"engine.graphs.self_attention": self_attention, "engine.graphs.mlp": mlp}


def no_residual(original: Any) -> Any:
    """Return the output of the MLP's two layers without adding their input."""

    def mlp(at: Scope, x: TensorValue) -> TensorValue:
        h = graphs.linear(at / "mlp" / 0, graphs.layer_norm(at / "mlp_ln", x))
        h = (at / "mlp" / "gelu").record(at.ops.gelu(h))
        return (at / "mlp" / "residual").record(graphs.linear(at / "mlp" / 2, h))

    return mlp


def post_norm(original: Any) -> Any:
    """Normalize after the residual sum, as the first transformers did, not before the layers."""

    def mlp(at: Scope, x: TensorValue) -> TensorValue:
        h = (at / "mlp" / "gelu").record(at.ops.gelu(graphs.linear(at / "mlp" / 0, x)))
        residual = (at / "mlp" / "residual").record(x + graphs.linear(at / "mlp" / 2, h))
        return graphs.layer_norm(at / "mlp_ln", residual)

    return mlp


def residual_in_half(original: Any) -> Any:
    """Round the residual stream to float16 after each MLP."""

    def mlp(at: Scope, x: TensorValue) -> TensorValue:
        return (at / "mlp" / "residual").record(in_half(original(at, x)))

    return mlp


FAULTS = [
    Fault(
        "ReLU for GELU",
        "encoder.conv1.gelu",
        "this project's first version",
        {"engine.ops.gelu": instead(max_ops.relu)},
        op="gelu",
    ),
    Fault(
        "tanh GELU",
        "encoder.conv1.gelu",
        "GPT-2's form, the default of many libraries",
        {"engine.ops.gelu": instead(lambda x: max_ops.gelu(x, approximate="tanh"))},
        op="gelu",
    ),
    Fault(
        "quick GELU",
        "encoder.conv1.gelu",
        "CLIP's form, x · sigmoid(1.702 x)",
        {"engine.ops.gelu": instead(lambda x: max_ops.gelu(x, approximate="quick"))},
        op="gelu",
    ),
    Fault(
        "no GELU",
        "encoder.conv1.gelu",
        "an activation function left out",
        {"engine.ops.gelu": instead(lambda x: x * 1.0)},
        op="gelu",
        looks_like="its input encoder.conv1, unchanged",
    ),
    Fault(
        "one convolution tap of three",
        "encoder.conv1",
        "this project's first version",
        {"engine.ops.conv1d": conv1d(taps=[1])},
        op="conv1d_stride1",
    ),
    Fault(
        "stride missing",
        "encoder.conv2",
        "this project's first version",
        {"engine.ops.conv1d": stride_missing},
    ),
    Fault(
        "convolution padded on one side",
        "encoder.conv1",
        "a causal convolution, as in audio codecs",
        {"engine.ops.conv1d": conv1d(padding=(2, 0))},
        op="conv1d_stride1",
    ),
    Fault(
        "convolution accumulated in half precision",
        "encoder.conv1",
        "sums kept in the weights' dtype",
        {"engine.ops.conv1d": conv1d(add=lambda a, b: in_half(a + b))},
        op="conv1d_stride1",
    ),
    Fault(
        "ln_post missing",
        "encoder.ln_post",
        "this project's first version",
        {"engine.graphs.layer_norm": ln_post_missing},
    ),
    Fault(
        "epsilon 1e-6",
        "encoder.blocks.0.attn_ln",
        "the default of Flax, and of many models' configurations",
        {"engine.ops.layer_norm": layer_norm(1e-6)},
        op="layer_norm",
    ),
    Fault(
        "epsilon 1e-3",
        "encoder.blocks.0.attn_ln",
        "the default of Keras",
        {"engine.ops.layer_norm": layer_norm(1e-3)},
        op="layer_norm",
    ),
    Fault(
        "epsilon outside the root",
        "encoder.blocks.0.attn_ln",
        "(x - mean) / (std + epsilon), as in the Annotated Transformer",
        {"engine.ops.layer_norm": layer_norm(0.0, outside=1e-5)},
        op="layer_norm",
    ),
    Fault(
        "unbiased variance",
        "encoder.blocks.0.attn_ln",
        "torch.var's default, divided by n - 1",
        {"engine.ops.layer_norm": layer_norm(lost=1)},
        op="layer_norm",
    ),
    Fault(
        "scale 1/d",
        "encoder.blocks.0.attn.context",
        "the square root forgotten",
        {"engine.ops.attention": by_steps, "engine.ops.attention_scores": scores(-1.0)},
        op="attention_scores",
    ),
    Fault(
        "scale missing",
        "encoder.blocks.0.attn.context",
        "d^-1/4 on queries and on keys overlooked",
        {"engine.ops.attention": by_steps, "engine.ops.attention_scores": scores(0.0)},
        op="attention_scores",
    ),
    Fault(
        "scale of the whole state",
        "encoder.blocks.0.attn.context",
        "1/√n_state for 1/√head_dim",
        {"engine.ops.attention": by_steps, "engine.ops.attention_scores": scores(-0.5, by_state=True)},
        op="attention_scores",
    ),
    Fault(
        "softmax over the wrong axis",
        "encoder.blocks.0.attn.context",
        "an axis counted from the other end",
        {"engine.ops.attention": by_steps, "engine.ops.softmax": softmax_over_queries},
        op="softmax",
    ),
    Fault(
        "mask added after the softmax",
        "decoder.blocks.0.attn.context",
        "weights of later tokens set to zero, so the others no longer sum to one",
        mask_after_softmax(),
    ),
    Fault(
        "mask off by one",
        "decoder.blocks.0.attn.context",
        "triu(0) and triu(1) confused",
        {"engine.graphs.decoder_block": by_parts, "engine.ops.apply_mask": mask_one_later},
    ),
    Fault(
        "mask missing in a prefill of several tokens",
        "decoder.blocks.0.attn.context",
        "a decoder tested only one token at a time",
        {"engine.graphs.decoder_block": by_parts, "engine.ops.apply_mask": instead(lambda scores, mask: scores)},
    ),
    Fault(
        "heads and head_dim swapped",
        "encoder.blocks.0.attn.context",
        "a reshape to [head_dim, n_head]",
        {"engine.ops.in_heads": heads_interleaved},
    ),
    Fault(
        "cache written one position off",
        "decoder.blocks.0.attn.context",
        "the cache length read before it grows instead of after, or vice versa",
        {"engine.graphs.decoder_block": by_parts, "engine.ops.append_to_cache": cache_one_off},
        op="cached",
    ),
    Fault(
        "LM head rows shifted by one",
        "decoder.logits",
        "a vocabulary with one more special token",
        {"engine.ops.lm_head": logits_shifted},
        op="lm_head",
        looks_like="shifted by one along axis 2",
    ),
    Fault(
        "last layer dropped",
        "encoder.ln_post",
        "hidden states counted with the embedding as layer 0",
        last_layer_dropped(),
    ),
    Fault(
        "a residual missing",
        "encoder.blocks.0.mlp.residual",
        "`x = f(x)` for `x = x + f(x)`",
        {"engine.graphs.mlp": no_residual},
        op="mlp",
    ),
    Fault(
        "post-norm for pre-norm",
        "encoder.blocks.0.mlp_ln",
        "the first transformer's order",
        {"engine.graphs.mlp": post_norm},
    ),
    Fault(
        "residual stream in half precision",
        "encoder.blocks.0.mlp.residual",
        "half-precision accumulation over the layers",
        {"engine.graphs.mlp": residual_in_half},
    ),
]
