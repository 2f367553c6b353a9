"""Whisper as MAX graphs, in the order the data flows and under the checkpoint's own names.

These graphs share one set of weights: `encoder` turns a log-mel spectrogram into audio features, `cross_kv` turns those into the
keys and values that every decoder layer attends to, `decoder` turns tokens into logits and keeps its own keys and values in place.
Prefill and a cached step are the same decoder graph with a different number of tokens. On the CPU `greedy` takes such steps until the text
ends; on a GPU `step` takes one, of which everything stays there, so that no step waits for the host.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from max.dtype import DType
from max.graph import BufferType, BufferValue, DeviceRef, Graph, Module, TensorType, TensorValue, Weight
from max.graph import ops as max_ops

from maxwhisper.audio import HOP_LENGTH
from maxwhisper.checkpoint import LM_HEAD, ModelDimensions, weight_shapes
from maxwhisper.engine import ops
from maxwhisper.engine.dtypes import DTypes
from maxwhisper.engine.log_mel import log_mel_bands
from maxwhisper.engine.quantization import scale_of


@dataclass(frozen=True)
class Scope:
    """A place in the model: its path names weights and activations alike, as in `encoder.blocks.0.attn.query`.

    `weight` brings the checkpoint's weight of that path into the graph; `record` notes an activation under it, to be had as an
    extra output of the same graph by whoever asks for its name.
    """

    weights: Mapping[str, Weight]
    activations: dict[str, TensorValue] = field(default_factory=dict)
    path: str = ""

    def __truediv__(self, name: str | int) -> "Scope":
        return replace(self, path=f"{self.path}.{name}".lstrip("."))

    def weight(self, name: str) -> TensorValue:
        return TensorValue(self.weights[(self / name).path])

    def scale(self) -> TensorValue | None:
        """What the weight of this place counts, where it is rounded."""
        is_rounded = self.weight("weight").dtype == DType.int8
        return self.weight("scale") if is_rounded else None

    def record(self, value: TensorValue) -> TensorValue:
        self.activations[self.path] = value
        return value


def layer_norm(at: Scope, x: TensorValue) -> TensorValue:
    """`ops.layer_norm` with the weights of this place."""
    return at.record(ops.layer_norm(x, at.weight("weight"), at.weight("bias")))


def linear(at: Scope, x: TensorValue, bias: bool = True) -> TensorValue:
    """`ops.linear` with the weights of this place, or `ops.linear_int8` where they are rounded."""
    weight, scale = at.weight("weight"), at.scale()
    biases = [at.weight("bias")] if bias else []
    if scale is not None:
        return at.record(ops.linear_int8(x, weight, scale, *biases))
    return at.record(ops.linear(x, weight, *biases))


def keys_and_values(at: Scope, x: TensorValue) -> tuple[TensorValue, TensorValue]:
    """Project x [batch, n, n_state] to keys and values of the same shape. Keys have no bias."""
    return linear(at / "key", x, bias=False), linear(at / "value", x)


def self_attention(at: Scope, x: TensorValue, n_head: int) -> TensorValue:
    """The first half of an encoder's block: layer norm, attention of all to all, and the residual around them."""
    attn = at / "attn"
    h = layer_norm(at / "attn_ln", x)
    projections = linear(attn / "query", h), *keys_and_values(attn, h)
    attention = ops.attention if (attn / "query").scale() is None else ops.attention_int8
    context = max_ops.reshape(attention(*(ops.in_heads(projection, n_head) for projection in projections)), x.shape)
    h = linear(attn / "out", (attn / "context").record(context))
    return (attn / "residual").record(x + h)


def cached_self_attention(
    at: Scope, x: TensorValue, cache: Sequence[BufferValue], slots: TensorValue, positions: TensorValue
) -> TensorValue:
    """The first third of a decoder's block: layer norm, attention of each token to those up to itself, and the residual around them.

    cache: a buffer of keys and one of values, in which those of x's tokens are written at their positions, in their slots.
    """
    attn = at / "attn"
    h = layer_norm(at / "attn_ln", x)
    q, (k, v), (k_cache, v_cache) = linear(attn / "query", h), keys_and_values(attn, h), cache
    context = ops.cached_attention(q, k, v, k_cache, v_cache, slots, positions)
    h = linear(attn / "out", (attn / "context").record(context))
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


# A block's weights and activations, in the order of `ops.decoder_block`.
NORMS = ("attn_ln", "cross_attn_ln", "mlp_ln")
LAYERS = ("attn.query", "attn.key", "attn.value", "attn.out", "cross_attn.query", "cross_attn.out", "mlp.0", "mlp.2")
ACTIVATIONS = (
    *("attn_ln", "attn.query", "attn.key", "attn.value", "attn.context", "attn.out", "attn.residual"),
    *("cross_attn_ln", "cross_attn.query", "cross_attn.context", "cross_attn.out", "cross_attn.residual"),
    *("mlp_ln", "mlp.0", "mlp.gelu", "mlp.2", "mlp.residual"),
)


def decoder_block(
    at: Scope,
    x: TensorValue,
    self_kv: Sequence[BufferValue],
    cross_kv: Sequence[TensorValue],
    slots: TensorValue,
    positions: TensorValue,
) -> TensorValue:
    """A block of the decoder; on the CPU all of it is one op."""
    if not ops.has_kernels(x.device):
        return decoder_block_by_parts(at, x, self_kv, cross_kv, slots, positions)
    norms = [at.weight(f"{norm}.{name}") for norm in NORMS for name in ("weight", "bias")]
    biases = [at.weight(f"{layer}.bias") for layer in LAYERS if layer != "attn.key"]
    matrices = [at.weight(f"{layer}.weight") for layer in LAYERS]
    scales = [scale for layer in LAYERS if (scale := (at / layer).scale()) is not None]
    activations = ops.decoder_block(x, self_kv, slots, positions, cross_kv, matrices, [*norms, *biases, *scales])
    for name, activation in zip(ACTIVATIONS, activations):
        (at / name).record(activation)
    return activations[-1]


def decoder_block_by_parts(
    at: Scope,
    x: TensorValue,
    self_kv: Sequence[BufferValue],
    cross_kv: Sequence[TensorValue],
    slots: TensorValue,
    positions: TensorValue,
) -> TensorValue:
    """`decoder_block` of MAX's operations."""
    x = cached_self_attention(at, x, self_kv, slots, positions)
    return mlp(at, cross_attention(at, x, cross_kv))


def encoder(at: Scope, dims: ModelDimensions, log_mel: TensorValue, dtype: DType) -> TensorValue:
    """log_mel [n_audio, n_mels, 2 * n_audio_ctx] to audio features [n_audio, n_audio_ctx, n_audio_state]; all activations of one dtype."""
    x = max_ops.cast(max_ops.permute(log_mel, [0, 2, 1]), dtype)
    for name, stride in (("conv1", 1), ("conv2", 2)):
        conv = at / name
        x = conv.record(ops.conv1d(x, conv.weight("weight"), conv.weight("bias"), stride))
        x = (conv / "gelu").record(ops.gelu(x))
    x = (at / "positions").record(x + max_ops.cast(at.weight("positional_embedding"), dtype))
    for i in range(dims.n_audio_layer):
        block = at / "blocks" / i
        x = mlp(block, self_attention(block, x, dims.n_audio_head))
    return layer_norm(at / "ln_post", x)


def cross_kv(at: Scope, dims: ModelDimensions, audio_features: TensorValue) -> list[TensorValue]:
    """audio_features [n_audio, n_audio_ctx, n_audio_state] to a key and a value for each decoder layer, in layer order,
    [n_audio, n_text_head, n_audio_ctx, head_dim] each; with rounded weights, in float16.
    """
    kept = []
    for i in range(dims.n_text_layer):
        layer = at / "blocks" / i / "cross_attn"
        for name, kv in zip(("key", "value"), keys_and_values(layer, audio_features)):
            if (layer / name).scale() is not None:
                kv = max_ops.cast(kv, DType.float16)
                (layer / name / "half").record(max_ops.cast(kv, audio_features.dtype))
            kept.append(ops.split_heads(kv, dims.n_text_head))
    return kept


def decoder(
    at: Scope,
    dims: ModelDimensions,
    self_kv: Sequence[BufferValue],
    cross_kv: Sequence[TensorValue],
    slots: TensorValue,
    tokens: TensorValue,
    positions: TensorValue,
    rows: TensorValue,
) -> TensorValue:
    """The next tokens' logits, [n_audio, n_group, n_rows, n_vocab]; all activations have the caches' dtype.

    self_kv: a key and a value buffer for each layer, [n_slots, n_text_head, n_text_ctx, head_dim]; this call's are written at their
    positions, in their slots (`ops.cached_attention`). cross_kv: what the graph `cross_kv` returned.
    tokens int64 [n_audio, n_group, n]: the tokens that follow those already in the cache; a group shares one audio's features.
    positions int64 [n] of these tokens, in order and without gaps.
    rows int64 [n_rows]: at which of the n tokens logits are wanted (the product with the vocabulary is the dearest of all).
    """
    n_audio, n_group, n = tokens.shape
    grouped, flat = [n_audio, n_group], [n_audio * n_group]

    vocabulary = at / "token_embedding"
    embedding = ops.token_embedding(max_ops.reshape(tokens, [*flat, n]), vocabulary.weight("weight"), vocabulary.scale())
    x = (at / "embedding").record(max_ops.cast(embedding, self_kv[0].dtype))
    positional_embedding = max_ops.cast(ops.token_embedding(positions, at.weight("positional_embedding")), x.dtype)
    x = (at / "positions").record(x + positional_embedding)
    for i in range(dims.n_text_layer):
        layer = slice(2 * i, 2 * i + 2)
        x = decoder_block(at / "blocks" / i, x, self_kv[layer], cross_kv[layer], slots, positions)
    x = layer_norm(at / "ln", x)
    x = ops.token_embedding(rows, max_ops.permute(x, [1, 0, 2]))
    n_rows = rows.shape[0]
    x = max_ops.reshape(max_ops.permute(x, [1, 0, 2]), [n_audio * n_group * n_rows, dims.n_text_state])
    head = at / "proj_out" if LM_HEAD in at.weights else vocabulary
    logits = max_ops.cast(ops.lm_head(x, head.weight("weight"), head.scale()), DType.float32)
    return (at / "logits").record(max_ops.reshape(logits, [*grouped, n_rows, dims.n_vocab]))


def alignment(
    at: Scope,
    dims: ModelDimensions,
    self_kv: Sequence[BufferValue],
    cross_kv: Sequence[TensorValue],
    slots: TensorValue,
    tokens: TensorValue,
    positions: TensorValue,
    rows: TensorValue,
    heads: TensorValue,
) -> list[TensorValue]:
    """`decoder`, and how well each token's queries fit each frame of the audio: [n_audio, n_heads, n, n_audio_ctx], float32.

    heads int64 [n_heads]: which of the decoder's, counted through all layers; a group has one sequence.
    """
    logits = decoder(at, dims, self_kv, cross_kv, slots, tokens, positions, rows)
    queries = [at.activations[(at / "blocks" / i / "cross_attn" / "query").path] for i in range(dims.n_text_layer)]
    q = max_ops.concat([ops.split_heads(query, dims.n_text_head) for query in queries], axis=1)
    k = max_ops.concat(list(cross_kv[::2]), axis=1)
    q, k = (max_ops.gather(x, heads, axis=1) for x in (q, max_ops.cast(k, q.dtype)))
    return [logits, ops.attention_scores(max_ops.rebind(q, [k.shape[0], *q.shape[1:]]), k)]


# The logits [n_seq, n_vocab] behind a token of each sequence, int64 [n_audio, n_group, 1], at a position, int64 [1].
Behind = Callable[[TensorValue, TensorValue], TensorValue]


def behind(
    at: Scope,
    dims: ModelDimensions,
    self_kv: Sequence[BufferValue],
    cross_kv: Sequence[TensorValue],
    slots: TensorValue,
    last: TensorValue,
    position: TensorValue,
) -> TensorValue:
    """`decoder` of a single token; with all but the last two arguments bound it is what `greedy`, `beams` and `step` go on by."""
    n_audio, n_group, _ = last.shape
    first_row = max_ops.constant(np.zeros(1, np.int64), device=last.device)
    logits = decoder(at, dims, self_kv, cross_kv, slots, last, position, first_row)
    return max_ops.reshape(logits, [n_audio * n_group, dims.n_vocab])


def greedy(
    logits_behind: Behind,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
    n_tokens: TensorValue,
    end: TensorValue,
) -> list[TensorValue]:
    """Tokens behind those that are there, until all sequences have ended or there are `end` tokens; returns how many there are, int64 [1].

    tokens int64 [n_audio, n_group, n_ctx + 1], of which n_tokens int64 [1] are there, the last of them not yet in the cache; end int64 [1].
    The others as in `ops.next_token`.
    """
    n_audio, n_group, _ = tokens.shape

    def go_on(n: TensorValue, last: TensorValue, n_unfinished: TensorValue) -> TensorValue:
        return max_ops.logical_and(n[0] < end[0], n_unfinished[0] > 0)

    def next_one(n: TensorValue, last: TensorValue, n_unfinished: TensorValue) -> list[TensorValue]:
        chosen, n_unfinished = ops.next_token(logits_behind(last, n - 1), tokens, sum_logprobs, mask, rules, n)
        return [n + 1, max_ops.reshape(chosen, [n_audio, n_group, 1]), n_unfinished]

    last = max_ops.gather(max_ops.buffer_load(tokens), n_tokens - 1, axis=2)
    return max_ops.while_loop([n_tokens, last, max_ops.broadcast_to(n_tokens, [1])], go_on, next_one)[:1]


def beams(logits_behind: Behind, tokens: TensorValue, mask: TensorValue, rules: TensorValue) -> list[TensorValue]:
    """The tokens that may follow in a beam search, and their log-probabilities: `ops.likeliest_tokens`.

    tokens int64 [n_audio, n_group, n]: all so far, the last of them not yet in the cache.
    """
    position = max_ops.reshape(max_ops.cast(TensorValue(tokens.shape[2] - 1), DType.int64), [1])
    return ops.likeliest_tokens(logits_behind(max_ops.gather(tokens, position, axis=2), position), tokens, mask, rules)


def step(
    logits_behind: Behind, tokens: BufferValue, sum_logprobs: BufferValue, n_tokens: BufferValue, mask: TensorValue, rules: TensorValue
) -> list[TensorValue]:
    """One more token behind those that are there; returns how many sequences have not ended, int64 [1].

    n_tokens int64 [1]: how many there are, one more afterwards. The others as in `greedy`.
    """
    n = max_ops.buffer_load(n_tokens)
    last = max_ops.gather(max_ops.buffer_load(tokens), n - 1, axis=2)
    _, n_unfinished = ops.next_token(logits_behind(last, n - 1), tokens, sum_logprobs, mask, rules, n)
    max_ops.buffer_store(n_tokens, n + 1)
    return [n_unfinished]


def build_module(
    dims: ModelDimensions, device: DeviceRef, capture: Iterable[str] = (), dtypes: DTypes | None = None
) -> tuple[Module, dict[str, list[str]]]:
    """All graphs in one module, so that they compile together and share their kernels.

    Each activation named in `capture` becomes an extra output of the graph that computes it, behind the graph's own, in data-flow
    order; `greedy`, `beams` and `step`, of which nobody asks for any, are there only where none is. dtypes: all float32 by default.
    Returns the module and, for each graph, the names of its extra outputs.

    Raises ValueError for names that no graph computes.
    """
    module, captured = Module(), dict[str, list[str]]()
    wanted = set(capture)
    dtypes = dtypes or DTypes({})

    def weights() -> dict[str, Weight]:  # each graph has its own
        shapes = weight_shapes(dims, tied=LM_HEAD not in dtypes.weights)
        scales = {scale_of(name): shapes[name][:1] for name, dtype in dtypes.weights.items() if dtype == DType.int8}
        return {name: Weight(name, dtypes.weights.get(name, DType.float32), shape, device) for name, shape in {**shapes, **scales}.items()}

    head_dim = dims.n_text_state // dims.n_text_head
    n_kv = 2 * dims.n_text_layer

    def tensor(dtype: DType, *shape: str | int) -> TensorType:
        return TensorType(dtype, shape, device)

    log_mel = tensor(DType.float32, "n_audio", dims.n_mels, 2 * dims.n_audio_ctx)
    features = tensor(dtypes.activations, "n_audio", dims.n_audio_ctx, dims.n_audio_state)
    tokens = tensor(DType.int64, "n_audio", "n_group", "n")
    positions = tensor(DType.int64, "n")
    rows = tensor(DType.int64, "n_rows")
    self_kv = BufferType(dtypes.activations, ["n_slots", dims.n_text_head, dims.n_text_ctx, head_dim], device)
    slots = tensor(DType.int64, "n_audio", "n_group", dims.n_text_ctx)
    audio_kv = tensor(dtypes.cross_kv, "n_audio", dims.n_text_head, dims.n_audio_ctx, head_dim)
    kept = [*[self_kv] * n_kv, *[audio_kv] * n_kv]  # the last inputs of every graph that decodes

    make = functools.partial(Graph, module=module, custom_extensions=ops.kernels())

    def kept_of(graph: Graph) -> tuple[list[BufferValue], list[TensorValue]]:
        values = graph.inputs[-len(kept) :]
        return [value.buffer for value in values[:n_kv]], [value.tensor for value in values[n_kv:]]

    def finish(graph: Graph, outputs: list[TensorValue], at: Scope) -> None:
        extra = {name: value for name, value in at.activations.items() if name in wanted}
        graph.output(*outputs, *extra.values())
        captured[graph.name] = list(extra)

    with make("encoder", input_types=[log_mel]) as graph:
        at = Scope(weights()) / "encoder"
        finish(graph, [encoder(at, dims, graph.inputs[0].tensor, dtypes.activations)], at)

    with make("cross_kv", input_types=[features]) as graph:
        at = Scope(weights()) / "decoder"
        finish(graph, cross_kv(at, dims, graph.inputs[0].tensor), at)

    with make("decoder", input_types=[slots, tokens, positions, rows, *kept]) as graph:
        at = Scope(weights()) / "decoder"
        inputs = (value.tensor for value in graph.inputs[: -len(kept)])
        finish(graph, [decoder(at, dims, *kept_of(graph), *inputs)], at)

    with make("alignment", input_types=[slots, tokens, positions, rows, tensor(DType.int64, "n_heads"), *kept]) as graph:
        inputs = (value.tensor for value in graph.inputs[: -len(kept)])
        graph.output(*alignment(Scope(weights()) / "decoder", dims, *kept_of(graph), *inputs))

    if not ops.has_kernels(device):
        with make("log_mel", input_types=[tensor(DType.float32, "n_hops", HOP_LENGTH)]) as graph:
            graph.output(log_mel_bands(graph.inputs[0].tensor, dims.n_mels))

    if not capture:
        sequences = BufferType(DType.int64, ["n_audio", "n_group", dims.n_text_ctx + 1], device)
        sums = BufferType(DType.float64, ["n_audio", "n_group"], device)
        mask, rules, number = tensor(DType.float32, dims.n_vocab), tensor(DType.int64, 3), tensor(DType.int64, 1)
        loops: dict[Callable[..., list[TensorValue]], list[TensorType | BufferType]] = {
            step: [sequences, sums, BufferType(DType.int64, [1], device), mask, rules]
        }
        if ops.has_kernels(device):
            loops = {greedy: [sequences, sums, mask, rules, number, number], beams: [tokens, mask, rules]}
        for loop, types in loops.items():
            with make(loop.__name__, input_types=[slots, *types, *kept]) as graph:
                first, *rest = graph.inputs
                buffers, audio = kept_of(graph)
                given = [value.buffer if isinstance(type, BufferType) else value.tensor for type, value in zip(types, rest)]
                logits_behind = functools.partial(behind, Scope(weights()) / "decoder", dims, buffers, audio, first.tensor)
                graph.output(*loop(logits_behind, *given))

    if unknown := wanted.difference(*captured.values()):
        raise ValueError(f"no graph computes {', '.join(sorted(unknown))}")
    return module, captured
