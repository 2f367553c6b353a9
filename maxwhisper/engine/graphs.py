"""Whisper as MAX graphs, in the order of the data flow and with the names of OpenAI's checkpoints.

The graphs share one set of weights. `encoder` turns a log-mel spectrogram into audio features.
`cross_kv` turns those into the keys and values that the decoder layers attend to. `decoder` turns
tokens into logits and appends to a KV cache in place. Prefill and a cached step are the same graph
with different numbers of tokens. `greedy` (CPU only) takes steps until the text ends. `step` (GPU
only) takes one step and leaves its results on the device, so that no step waits for the host.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from max.dtype import DType
from max.graph import BufferType, BufferValue, DeviceRef, Graph, Module, TensorType, TensorValue, Value, Weight
from max.graph import ops as max_ops

from maxwhisper.audio import HOP_LENGTH
from maxwhisper.checkpoint import LM_HEAD, ModelDimensions, weight_shapes
from maxwhisper.engine.decoder_block import ACTIVATIONS, LINEARS, VECTORS
from maxwhisper.engine.dtypes import DTypes
from maxwhisper.engine.log_mel import log_mel_bands
from maxwhisper.engine.ops import Backend, backend_for, cpu, kernels, nvidia, portable
from maxwhisper.engine.quantization import scale_of


@dataclass(frozen=True)
class Scope:
    """A place in the model, whose path names both weights and activations."""

    weights: Mapping[str, Weight]  # of the graph, by name
    ops: Backend  # builds the operations
    activations: dict[str, TensorValue] = field(default_factory=dict)  # all recorded ones, by name
    path: str = ""  # such as `encoder.blocks.0.attn.query`

    def __truediv__(self, name: str | int) -> "Scope":
        return replace(self, path=f"{self.path}.{name}".lstrip("."))

    def weight(self, name: str) -> TensorValue:
        """Return a weight of this place, as a value of the graph."""
        return TensorValue(self.weights[(self / name).path])

    def scale(self) -> TensorValue | None:
        """Return the dequantization scales of this place's weight, or None without quantization."""
        is_quantized = self.weight("weight").dtype == DType.int8
        return self.weight("scale") if is_quantized else None

    def record(self, value: TensorValue) -> TensorValue:
        """Record an activation under this path and return it; if captured, the graph outputs it."""
        self.activations[self.path] = value
        return value


@dataclass(frozen=True)
class KVCache:
    """The keys and values that a decoder attends to, a key and a value per layer, in order."""

    # int64 [n_audio, n_group, n_text_ctx], the page of each position of a sequence
    page_table: TensorValue
    # Buffers [n_pages, n_text_head, n_text_ctx, head_dim] of the tokens, appended to in place
    self_kv: Sequence[BufferValue]
    # [n_audio, n_text_head, n_audio_ctx, head_dim] of the audio
    cross_kv: Sequence[TensorValue]

    @staticmethod
    def types(dims: ModelDimensions, dtypes: DTypes, device: DeviceRef) -> list[TensorType | BufferType]:
        """Return the types of a cache's values, as inputs of a graph."""
        n_kv, head_dim = 2 * dims.n_text_layer, dims.n_text_state // dims.n_text_head
        page_table = TensorType(DType.int64, ["n_audio", "n_group", dims.n_text_ctx], device)
        self_kv = BufferType(dtypes.activations, ["n_pages", dims.n_text_head, dims.n_text_ctx, head_dim], device)
        cross_kv = TensorType(dtypes.cross_kv, ["n_audio", dims.n_text_head, dims.n_audio_ctx, head_dim], device)
        return [page_table, *[self_kv] * n_kv, *[cross_kv] * n_kv]

    @classmethod
    def of(cls, values: Sequence[Value]) -> "KVCache":
        """Make a cache from graph inputs of these `types`."""
        page_table, *kv = values
        n_kv = len(kv) // 2
        return cls(page_table.tensor, [value.buffer for value in kv[:n_kv]], [value.tensor for value in kv[n_kv:]])

    def layer(self, i: int) -> "KVCache":
        """Return the part of one layer."""
        key_and_value = slice(2 * i, 2 * i + 2)
        return KVCache(self.page_table, self.self_kv[key_and_value], self.cross_kv[key_and_value])


def layer_norm(at: Scope, x: TensorValue) -> TensorValue:
    """Build `ops.layer_norm` with the weights of this place."""
    return at.record(at.ops.layer_norm(x, at.weight("weight"), at.weight("bias")))


def linear(at: Scope, x: TensorValue, bias: bool = True) -> TensorValue:
    """Build `ops.linear` with the weights of this place, or `ops.linear_int8` if quantized."""
    weight, scale = at.weight("weight"), at.scale()
    biases = [at.weight("bias")] if bias else []
    if scale is not None:
        return at.record(at.ops.linear_int8(x, weight, scale, *biases))
    return at.record(at.ops.linear(x, weight, *biases))


def keys_and_values(at: Scope, x: TensorValue) -> tuple[TensorValue, TensorValue]:
    """Project x [batch, n, n_state] to keys and values of that shape; keys have no bias."""
    return linear(at / "key", x, bias=False), linear(at / "value", x)


def self_attention(at: Scope, x: TensorValue, n_head: int) -> TensorValue:
    """Build the first half of an encoder block: layer norm, attention, and the residual."""
    attn, ops = at / "attn", at.ops
    h = layer_norm(at / "attn_ln", x)
    projections = linear(attn / "query", h), *keys_and_values(attn, h)
    attention = ops.attention if (attn / "query").scale() is None else ops.attention_int8
    context = max_ops.reshape(attention(*(ops.in_heads(projection, n_head) for projection in projections)), x.shape)
    h = linear(attn / "out", (attn / "context").record(context))
    return (attn / "residual").record(x + h)


def cached_self_attention(at: Scope, x: TensorValue, cache: KVCache, positions: TensorValue) -> TensorValue:
    """Build the first third of a decoder block: layer norm, causal attention, and the residual.

    Args:
        at: the block.
        x: [n_audio * n_group, n, n_state].
        cache: of this layer. The keys and values of x are appended to it.
        positions: of x, int64 [n].
    """
    attn, (k_cache, v_cache) = at / "attn", cache.self_kv
    h = layer_norm(at / "attn_ln", x)
    q, (k, v) = linear(attn / "query", h), keys_and_values(attn, h)
    context = at.ops.cached_attention(q, k, v, k_cache, v_cache, cache.page_table, positions)
    h = linear(attn / "out", (attn / "context").record(context))
    return (attn / "residual").record(x + h)


def cross_attention(at: Scope, x: TensorValue, cross_kv: Sequence[TensorValue]) -> TensorValue:
    """Build the second third of a decoder block: layer norm, attention to audio, and the residual.

    Args:
        at: the block.
        x: [n_audio * n_group, n, n_state].
        cross_kv: keys and values, [n_audio, n_head, n_audio_ctx, head_dim] each.
    """
    attn = at / "cross_attn"
    q = linear(attn / "query", layer_norm(at / "cross_attn_ln", x))
    # A group's queries attend to the same audio, so they are concatenated along the query axis.
    batch, n, n_state = x.shape
    n_audio = cross_kv[0].shape[0]
    context = at.ops.cross_attention(max_ops.reshape(q, [n_audio, batch * n // n_audio, n_state]), *cross_kv)
    h = linear(attn / "out", (attn / "context").record(max_ops.reshape(context, x.shape)))
    return (attn / "residual").record(x + h)


def mlp(at: Scope, x: TensorValue) -> TensorValue:
    """Build the last part of a block: layer norm, linear, GELU, linear, and the residual."""
    h = linear(at / "mlp" / 0, layer_norm(at / "mlp_ln", x))
    h = (at / "mlp" / "gelu").record(at.ops.gelu(h))
    return (at / "mlp" / "residual").record(x + linear(at / "mlp" / 2, h))


def decoder_block(at: Scope, x: TensorValue, cache: KVCache, positions: TensorValue) -> TensorValue:
    """Build a decoder block, as one kernel if the backend has one.

    Args:
        at: the block.
        x: [n_audio * n_group, n, n_state].
        cache: of this layer.
        positions: of x, int64 [n].
    """
    build = fused_decoder_block if at.ops.FUSES_DECODER_BLOCK else decoder_block_by_parts
    return build(at, x, cache, positions)


def fused_decoder_block(at: Scope, x: TensorValue, cache: KVCache, positions: TensorValue) -> TensorValue:
    """Build `decoder_block` as one kernel."""
    matrices = [at.weight(f"{name}.weight") for name in LINEARS]
    scales = [scale for name in LINEARS if (scale := (at / name).scale()) is not None]
    vectors = [*(at.weight(name) for name in VECTORS), *scales]
    activations = at.ops.decoder_block(x, cache.self_kv, cache.page_table, positions, cache.cross_kv, matrices, vectors)
    for name, activation in zip(ACTIVATIONS, activations, strict=True):
        (at / name).record(activation)
    return activations[-1]


def decoder_block_by_parts(at: Scope, x: TensorValue, cache: KVCache, positions: TensorValue) -> TensorValue:
    """Build `decoder_block` from its layers."""
    x = cached_self_attention(at, x, cache, positions)
    return mlp(at, cross_attention(at, x, cache.cross_kv))


def encoder(at: Scope, dims: ModelDimensions, log_mel: TensorValue, dtype: DType) -> TensorValue:
    """Encode log-mel windows.

    Args:
        at: the encoder.
        dims: the model's sizes.
        log_mel: [n_audio, n_mels, 2 * n_audio_ctx].
        dtype: of all activations.

    Returns:
        Audio features [n_audio, n_audio_ctx, n_audio_state].
    """
    x = max_ops.cast(max_ops.permute(log_mel, [0, 2, 1]), dtype)
    for name, stride in (("conv1", 1), ("conv2", 2)):
        conv = at / name
        x = conv.record(at.ops.conv1d(x, conv.weight("weight"), conv.weight("bias"), stride))
        x = (conv / "gelu").record(at.ops.gelu(x))
    x = (at / "positions").record(x + max_ops.cast(at.weight("positional_embedding"), dtype))
    for i in range(dims.n_audio_layer):
        block = at / "blocks" / i
        x = mlp(block, self_attention(block, x, dims.n_audio_head))
    return layer_norm(at / "ln_post", x)


def cross_kv(at: Scope, dims: ModelDimensions, audio_features: TensorValue) -> list[TensorValue]:
    """Project audio features to a key and a value for each decoder layer.

    Args:
        at: the decoder.
        dims: the model's sizes.
        audio_features: [n_audio, n_audio_ctx, n_audio_state].

    Returns:
        Keys and values in layer order, [n_audio, n_text_head, n_audio_ctx, head_dim] each. They are
        float16 if the weights are quantized.
    """
    projected = []
    for i in range(dims.n_text_layer):
        layer = at / "blocks" / i / "cross_attn"
        for name, kv in zip(("key", "value"), keys_and_values(layer, audio_features)):
            if (layer / name).scale() is not None:
                kv = max_ops.cast(kv, DType.float16)
                (layer / name / "half").record(max_ops.cast(kv, audio_features.dtype))
            projected.append(at.ops.split_heads(kv, dims.n_text_head))
    return projected


def decoder(
    at: Scope,
    dims: ModelDimensions,
    tokens: TensorValue,
    positions: TensorValue,
    rows: TensorValue,
    cache: KVCache,
) -> TensorValue:
    """Compute logits after new tokens, whose keys and values are appended to the cache.

    All activations have the cache's dtype, or float32 if the backend computes in that.

    Args:
        at: the decoder.
        dims: the model's sizes.
        tokens: int64 [n_audio, n_group, n], the tokens after the cached ones. A group shares the
            features of one window.
        positions: of the tokens, int64 [n], consecutive.
        rows: int64 [n_rows], indices of the n tokens after which logits are wanted. They are
            selected because the LM head is the most expensive layer.
        cache: of all layers.

    Returns:
        Logits, float32 [n_audio, n_group, n_rows, n_vocab].
    """
    n_audio, n_group, _ = tokens.shape
    vocabulary = at / "token_embedding"
    positional = at.weight("positional_embedding")
    dtype = cache.self_kv[0].dtype
    embedding, x = at.ops.embed(tokens, positions, vocabulary.weight("weight"), positional, vocabulary.scale(), dtype)
    (at / "embedding").record(embedding)
    (at / "positions").record(x)
    logits = decode_embedded(at, dims, x, positions, rows, cache)
    return (at / "logits").record(max_ops.reshape(logits, [n_audio, n_group, *logits.shape[1:]]))


def decode_embedded(
    at: Scope, dims: ModelDimensions, x: TensorValue, positions: TensorValue, rows: TensorValue, cache: KVCache
) -> TensorValue:
    """Compute `decoder`'s logits from embedded tokens.

    Args:
        at: the decoder.
        dims: the model's sizes.
        x: [n_seq, n, n_state], with n_seq = n_audio * n_group.
        positions: as in `decoder`.
        rows: as in `decoder`.
        cache: of all layers.

    Returns:
        Logits, float32 [n_seq, n_rows, n_vocab].
    """
    for i in range(dims.n_text_layer):
        x = decoder_block(at / "blocks" / i, x, cache.layer(i), positions)
    ln, head = at / "ln", at / ("proj_out" if LM_HEAD in at.weights else "token_embedding")
    norm = ln.weight("weight"), ln.weight("bias")
    normed, logits = at.ops.normed_lm_head(x, rows, *norm, head.weight("weight"), head.scale())
    ln.record(normed)
    return max_ops.cast(logits, DType.float32)


def alignment(
    at: Scope,
    dims: ModelDimensions,
    tokens: TensorValue,
    positions: TensorValue,
    rows: TensorValue,
    heads: TensorValue,
    cache: KVCache,
) -> list[TensorValue]:
    """Compute `decoder`'s logits, and the cross-attention scores of some heads before the softmax.

    A group must have one sequence.

    Args:
        at: the decoder.
        dims: the model's sizes.
        tokens: as in `decoder`.
        positions: as in `decoder`.
        rows: as in `decoder`.
        heads: int64 [n_heads], layer * n_text_head + head for each.
        cache: of all layers.

    Returns:
        The logits, and the scores, float32 [n_audio, n_heads, n, n_audio_ctx].
    """
    logits = decoder(at, dims, tokens, positions, rows, cache)
    queries = [at.activations[(at / "blocks" / i / "cross_attn" / "query").path] for i in range(dims.n_text_layer)]
    return [logits, at.ops.alignment_scores(queries, cache.cross_kv[::2], heads)]


def next_token_logits(
    at: Scope, dims: ModelDimensions, last: TensorValue, position: TensorValue, cache: KVCache
) -> TensorValue:
    """Compute the logits after one token of each sequence.

    Args:
        at: the decoder.
        dims: the model's sizes.
        last: the tokens, int64 [n_audio, n_group, 1].
        position: of the tokens, int64 [1].
        cache: of all layers.

    Returns:
        Logits [n_seq, n_vocab], with n_seq = n_audio * n_group.
    """
    n_audio, n_group, _ = last.shape
    first_row = max_ops.constant(np.zeros(1, np.int64), device=last.device)
    logits = decoder(at, dims, last, position, first_row, cache)
    return max_ops.reshape(logits, [n_audio * n_group, dims.n_vocab])


def greedy(
    at: Scope,
    dims: ModelDimensions,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
    n_tokens: TensorValue,
    end: TensorValue,
    last: TensorValue,
    cache: KVCache,
) -> list[TensorValue]:
    """Append tokens until all sequences have ended or have `end` tokens.

    Args:
        at: the decoder.
        dims: the model's sizes.
        tokens: int64 [n_audio, n_group, n_text_ctx + 1], written in place. The first n_tokens are
            the prompt; the last of those is not cached yet.
        sum_logprobs: as in `ops.next_token`.
        mask: as in `ops.next_token`.
        rules: as in `ops.next_token`.
        n_tokens: int64 [1].
        end: the largest number of tokens, int64 [1].
        last: the last of the prompt's tokens, int64 [n_audio, n_group, 1].
        cache: of all layers.

    Returns:
        The number of tokens at the end, int64 [1].
    """
    n_audio, n_group, _ = tokens.shape

    def is_unfinished(n: TensorValue, last: TensorValue, n_unfinished: TensorValue) -> TensorValue:
        return max_ops.logical_and(n[0] < end[0], n_unfinished[0] > 0)

    def append_one(n: TensorValue, last: TensorValue, n_unfinished: TensorValue) -> list[TensorValue]:
        logits = next_token_logits(at, dims, last, n - 1, cache)
        chosen, n_unfinished = at.ops.next_token(logits, tokens, sum_logprobs, mask, rules, n)
        return [n + 1, max_ops.reshape(chosen, [n_audio, n_group, 1]), n_unfinished]

    state = [n_tokens, last, max_ops.broadcast_to(n_tokens, [1])]
    return max_ops.while_loop(state, is_unfinished, append_one)[:1]


def beams(
    at: Scope,
    dims: ModelDimensions,
    tokens: TensorValue,
    last: TensorValue,
    position: TensorValue,
    mask: TensorValue,
    rules: TensorValue,
    cache: KVCache,
) -> list[TensorValue]:
    """Find the candidates of a beam search step: `ops.top_k_tokens` after the last token.

    Args:
        at: the decoder.
        dims: the model's sizes.
        tokens: int64 [n_audio, n_group, n], all so far.
        last: the last of them, which is not cached yet, int64 [n_audio, n_group, 1].
        position: of the last one, int64 [1].
        mask: as in `ops.next_token`.
        rules: as in `ops.next_token`.
        cache: of all layers.
    """
    logits = next_token_logits(at, dims, last, position, cache)
    return at.ops.top_k_tokens(logits, tokens, mask, rules)


def step(
    at: Scope,
    dims: ModelDimensions,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    n_tokens: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
    cache: KVCache,
) -> list[TensorValue]:
    """Append one token to each sequence.

    Args:
        at: the decoder.
        dims: the model's sizes.
        tokens: as in `greedy`.
        sum_logprobs: as in `ops.next_token`.
        n_tokens: the number of tokens, int64 [1], incremented in place.
        mask: as in `ops.next_token`.
        rules: as in `ops.next_token`.
        cache: of all layers.

    Returns:
        The number of sequences that have not ended, int64 [1].
    """
    weight, positional = at.weight("token_embedding.weight"), at.weight("positional_embedding")
    _, x, position = at.ops.embed_last(tokens, n_tokens, weight, positional, cache.self_kv[0].dtype)
    first_row = max_ops.constant(np.zeros(1, np.int64), device=x.device)
    logits = max_ops.reshape(decode_embedded(at, dims, x, position, first_row, cache), [x.shape[0], dims.n_vocab])
    return [at.ops.append_token(logits, tokens, sum_logprobs, n_tokens, mask, rules)]


@dataclass(frozen=True)
class GraphSpec:
    """The description of a graph to build."""

    name: str
    scope: str  # the path of the scope that is passed to `build`
    build: Callable[..., list[TensorValue]]  # computes the outputs from a scope, sizes and inputs
    inputs: Sequence[TensorType | BufferType]  # the types of the inputs, without the cache
    # Whether a `KVCache` follows the other inputs; `build` takes it as one argument.
    cached: bool = True
    captures: bool = False  # whether activations can be captured
    # Whether it is part of a decoding loop. Such a graph exposes no activations, so it is built
    # only if none is captured.
    loops: bool = False
    backends: tuple[Backend, ...] = (cpu, portable, nvidia)  # those that have it


def graph_specs(dims: ModelDimensions, dtypes: DTypes, device: DeviceRef) -> tuple[GraphSpec, ...]:
    """Return the graphs of a model for all backends."""

    def tensor(dtype: DType, *shape: str | int) -> TensorType:
        return TensorType(dtype, shape, device)

    def buffer(dtype: DType, *shape: str | int) -> BufferType:
        return BufferType(dtype, shape, device)

    def encode(at: Scope, dims: ModelDimensions, log_mel: TensorValue) -> list[TensorValue]:
        return [encoder(at, dims, log_mel, dtypes.activations)]

    def decode(at: Scope, dims: ModelDimensions, *inputs: TensorValue | KVCache) -> list[TensorValue]:
        return [decoder(at, dims, *inputs)]

    def bands(at: Scope, dims: ModelDimensions, hops: TensorValue) -> list[TensorValue]:
        return [log_mel_bands(hops, dims.n_mels)]

    gpus = (portable, nvidia)
    int64, float32 = DType.int64, DType.float32
    log_mel = tensor(float32, "n_audio", dims.n_mels, 2 * dims.n_audio_ctx)
    features = tensor(dtypes.activations, "n_audio", dims.n_audio_ctx, dims.n_audio_state)
    fed = [tensor(int64, "n_audio", "n_group", "n"), tensor(int64, "n"), tensor(int64, "n_rows")]
    sequences = buffer(int64, "n_audio", "n_group", dims.n_text_ctx + 1)
    sums = buffer(DType.float64, "n_audio", "n_group")
    mask, rules, number = tensor(float32, dims.n_vocab), tensor(int64, 3), tensor(int64, 1)
    last = tensor(int64, "n_audio", "n_group", 1)
    return (
        GraphSpec("encoder", "encoder", encode, [log_mel], cached=False, captures=True),
        GraphSpec("cross_kv", "decoder", cross_kv, [features], cached=False, captures=True),
        GraphSpec("decoder", "decoder", decode, fed, captures=True),
        GraphSpec("alignment", "decoder", alignment, [*fed, tensor(int64, "n_heads")]),
        GraphSpec("log_mel", "", bands, [tensor(float32, "n_hops", HOP_LENGTH)], cached=False, backends=gpus),
        GraphSpec(
            "greedy",
            "decoder",
            greedy,
            [sequences, sums, mask, rules, number, number, last],
            loops=True,
            backends=(cpu,),
        ),
        GraphSpec("beams", "decoder", beams, [fed[0], last, number, mask, rules], loops=True, backends=(cpu, nvidia)),
        GraphSpec("step", "decoder", step, [sequences, sums, buffer(int64, 1), mask, rules], loops=True, backends=gpus),
    )


def build_module(
    dims: ModelDimensions,
    device: DeviceRef,
    capture: Iterable[str] = (),
    dtypes: DTypes | None = None,
    backend: Backend | None = None,
) -> tuple[Module, dict[str, list[str]]]:
    """Build all graphs in one module, so that they compile together and share their kernels.

    Args:
        dims: the model's sizes.
        device: runs the graphs.
        capture: names of activations that the graphs also return, after their own outputs, in
            data-flow order. The decoding-loop graphs (`greedy`, `beams`, `step`) expose no
            activations, so they are built only if this is empty.
        dtypes: all float32 by default.
        backend: the device's own by default.

    Returns:
        The module, and for each graph that captures the names of its extra outputs.

    Raises:
        ValueError: if no graph computes an activation of a captured name.
    """
    module, captured, wanted = Module(), dict[str, list[str]](), set(capture)
    dtypes, backend = dtypes or DTypes({}), backend or backend_for(device, dims)
    cache = KVCache.types(dims, dtypes, device)
    for spec in graph_specs(dims, dtypes, device):
        if (spec.loops and wanted) or backend not in spec.backends:
            continue
        types = [*spec.inputs, *(cache if spec.cached else [])]
        with Graph(spec.name, input_types=types, module=module, custom_extensions=kernels()) as graph:
            at = Scope(_weights(dims, dtypes, device), backend, path=spec.scope)
            n = len(spec.inputs)
            own = [_unwrap(value, type) for value, type in zip(graph.inputs[:n], spec.inputs)]
            outputs = spec.build(at, dims, *own, *([KVCache.of(graph.inputs[n:])] if spec.cached else []))
            extra = {name: value for name, value in at.activations.items() if spec.captures and name in wanted}
            graph.output(*outputs, *extra.values())
        if spec.captures:
            captured[graph.name] = list(extra)
    if unknown := wanted.difference(*captured.values()):
        raise ValueError(f"no graph computes {', '.join(sorted(unknown))}")
    return module, captured


def _weights(dims: ModelDimensions, dtypes: DTypes, device: DeviceRef) -> dict[str, Weight]:
    """Return the weights of one graph; each graph has its own."""
    shapes = weight_shapes(dims, tied=LM_HEAD not in dtypes.weights)
    shapes |= {scale_of(name): shapes[name][:1] for name, dtype in dtypes.weights.items() if dtype == DType.int8}
    return {
        name: Weight(name, dtypes.weights.get(name, DType.float32), shape, device) for name, shape in shapes.items()
    }


def _unwrap(value: Value, type: TensorType | BufferType) -> TensorValue | BufferValue:
    return value.buffer if isinstance(type, BufferType) else value.tensor
