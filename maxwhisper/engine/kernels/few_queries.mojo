"""Attention of few queries: keys and values are read once, where they lie and as they are stored, and shared by a few queries."""

from std.math import exp, sqrt

from .tile import WIDTH, Floats

comptime QUERIES = 4  # that share what is read
comptime VECTORS = 4  # of a value's columns that are averaged together
comptime Numbers[dtype: DType] = Pointer[Scalar[dtype], MutAnyOrigin]


@always_inline
def scores[n_queries: Int, dtype: DType](result: Floats, q: Floats, stride: Int, k: Numbers[dtype], n_kv: Int, head_dim: Int):
    """Put q @ k.T into result [n_queries, n_kv]: queries lie `stride` apart, k is [n_kv, head_dim]."""
    var whole = head_dim // WIDTH * WIDTH
    for key in range(n_kv):
        var row = k.unsafe_offset(key * head_dim)
        var sums = Array[SIMD[DType.float32, WIDTH], n_queries](fill=0)
        for d in range(0, whole, WIDTH):
            var part = row.unsafe_load[width=WIDTH](d).cast[DType.float32]()
            comptime for i in range(n_queries):
                sums[i] = q.unsafe_load[width=WIDTH](i * stride + d).fma(part, sums[i])
        comptime for i in range(n_queries):
            var score = sums[i].reduce_add()
            for d in range(whole, head_dim):
                score += q.unsafe_load(i * stride + d) * row.unsafe_load(d).cast[DType.float32]()
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
    n_queries: Int, n_vectors: Int, width: Int, dtype: DType, more: Bool = False
](context: Floats, stride: Int, weights: Floats, n_weights: Int, v: Numbers[dtype], v_stride: Int, n_kv: Int):
    """Put weights [n_queries, n_kv] @ v, of n_vectors * width columns of v [n_kv, ...], into context, or, more, add it to what is there.

    Rows are n_weights, v_stride, stride apart.
    """
    var sums = Array[SIMD[DType.float32, width], n_queries * n_vectors](fill=0)
    comptime if more:
        comptime for i in range(n_queries):
            comptime for j in range(n_vectors):
                sums[i * n_vectors + j] = context.unsafe_load[width=width](i * stride + j * width)
    for key in range(n_kv):
        var row = v.unsafe_offset(key * v_stride)
        comptime for j in range(n_vectors):
            var part = row.unsafe_load[width=width](j * width).cast[DType.float32]()
            comptime for i in range(n_queries):
                comptime s = i * n_vectors + j
                sums[s] = part.fma(SIMD[DType.float32, width](weights.unsafe_load(i * n_weights + key)), sums[s])
    comptime for i in range(n_queries):
        comptime for j in range(n_vectors):
            context.unsafe_store(i * stride + j * width, sums[i * n_vectors + j])


@always_inline
def add_up_all[
    n_queries: Int, dtype: DType, more: Bool = False
](context: Floats, stride: Int, weights: Floats, v: Numbers[dtype], n_kv: Int, head_dim: Int):
    """`add_up` of all columns of v [n_kv, head_dim]."""
    var d = 0
    while d + VECTORS * WIDTH <= head_dim:
        add_up[n_queries, VECTORS, WIDTH, more=more](context.unsafe_offset(d), stride, weights, n_kv, v.unsafe_offset(d), head_dim, n_kv)
        d += VECTORS * WIDTH
    while d < head_dim:
        add_up[n_queries, 1, 1, more=more](context.unsafe_offset(d), stride, weights, n_kv, v.unsafe_offset(d), head_dim, n_kv)
        d += 1


@always_inline
def attend[
    n_queries: Int, dtype: DType
](context: Floats, q: Floats, stride: Int, k: Numbers[dtype], v: Numbers[dtype], n_kv: Int, head_dim: Int, weights: Floats):
    """Put softmax(q @ k.T / sqrt(head_dim)) @ v into context, for n_queries rows of q that see the same n_kv keys.

    weights: room for [n_queries, n_kv].
    """
    scores[n_queries](weights, q, stride, k, n_kv, head_dim)
    var sums = Array[Float32, n_queries](fill=0)
    comptime for i in range(n_queries):
        sums[i] = exponentials(weights.unsafe_offset(i * n_kv), n_kv, head_dim)
    add_up_all[n_queries](context, stride, weights, v, n_kv, head_dim)
    comptime for i in range(n_queries):
        divide(context.unsafe_offset(i * stride), head_dim, sums[i])


@always_inline
def same_page(page_table: Pointer[Int64, MutAnyOrigin], start: Int, end: Int) -> Int:
    """Up to where keys lie in the page that the one at `start` lies in, before `end`."""
    var here = page_table.unsafe_load(start)
    var at = start + 1
    while at < end and page_table.unsafe_load(at) == here:
        at += 1
    return at


@always_inline
def attend_to_pages(
    context: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    page_table: Pointer[Int64, MutAnyOrigin],
    page_size: Int,
    n_kv: Int,
    head_dim: Int,
    weights: Floats,
):
    """`attend` of one query to keys and values of which each lies in a page of its own: page_table [n_kv] says in which, and they are page_size
    apart. Neighbours mostly lie in one.
    """
    var start = 0
    while start < n_kv:
        var end = same_page(page_table, start, n_kv)
        var here = Int(page_table.unsafe_load(start)) * page_size + start * head_dim
        scores[1](weights.unsafe_offset(start), q, 0, k.unsafe_offset(here), end - start, head_dim)
        start = end
    var sum = exponentials(weights, n_kv, head_dim)
    for d in range(head_dim):
        context.unsafe_store(d, 0)
    start = 0
    while start < n_kv:
        var end = same_page(page_table, start, n_kv)
        var here = Int(page_table.unsafe_load(start)) * page_size + start * head_dim
        add_up_all[1, more=True](context, 0, weights.unsafe_offset(start), v.unsafe_offset(here), end - start, head_dim)
        start = end
    divide(context, head_dim, sum)


@always_inline
def divide(x: Floats, n: Int, divisor: Float32):
    """Divide x [n]."""
    for i in range(n):
        x.unsafe_store(i, x.unsafe_load(i) / divisor)


def copy(target: Floats, source: Floats, n: Int):
    """Copy n numbers."""
    for i in range(n):
        target.unsafe_store(i, source.unsafe_load(i))
