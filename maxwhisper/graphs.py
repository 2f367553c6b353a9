"""Whisper as MAX graphs, in the order the data flows and under the checkpoint's own names.

Three graphs share one set of weights: `encoder` turns a log-mel spectrogram into audio features, `cross_kv` turns those into the
keys and values that every decoder layer attends to, `decoder` turns tokens into logits and keeps its own keys and values in place.
Prefill and a cached step are the same decoder graph with a different number of tokens.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from max.dtype import DType
from max.graph import BufferType, BufferValue, DeviceRef, Graph, Module, TensorType, TensorValue, Weight
from max.graph import ops as max_ops

from maxwhisper import ops
from maxwhisper.checkpoint import Checkpoint, ModelDimensions, weight_shapes

ACTIVATION_DTYPE = DType.float32
CROSS_KV = re.compile(r"cross_attn\.(key|value)")


@dataclass(frozen=True)
class Scope:
    """A place in the model: its path names weights and activations alike, as in `encoder.blocks.0.attn.query`.

    `weight` brings the checkpoint's weight of that path into the graph; `record` notes an activation under it, to be had as an
    extra output of the same graph by whoever asks for its name.
    """

    weights: Mapping[str, Weight]
    linear_op: Callable[..., TensorValue] = ops.linear  # the decoder's, which has few rows at a time, is `ops.few_rows`
    activations: dict[str, TensorValue] = field(default_factory=dict)
    path: str = ""

    def __truediv__(self, name: str | int) -> "Scope":
        return replace(self, path=f"{self.path}.{name}".lstrip("."))

    def weight(self, name: str) -> TensorValue:
        return TensorValue(self.weights[(self / name).path])

    def record(self, value: TensorValue) -> TensorValue:
        self.activations[self.path] = value
        return value


def layer_norm(at: Scope, x: TensorValue) -> TensorValue:
    """`ops.layer_norm` with the weights of this place."""
    return at.record(ops.layer_norm(x, at.weight("weight"), at.weight("bias")))


def linear(at: Scope, x: TensorValue, bias: bool = True) -> TensorValue:
    """`ops.linear`, or whatever does its work here, with the weights of this place."""
    return at.record(at.linear_op(x, at.weight("weight"), at.weight("bias") if bias else None))


def keys_and_values(at: Scope, x: TensorValue) -> tuple[TensorValue, TensorValue]:
    """Project x [batch, n, n_state] to keys and values of the same shape. Keys have no bias."""
    return linear(at / "key", x, bias=False), linear(at / "value", x)


def self_attention(at: Scope, x: TensorValue, n_head: int) -> TensorValue:
    """The first half of an encoder's block: layer norm, attention of all to all, and the residual around them."""
    attn = at / "attn"
    h = layer_norm(at / "attn_ln", x)
    projections = linear(attn / "query", h), *keys_and_values(attn, h)
    context = max_ops.reshape(ops.attention(*(ops.in_heads(projection, n_head) for projection in projections)), x.shape)
    h = linear(attn / "out", (attn / "context").record(context))
    return (attn / "residual").record(x + h)


def cached_self_attention(at: Scope, x: TensorValue, cache: Sequence[BufferValue], positions: TensorValue) -> TensorValue:
    """The first third of a decoder's block: layer norm, attention of each token to those up to itself, and the residual around them.

    cache: a buffer of keys and one of values, in which those of x's tokens are written at their positions.
    """
    attn = at / "attn"
    h = layer_norm(at / "attn_ln", x)
    names = ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias")
    projections = ops.query_key_value(h, *(attn.weight(name) for name in names))
    q, k, v = ((attn / name).record(value) for name, value in zip(("query", "key", "value"), projections))
    k_cache, v_cache = cache
    h = linear(attn / "out", (attn / "context").record(ops.cached_attention(q, k, v, k_cache, v_cache, positions)))
    return (attn / "residual").record(x + h)


def cross_attention(at: Scope, x: TensorValue, cross_kv: Sequence[TensorValue]) -> TensorValue:
    """The second third of a decoder's block: layer norm, attention of each token to all of its audio, and the residual around them.

    x [n_audio * n_group, n, n_state]; cross_kv: keys and values, [n_audio, n_head, n_audio_ctx, head_dim] each.
    """
    attn = at / "cross_attn"
    q = linear(attn / "query", layer_norm(at / "cross_attn_ln", x))
    # A group's queries all attend to the same audio, so they stand side by side along the query axis.
    batch, n, n_state = x.shape
    n_audio = cross_kv[0].shape[0]
    context = ops.cross_attention(max_ops.reshape(q, [n_audio, batch * n // n_audio, n_state]), *cross_kv)
    h = linear(attn / "out", (attn / "context").record(max_ops.reshape(context, x.shape)))
    return (attn / "residual").record(x + h)


def mlp(at: Scope, x: TensorValue) -> TensorValue:
    """The second half of a block: layer norm, two linear layers with a GELU between them, and the residual around them."""
    h = linear(at / "mlp" / 0, layer_norm(at / "mlp_ln", x))
    h = (at / "mlp" / "gelu").record(ops.gelu(h))
    return (at / "mlp" / "residual").record(x + linear(at / "mlp" / 2, h))


def encoder(at: Scope, dims: ModelDimensions, log_mel: TensorValue) -> TensorValue:
    """log_mel [n_audio, n_mels, 2 * n_audio_ctx] to audio features [n_audio, n_audio_ctx, n_audio_state]."""
    x = max_ops.permute(log_mel, [0, 2, 1])
    for name, stride in (("conv1", 1), ("conv2", 2)):
        conv = at / name
        x = conv.record(ops.conv1d(x, conv.weight("weight"), conv.weight("bias"), stride))
        x = (conv / "gelu").record(ops.gelu(x))
    x = (at / "positions").record(x + at.weight("positional_embedding"))
    for i in range(dims.n_audio_layer):
        block = at / "blocks" / i
        x = mlp(block, self_attention(block, x, dims.n_audio_head))
    return layer_norm(at / "ln_post", x)


def cross_kv(at: Scope, dims: ModelDimensions, audio_features: TensorValue) -> list[TensorValue]:
    """audio_features [n_audio, n_audio_ctx, n_audio_state] to a key and a value for each decoder layer, in layer order,
    [n_audio, n_text_head, n_audio_ctx, head_dim] each.
    """
    layers = (at / "blocks" / i / "cross_attn" for i in range(dims.n_text_layer))
    return [ops.split_heads(kv, dims.n_text_head) for layer in layers for kv in keys_and_values(layer, audio_features)]


def decoder(
    at: Scope,
    dims: ModelDimensions,
    self_kv: Sequence[BufferValue],
    cross_kv: Sequence[TensorValue],
    tokens: TensorValue,
    positions: TensorValue,
    rows: TensorValue,
) -> TensorValue:
    """The next tokens' logits, [n_audio, n_group, n_rows, n_vocab].

    self_kv: a key and a value buffer for each layer, [n_audio, n_group, n_text_head, n_text_ctx, head_dim]; this call's are
    written at their positions. cross_kv: what the graph `cross_kv` returned.
    tokens int64 [n_audio, n_group, n]: the tokens that follow those already in the cache; a group shares one audio's features.
    positions int64 [n] of these tokens, in order and without gaps.
    rows int64 [n_rows]: at which of the n tokens logits are wanted (the product with the vocabulary is the dearest of all).
    """
    n_audio, n_group, n = tokens.shape
    grouped, flat = [n_audio, n_group], [n_audio * n_group]

    embedding = ops.token_embedding(max_ops.reshape(tokens, [*flat, n]), at.weight("token_embedding.weight"))
    x = (at / "embedding").record(max_ops.cast(embedding, ACTIVATION_DTYPE))
    x = (at / "positions").record(x + ops.token_embedding(positions, at.weight("positional_embedding")))
    for i in range(dims.n_text_layer):
        block = at / "blocks" / i
        x = cached_self_attention(block, x, self_kv[2 * i : 2 * i + 2], positions)
        x = cross_attention(block, x, cross_kv[2 * i : 2 * i + 2])
        x = mlp(block, x)
    x = layer_norm(at / "ln", x)
    x = ops.token_embedding(rows, max_ops.permute(x, [1, 0, 2]))
    n_rows = rows.shape[0]
    x = max_ops.reshape(max_ops.permute(x, [1, 0, 2]), [n_audio * n_group * n_rows, dims.n_text_state])
    logits = ops.lm_head(x, at.weight("token_embedding.weight"))
    return (at / "logits").record(max_ops.reshape(logits, [*grouped, n_rows, dims.n_vocab]))


def weight_dtypes(checkpoint: Checkpoint, keep_halves: bool) -> dict[str, DType]:
    """Each weight's dtype in the graphs, float32 but for the matrices that every step of the decoder reads, and `ops.few_rows` widens:
    these stay in float16 where they are stored so and `keep_halves` is asked for.
    """

    def is_read_by_steps(name: str, array: np.ndarray) -> bool:
        return name.startswith("decoder.") and name.endswith(".weight") and array.ndim == 2 and not CROSS_KV.search(name)

    matrices = {name: array for name, array in checkpoint.weights.items() if is_read_by_steps(name, array)}
    halves = keep_halves and all(array.dtype == np.float16 for array in matrices.values())
    return {name: DType.float16 if halves and name in matrices else ACTIVATION_DTYPE for name in checkpoint.weights}


def build_module(
    dims: ModelDimensions, device: DeviceRef, capture: Iterable[str] = (), dtypes: Mapping[str, DType] | None = None
) -> tuple[Module, dict[str, list[str]]]:
    """All three graphs in one module, so that they compile together and share their kernels.

    Each activation named in `capture` becomes an extra output of the graph that computes it, behind the graph's own, in data-flow
    order. dtypes: the weights' (`weight_dtypes`), all float32 by default. Returns the module and, for each graph, the names of its extra
    outputs.

    Raises ValueError for names that no graph computes.
    """
    module, captured = Module(), dict[str, list[str]]()
    wanted = set(capture)
    dtypes = dtypes or {}
    weights = {name: Weight(name, dtypes.get(name, ACTIVATION_DTYPE), shape, device) for name, shape in weight_shapes(dims).items()}
    head_dim = dims.n_text_state // dims.n_text_head
    n_kv = 2 * dims.n_text_layer

    def tensor(dtype: DType, *shape: str | int) -> TensorType:
        return TensorType(dtype, shape, device)

    log_mel = tensor(ACTIVATION_DTYPE, "n_audio", dims.n_mels, 2 * dims.n_audio_ctx)
    features = tensor(ACTIVATION_DTYPE, "n_audio", dims.n_audio_ctx, dims.n_audio_state)
    tokens = tensor(DType.int64, "n_audio", "n_group", "n")
    positions = tensor(DType.int64, "n")
    rows = tensor(DType.int64, "n_rows")
    self_kv = BufferType(ACTIVATION_DTYPE, ["n_audio", "n_group", dims.n_text_head, dims.n_text_ctx, head_dim], device)
    audio_kv = tensor(ACTIVATION_DTYPE, "n_audio", dims.n_text_head, dims.n_audio_ctx, head_dim)

    make = functools.partial(Graph, module=module, custom_extensions=ops.kernels())

    def finish(graph: Graph, outputs: list[TensorValue], at: Scope) -> None:
        extra = {name: value for name, value in at.activations.items() if name in wanted}
        graph.output(*outputs, *extra.values())
        captured[graph.name] = list(extra)

    with make("encoder", input_types=[log_mel]) as graph:
        at = Scope(weights) / "encoder"
        finish(graph, [encoder(at, dims, graph.inputs[0].tensor)], at)

    with make("cross_kv", input_types=[features]) as graph:
        at = Scope(weights) / "decoder"
        finish(graph, cross_kv(at, dims, graph.inputs[0].tensor), at)

    with make("decoder", input_types=[tokens, positions, rows, *[self_kv] * n_kv, *[audio_kv] * n_kv]) as graph:
        at = Scope(weights, ops.few_rows) / "decoder"
        inputs = (value.tensor for value in graph.inputs[:3])
        buffers = [value.buffer for value in graph.inputs[3 : 3 + n_kv]]
        audio = [value.tensor for value in graph.inputs[3 + n_kv :]]
        finish(graph, [decoder(at, dims, buffers, audio, *inputs)], at)

    if unknown := wanted.difference(*captured.values()):
        raise ValueError(f"no graph computes {', '.join(sorted(unknown))}")
    return module, captured
