"""Attention of few queries: keys and values are read once, where they lie, and shared by a few queries.

`cached_attention` is the decoder's self-attention, of tokens to those up to themselves; `cross_attention` that to all of the audio.
"""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import exp, sqrt

from .parallel import n_workers
from .tile import WIDTH, Floats

comptime QUERIES = 4  # that share what is read
comptime VECTORS = 4  # of a value's columns that are averaged together


@always_inline
def scores[n_queries: Int](result: Floats, q: Floats, stride: Int, k: Floats, n_kv: Int, head_dim: Int):
    """Put q @ k.T into result [n_queries, n_kv]: queries lie `stride` apart, k is [n_kv, head_dim]."""
    var whole = head_dim // WIDTH * WIDTH
    for key in range(n_kv):
        var row = k.unsafe_offset(key * head_dim)
        var sums = Array[SIMD[DType.float32, WIDTH], n_queries](fill=0)
        for d in range(0, whole, WIDTH):
            var part = row.unsafe_load[width=WIDTH](d)
            comptime for i in range(n_queries):
                sums[i] = q.unsafe_load[width=WIDTH](i * stride + d).fma(part, sums[i])
        comptime for i in range(n_queries):
            var score = sums[i].reduce_add()
            for d in range(whole, head_dim):
                score += q.unsafe_load(i * stride + d) * row.unsafe_load(d)
            result.unsafe_store(i * n_kv + key, score)


@always_inline
def exponentials(x: Floats, n: Int, head_dim: Int) -> Float32:
    """Replace scores x [n] by exp((x - max) / sqrt(head_dim)), and return the sum of these."""
    var scale = 1 / sqrt(Float32(head_dim))
    var whole = n // WIDTH * WIDTH
    var all_largest = SIMD[DType.float32, WIDTH](Float32.MIN)
    for i in range(0, whole, WIDTH):
        all_largest = max(all_largest, x.unsafe_load[width=WIDTH](i))
    var largest = all_largest.reduce_max()
    for i in range(whole, n):
        largest = max(largest, x.unsafe_load(i))
    var sums = SIMD[DType.float32, WIDTH](0)
    for i in range(0, whole, WIDTH):
        var e = exp((x.unsafe_load[width=WIDTH](i) - largest) * scale)
        x.unsafe_store(i, e)
        sums += e
    var sum = sums.reduce_add()
    for i in range(whole, n):
        var e = exp((x.unsafe_load(i) - largest) * scale)
        x.unsafe_store(i, e)
        sum += e
    return sum


@always_inline
def add_up[
    n_queries: Int, n_vectors: Int, width: Int
](context: Floats, stride: Int, weights: Floats, n_weights: Int, v: Floats, v_stride: Int, n_kv: Int):
    """Put weights [n_queries, n_kv] @ v, of n_vectors * width columns of v [n_kv, ...], into context; rows are n_weights, v_stride, stride apart."""
    var sums = Array[SIMD[DType.float32, width], n_queries * n_vectors](fill=0)
    for key in range(n_kv):
        var row = v.unsafe_offset(key * v_stride)
        comptime for j in range(n_vectors):
            var part = row.unsafe_load[width=width](j * width)
            comptime for i in range(n_queries):
                comptime s = i * n_vectors + j
                sums[s] = part.fma(SIMD[DType.float32, width](weights.unsafe_load(i * n_weights + key)), sums[s])
    comptime for i in range(n_queries):
        comptime for j in range(n_vectors):
            context.unsafe_store(i * stride + j * width, sums[i * n_vectors + j])


@always_inline
def attend[
    n_queries: Int
](context: Floats, q: Floats, stride: Int, k: Floats, v: Floats, n_kv: Int, head_dim: Int, weights: Floats):
    """Put softmax(q @ k.T / sqrt(head_dim)) @ v into context, for n_queries rows of q that see the same n_kv keys.

    weights: room for [n_queries, n_kv].
    """
    scores[n_queries](weights, q, stride, k, n_kv, head_dim)
    var sums = Array[Float32, n_queries](fill=0)
    comptime for i in range(n_queries):
        sums[i] = exponentials(weights.unsafe_offset(i * n_kv), n_kv, head_dim)
    var d = 0
    while d + VECTORS * WIDTH <= head_dim:
        add_up[n_queries, VECTORS, WIDTH](context.unsafe_offset(d), stride, weights, n_kv, v.unsafe_offset(d), head_dim, n_kv)
        d += VECTORS * WIDTH
    while d < head_dim:
        add_up[n_queries, 1, 1](context.unsafe_offset(d), stride, weights, n_kv, v.unsafe_offset(d), head_dim, n_kv)
        d += 1
    comptime for i in range(n_queries):
        divide(context.unsafe_offset(i * stride), head_dim, sums[i])


@always_inline
def divide(x: Floats, n: Int, divisor: Float32):
    """Divide x [n]."""
    for i in range(n):
        x.unsafe_store(i, x.unsafe_load(i) / divisor)


def copy(target: Floats, source: Floats, n: Int):
    """Copy n numbers."""
    for i in range(n):
        target.unsafe_store(i, source.unsafe_load(i))


@register("maxwhisper.cached_attention")
struct CachedAttention:
    """Write the keys and values of n tokens behind those of the tokens before them; each token then sees all up to itself."""

    @staticmethod
    def execute(
        context: OutputTensor[dtype=DType.float32, rank=3, ...],  # [n_seq, n, n_state], as q, k and v
        q: InputTensor[dtype=DType.float32, rank=3, ...],
        k: InputTensor[dtype=DType.float32, rank=3, ...],
        v: InputTensor[dtype=DType.float32, rank=3, ...],
        k_cache: MutableInputTensor[dtype=DType.float32, rank=5, ...],  # [n_audio, n_group, n_head, n_ctx, head_dim]
        v_cache: MutableInputTensor[dtype=DType.float32, rank=5, ...],
        positions: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n = q.dim_size(1)
        var n_state = q.dim_size(2)
        var n_head = k_cache.dim_size(2)
        var n_ctx = k_cache.dim_size(3)
        var head_dim = k_cache.dim_size(4)
        var n_past = Int(positions.unsafe_ptr().unsafe_load(0))
        var n_heads = k_cache.dim_size(0) * k_cache.dim_size(1) * n_head  # of all sequences
        var n_tasks = n_workers(n_heads * n * (n_past + n) * head_dim * 2, n_heads)
        var contexts = context.unsafe_ptr()
        var queries = q.unsafe_ptr()
        var new_keys = k.unsafe_ptr()
        var new_values = v.unsafe_ptr()
        var all_keys = k_cache.unsafe_ptr()
        var all_values = v_cache.unsafe_ptr()

        def heads(task: Int) {
            imm contexts, imm queries, imm new_keys, imm new_values, imm all_keys, imm all_values,
            imm n, imm n_state, imm n_head, imm n_ctx, imm head_dim, imm n_past, imm n_heads, imm n_tasks
        }:
            var scratch = List[Float32](length=n_past + n, fill=0)
            var weights = rebind[Floats](scratch.unsafe_ptr())
            for head in range(task * n_heads // n_tasks, (task + 1) * n_heads // n_tasks):
                var sequence, h = divmod(head, n_head)
                var keys = all_keys.unsafe_offset(head * n_ctx * head_dim)
                var values = all_values.unsafe_offset(head * n_ctx * head_dim)
                for i in range(n):
                    var at = (sequence * n + i) * n_state + h * head_dim
                    var position = n_past + i
                    copy(keys.unsafe_offset(position * head_dim), new_keys.unsafe_offset(at), head_dim)
                    copy(values.unsafe_offset(position * head_dim), new_values.unsafe_offset(at), head_dim)
                    attend[1](
                        contexts.unsafe_offset(at), queries.unsafe_offset(at), n_state, keys, values, position + 1, head_dim, weights
                    )

        sync_parallelize(heads, n_tasks)


@register("maxwhisper.cross_attention")
struct CrossAttention:
    """Each of n queries sees all n_kv keys of its audio."""

    @staticmethod
    def execute(
        context: OutputTensor[dtype=DType.float32, rank=3, ...],  # [n_audio, n, n_state], as q
        q: InputTensor[dtype=DType.float32, rank=3, ...],
        k: InputTensor[dtype=DType.float32, rank=4, ...],  # [n_audio, n_head, n_kv, head_dim]
        v: InputTensor[dtype=DType.float32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var n = q.dim_size(1)
        var n_state = q.dim_size(2)
        var n_head = k.dim_size(1)
        var n_kv = k.dim_size(2)
        var head_dim = k.dim_size(3)
        var n_heads = k.dim_size(0) * n_head  # of all audios
        var n_tasks = n_workers(n_heads * n * n_kv * head_dim * 2, n_heads)
        var contexts = context.unsafe_ptr()
        var queries = q.unsafe_ptr()
        var all_keys = k.unsafe_ptr()
        var all_values = v.unsafe_ptr()

        def heads(task: Int) {
            imm contexts, imm queries, imm all_keys, imm all_values, imm n, imm n_state, imm n_head, imm n_kv, imm head_dim,
            imm n_heads, imm n_tasks
        }:
            var scratch = List[Float32](length=QUERIES * n_kv, fill=0)
            var weights = rebind[Floats](scratch.unsafe_ptr())
            for head in range(task * n_heads // n_tasks, (task + 1) * n_heads // n_tasks):
                var audio, h = divmod(head, n_head)
                var keys = all_keys.unsafe_offset(head * n_kv * head_dim)
                var values = all_values.unsafe_offset(head * n_kv * head_dim)
                var at = audio * n * n_state + h * head_dim
                var i = 0
                while i + QUERIES <= n:
                    attend[QUERIES](contexts.unsafe_offset(at), queries.unsafe_offset(at), n_state, keys, values, n_kv, head_dim, weights)
                    at += QUERIES * n_state
                    i += QUERIES
                while i < n:
                    attend[1](contexts.unsafe_offset(at), queries.unsafe_offset(at), n_state, keys, values, n_kv, head_dim, weights)
                    at += n_state
                    i += 1

        sync_parallelize(heads, n_tasks)
