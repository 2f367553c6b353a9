"""Attention of few queries: each key and value is read once, in place and in its own dtype."""

from std.math import exp, sqrt

from .tile import WIDTH, Floats, largest_of

comptime QUERIES = 4  # number of queries that share one read of the keys and values
comptime VECTORS = 4  # number of vectors of a value's columns that are averaged together
comptime Numbers[dtype: DType] = Pointer[Scalar[dtype], MutAnyOrigin]


@always_inline
def scores[n_queries: Int, dtype: DType](result: Floats, q: Floats, stride: Int, k: Numbers[dtype], n_kv: Int, head_dim: Int):
    """Write q @ k.T to result [n_queries, n_kv], for k [n_kv, head_dim].

    The rows of q are `stride` elements apart.
    """
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
    """Replace scores x [n] by exp((x - max) / sqrt(head_dim)), and return their sum."""
    var scale = 1 / sqrt(Float32(head_dim))
    var whole = n // WIDTH * WIDTH
    var largest = largest_of(x, n)
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
    """Write weights [n_queries, n_kv] @ v to context, or if `more` add it to context.

    v is [n_kv, n_vectors * width]. Rows of weights, v and context are n_weights, v_stride and stride
    elements apart.
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
    """Do `add_up` for all columns of v [n_kv, head_dim]."""
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
    """Write softmax(q @ k.T / sqrt(head_dim)) @ v to context, for n_queries rows of q.

    They attend to the same n_kv keys. weights is memory for [n_queries, n_kv].
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
    """Return the end of the run of positions from start on, at most end, that are in one page."""
    var page = page_table.unsafe_load(start)
    var at = start + 1
    while at < end and page_table.unsafe_load(at) == page:
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
    """Do `attend` for one query whose keys and values are in pages.

    page_table [n_kv] has the page of each position; pages are page_size elements apart. Consecutive
    positions are usually in the same page, and are processed together.
    """
    var start = 0
    while start < n_kv:
        var end = same_page(page_table, start, n_kv)
        var offset = Int(page_table.unsafe_load(start)) * page_size + start * head_dim
        scores[1](weights.unsafe_offset(start), q, 0, k.unsafe_offset(offset), end - start, head_dim)
        start = end
    var sum = exponentials(weights, n_kv, head_dim)
    for d in range(head_dim):
        context.unsafe_store(d, 0)
    start = 0
    while start < n_kv:
        var end = same_page(page_table, start, n_kv)
        var offset = Int(page_table.unsafe_load(start)) * page_size + start * head_dim
        add_up_all[1, more=True](context, 0, weights.unsafe_offset(start), v.unsafe_offset(offset), end - start, head_dim)
        start = end
    divide(context, head_dim, sum)


@always_inline
def divide(x: Floats, n: Int, divisor: Float32):
    """Divide x [n] by a number."""
    for i in range(n):
        x.unsafe_store(i, x.unsafe_load(i) / divisor)


def copy(target: Floats, source: Floats, n: Int):
    """Copy n elements."""
    for i in range(n):
        target.unsafe_store(i, source.unsafe_load(i))
