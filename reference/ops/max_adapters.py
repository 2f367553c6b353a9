"""Adapters between rows and the engine, for rows that need more than one op of the engine.

`build = "adapters.NAME"` names one. Every function takes `ops`, the engine's ops, and then the
graph's inputs in the row's order. For a composed row it takes all inputs by name, and returns the
parts by name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, DeviceRef, TensorValue
from max.graph import ops as max_ops

import maxwhisper
from maxwhisper.engine import graphs
from maxwhisper.engine import log_mel as log_mel_graphs
from maxwhisper.engine.ops import Backend, portable
from reference.ops.composed import AUDIO, N_HEAD

Values = Mapping[str, Any]
Parts = Mapping[str, TensorValue]


def conv1d_stride2(ops: Backend, x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Convolve with stride 2."""
    return ops.conv1d(x, weight, bias, stride=2)


def residual(ops: Backend, x: TensorValue, y: TensorValue) -> TensorValue:
    """Add, as the graphs do with MAX's own operation."""
    return x + y


def half(ops: Backend, x: TensorValue) -> TensorValue:
    """Cast to float16 and back, as the graphs do with MAX's own operation."""
    return max_ops.cast(max_ops.cast(x, DType.float16), x.dtype)


def swap_heads(x: TensorValue) -> TensorValue:
    """Permute [batch, n_head, n, head_dim] to [batch, n, n_head, head_dim], and back."""
    return max_ops.permute(x, [0, 2, 1, 3])


def attention(ops: Backend, q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Swap positions and heads, because the engine has them in the opposite order."""
    return swap_heads(ops.attention(swap_heads(q), swap_heads(k), swap_heads(v)))


def attention_int8(ops: Backend, q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Swap positions and heads, see `attention`."""
    return swap_heads(ops.attention_int8(swap_heads(q), swap_heads(k), swap_heads(v)))


def attention_by_steps(ops: Backend, q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Swap positions and heads, see `attention`."""
    return swap_heads(portable.attention_by_steps(swap_heads(q), swap_heads(k), swap_heads(v)))


def flash_attention(ops: Backend, q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Swap positions and heads, see `attention`."""
    return swap_heads(portable.flash_attention(swap_heads(q), swap_heads(k), swap_heads(v)))


def masked_attention(ops: Backend, q: TensorValue, k: TensorValue, v: TensorValue, mask: TensorValue) -> TensorValue:
    """Compute the four steps of the decoder's attention."""
    return ops.attention_context(ops.softmax(ops.apply_mask(ops.attention_scores(q, k), mask)), v)


def split_like(x: TensorValue, like: TensorValue) -> TensorValue:
    """Split x [batch, n, n_state] into the heads of `like` [batch, n_head, n, head_dim]."""
    batch, n_head, n, head_dim = like.shape
    return max_ops.permute(max_ops.reshape(x, [batch, n, n_head, head_dim]), [0, 2, 1, 3])


def cross_attention(ops: Backend, q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Merge the queries' heads and split the result's: the engine has them side by side."""
    return split_like(ops.cross_attention(ops.merge_heads(q), k, v), q)


def positions(mask: TensorValue) -> TensorValue:
    """Return the positions of the tokens with this causal mask [n, n_kv], int64 [n]."""
    n, n_kv = mask.shape
    first, end = (max_ops.cast(TensorValue(dim), DType.int64) for dim in (n_kv - n, n_kv))
    one = max_ops.constant(1, DType.int64, device=DeviceRef.CPU())
    return max_ops.range(first, end, one, out_dim=n, dtype=DType.int64, device=mask.device)


def cached(
    ops: Backend, cache: BufferValue, new: TensorValue, page_table: TensorValue, mask: TensorValue
) -> TensorValue:
    """Cut off the positions of the cache that are still unused."""
    return ops.append_to_cache(cache, new, page_table, positions(mask))[:, :, : mask.shape[1]]


def log_mel(ops: Backend, samples: np.ndarray) -> np.ndarray:
    """Compute on the host, from samples in NumPy."""
    return maxwhisper.log_mel_spectrogram(samples)


def log_mel_bands(ops: Backend, hops: TensorValue, rest: TensorValue) -> TensorValue:
    """Join the hops, whose number may be symbolic, with the two hops after them."""
    return log_mel_graphs.log_mel_bands(max_ops.concat([hops, rest], axis=0), 80)


def _recorded(ops: Backend, function: Callable[[graphs.Scope], object], values: Values) -> Parts:
    """Build with one of the engine's functions, and return the activations that it records.

    `values` holds the weights.
    """
    at = graphs.Scope(values, ops) / "block"
    function(at)
    return at.activations


def mlp(ops: Backend, values: Values) -> Parts:
    """Build `graphs.mlp`."""
    return _recorded(ops, lambda at: graphs.mlp(at, values["x"]), values)


def residual_block(ops: Backend, values: Values) -> Parts:
    """Build `graphs.self_attention`."""
    return _recorded(ops, lambda at: graphs.self_attention(at, values["x"], N_HEAD), values)


def cross_attention_block(ops: Backend, values: Values) -> Parts:
    """Build `graphs.keys_and_values` of the audio, and `graphs.cross_attention` to them."""

    def build(at: graphs.Scope) -> None:
        audio = graphs.keys_and_values(at / "cross_attn", values["xa"])
        graphs.cross_attention(at, values["x"], [ops.split_heads(kv, N_HEAD) for kv in audio])

    return _recorded(ops, build, values)


def position_embedding(ops: Backend, values: Values) -> Parts:
    """Look up tokens and positions and add, as `graphs.decoder` does."""
    embedding = ops.token_embedding(values["tokens"], values["weight"])
    rows = ops.token_embedding(values["positions"], values["positional_embedding"])
    return {"embedding": embedding, "rows": rows, "positions_added": embedding + rows}


def cached_attention(ops: Backend, values: Values) -> Parts:
    """Merge and split heads around the op, and read the cache that it wrote to."""
    q, k, v = (ops.merge_heads(values[name]) for name in ("q", "k", "v"))
    k_cache, v_cache, page_table, mask = values["k_cache"], values["v_cache"], values["slots"], values["mask"]
    context = ops.cached_attention(q, k, v, k_cache, v_cache, page_table, positions(mask))
    return {**_in_cache(ops, [k_cache, v_cache], page_table, mask), "context": split_like(context, values["q"])}


def decoder_block(ops: Backend, values: Values) -> Parts:
    """Build `graphs.decoder_block`.

    If the weights are int8, the keys and values of the audio are cast to float16 first.
    """
    caches, audio = [values["k_cache"], values["v_cache"]], [values[name] for name in AUDIO]
    page_table, mask = values["slots"], values["mask"]
    if (graphs.Scope(values, ops) / "block" / "attn" / "query").scale() is not None:
        audio = [max_ops.cast(kv, DType.float16) for kv in audio]
    heads = [ops.split_heads(kv, N_HEAD) for kv in audio]
    cache = graphs.KVCache(page_table, caches, heads)
    block = _recorded(ops, lambda at: graphs.decoder_block(at, values["x"], cache, positions(mask)), values)
    halves = {f"{name}.half": max_ops.cast(kv, DType.float32) for name, kv in zip(AUDIO, audio)}
    return {**block, **halves, **_in_cache(ops, caches, page_table, mask)}


def _in_cache(ops: Backend, caches: Iterable[BufferValue], page_table: TensorValue, mask: TensorValue) -> Parts:
    """Read the keys and values of a causal mask's tokens from a cache."""
    keys, values = (ops.read_cache(cache, page_table)[:, :, : mask.shape[1]] for cache in caches)
    return {"keys": keys, "values": values}
