"""Attention without a mask on quantized inputs, with exact integer sums.

Queries and keys are quantized to 8 bits per row, values to 8 bits per column, and the exponentials
of the softmax to 16 bits.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp, round, sqrt
from std.runtime import parallelism_level

from . import amx
from .attention import QUERIES
from .tile import PANEL, ROWS, WIDTH, Floats, largest_of
from .tile_int8 import FOUR, OFFSET, Bytes, Sums, Words, multiply, n_words, pack, quantize

comptime LARGEST_WEIGHT = Float32(65535)  # the largest 16-bit number
comptime Digits = Pointer[UInt8, MutAnyOrigin]  # high or low bytes of weights


@always_inline
def weigh(high: Digits, low: Digits, products: Words, scales: Floats, offset: Int32, factor: Float32, n: Int) -> Float32:
    """Quantize the exponentials of n scores to 16 bits, and return the sum of the quantized numbers.

    A score is (product - offset) * scale * factor. The highest one becomes 65535. The high and low
    bytes are written to high and low [n]. The products are overwritten.
    """
    var scores = rebind[Floats](products.bitcast[Float32]())
    var whole = n // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        var exact = (products.unsafe_load[width=WIDTH](i) - offset).cast[DType.float32]()
        scores.unsafe_store(i, exact * scales.unsafe_load[width=WIDTH](i))
    for i in range(whole, n):
        scores.unsafe_store(i, (products.unsafe_load(i) - offset).cast[DType.float32]() * scales.unsafe_load(i))
    var largest = largest_of(scores, n)
    var sums = Sums(0)
    for i in range(0, whole, WIDTH):
        var exponential = exp((scores.unsafe_load[width=WIDTH](i) - largest) * factor)
        var weight = round(exponential * LARGEST_WEIGHT).cast[DType.int32]()
        sums += weight
        high.unsafe_store(i, (weight >> 8).cast[DType.uint8]())
        low.unsafe_store(i, weight.cast[DType.uint8]())
    var sum = sums.reduce_add()
    for i in range(whole, n):
        var weight = round(exp((scores.unsafe_load(i) - largest) * factor) * LARGEST_WEIGHT).cast[DType.int32]()
        sum += weight
        high.unsafe_store(i, (weight >> 8).cast[DType.uint8]())
        low.unsafe_store(i, weight.cast[DType.uint8]())
    return sum.cast[DType.float32]()


def average(context: Floats, stride: Int, high: Words, low: Words, scale: Floats, sums: Floats, n: Int, n_columns: Int):
    """Write the weighted averages of quantized values to context, from products [n, PANEL].

    They are the products with the weights' high and low bytes. Only the first n_columns columns are
    written.
    """
    for i in range(n):
        var share = 1 / sums.unsafe_load(i)
        var whole = n_columns // WIDTH * WIDTH
        for d in range(0, whole, WIDTH):
            var highs = high.unsafe_load[width=WIDTH](i * PANEL + d).cast[DType.float32]()
            var sum = highs.fma(256, low.unsafe_load[width=WIDTH](i * PANEL + d).cast[DType.float32]())
            context.unsafe_store(i * stride + d, sum * (scale.unsafe_load[width=WIDTH](d) * share))
        for d in range(whole, n_columns):
            var highs = high.unsafe_load(i * PANEL + d).cast[DType.float32]()
            var sum = highs.fma(256, low.unsafe_load(i * PANEL + d).cast[DType.float32]())
            context.unsafe_store(i * stride + d, sum * (scale.unsafe_load(d) * share))


def pack_values(panels: Words, scale: Floats, v: Floats, stride: Int, n_kv: Int, head_dim: Int):
    """Quantize each column of v [n_kv, head_dim], and pack four keys into one word.

    The rows of v are `stride` elements apart. panels [ceil(head_dim / PANEL), n_words(n_kv),
    PANEL] must be zero before.
    """
    var whole = head_dim // WIDTH * WIDTH
    for d in range(0, whole, WIDTH):
        pack_columns[WIDTH](panels, scale, v, stride, n_kv, d)
    for d in range(whole, head_dim):
        pack_columns[1](panels, scale, v, stride, n_kv, d)


@always_inline
def pack_columns[width: Int](panels: Words, scale: Floats, v: Floats, stride: Int, n_kv: Int, d: Int):
    """Quantize and pack `width` columns, from column d on."""
    comptime Column = SIMD[DType.float32, width]
    var largest = Column(0)
    for key in range(n_kv):
        largest = max(largest, abs(v.unsafe_load[width=width](key * stride + d)))
    var column_scale = largest.gt(0).select(largest, Column(127)) / 127
    scale.unsafe_store(d, column_scale)
    var p, column = divmod(d, PANEL)
    var panel = panels.unsafe_offset(p * n_words(n_kv) * PANEL + column)
    for k in range(ceildiv(n_kv, FOUR)):
        var words = SIMD[DType.int32, width](0)
        for i in range(min(FOUR, n_kv - k * FOUR)):
            var rounded = round(v.unsafe_load[width=width]((k * FOUR + i) * stride + d) / column_scale).cast[DType.int32]()
            words |= (rounded & 255) << Int32(8 * i)
        panel.unsafe_store(k * PANEL, words)


@register("maxwhisper.attention_int8")
struct AttentionInt8:
    """Attention of quantized inputs in which each query attends to all keys."""

    @staticmethod
    def execute(
        context: OutputTensor[dtype=DType.float32, rank=4, ...],  # [batch, n, n_head, head_dim], as q
        q: InputTensor[dtype=DType.float32, rank=4, ...],
        k: InputTensor[dtype=DType.float32, rank=4, ...],  # [batch, n_kv, n_head, head_dim], as v
        v: InputTensor[dtype=DType.float32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var n = q.dim_size(1)
        var n_head = q.dim_size(2)
        var head_dim = q.dim_size(3)
        var n_kv = k.dim_size(1)
        var n_state = n_head * head_dim
        var n_heads = q.dim_size(0) * n_head  # number of heads of all sequences
        var n_shares = ceildiv(2 * parallelism_level(), n_heads)  # number of parts of a head's queries
        var share = ceildiv(ceildiv(n, n_shares), ROWS) * ROWS
        var has_amx = amx.is_available()
        var contexts = rebind[Floats](context.unsafe_ptr())
        var queries = rebind[Floats](q.unsafe_ptr())
        var all_keys = rebind[Floats](k.unsafe_ptr())
        var all_values = rebind[Floats](v.unsafe_ptr())

        def work(task: Int) {
            imm contexts, imm queries, imm all_keys, imm all_values, imm n, imm n_head, imm head_dim, imm n_kv, imm n_state, imm n_shares,
            imm share, imm has_amx
        }:
            var head, part = divmod(task, n_shares)
            var sequence, h = divmod(head, n_head)
            var depth = n_words(head_dim)  # number of words in a row of queries or keys
            var depth_kv = n_words(n_kv)  # number of words in a row of weights or a column of values
            var n_panels = ceildiv(n_kv, PANEL)
            var n_columns = ceildiv(head_dim, PANEL) * PANEL
            var words_stride = depth_kv + WIDTH  # no power of two, which would put all rows into the same cache sets
            var n_products = n_panels * PANEL + WIDTH
            var words_memory = List[Int32](
                length=n_panels * PANEL * depth
                + n_columns * depth_kv
                + QUERIES * (n_products + 2 * words_stride + 2 * PANEL + depth + 1)
                + PANEL * depth,
                fill=0,
            )
            var keys = rebind[Words](words_memory.unsafe_ptr())
            var values = keys.unsafe_offset(n_panels * PANEL * depth)
            var products = values.unsafe_offset(n_columns * depth_kv)
            var high = products.unsafe_offset(QUERIES * n_products)
            var low = high.unsafe_offset(QUERIES * words_stride)
            var highs = low.unsafe_offset(QUERIES * words_stride)
            var lows = highs.unsafe_offset(QUERIES * PANEL)  # computed together, so that values are read once
            var quantized_queries = lows.unsafe_offset(QUERIES * PANEL)
            var query_offsets = quantized_queries.unsafe_offset(QUERIES * depth)
            var quantized_keys = query_offsets.unsafe_offset(QUERIES)
            var memory = List[Float32](length=n_panels * PANEL + n_columns + 2 * QUERIES, fill=0)
            var key_scales = rebind[Floats](memory.unsafe_ptr())
            var value_scales = key_scales.unsafe_offset(n_panels * PANEL)
            var query_factors = value_scales.unsafe_offset(n_columns)
            var sums = query_factors.unsafe_offset(QUERIES)

            var first_key = sequence * n_kv * n_state + h * head_dim
            for p in range(n_panels):
                var n_panel_keys = min(PANEL, n_kv - p * PANEL)
                var bytes = rebind[Bytes](quantized_keys.bitcast[Int8]())
                for i in range(n_panel_keys):
                    var key = p * PANEL + i
                    var scale_and_sum = quantize(
                        bytes.unsafe_offset(i * head_dim), all_keys.unsafe_offset(first_key + key * n_state), head_dim
                    )
                    key_scales.unsafe_store(key, scale_and_sum[0])
                pack(keys.unsafe_offset(p * PANEL * depth), bytes, n_panel_keys, head_dim)
            pack_values(values, value_scales, all_values.unsafe_offset(first_key), n_state, n_kv, head_dim)

            var factor = 1 / sqrt(Float32(head_dim))
            var end = min((part + 1) * share, n)
            for first in range(part * share, end, QUERIES):
                var n_rows = min(QUERIES, end - first)
                var at = (sequence * n + first) * n_state + h * head_dim
                for i in range(n_rows):
                    var bytes = rebind[Bytes](quantized_queries.unsafe_offset(i * depth).bitcast[Int8]())
                    var scale_and_sum = quantize(bytes, queries.unsafe_offset(at + i * n_state), head_dim)
                    query_factors.unsafe_store(i, scale_and_sum[0] * factor)
                    query_offsets.unsafe_store(i, Int32(OFFSET) * scale_and_sum[1])
                for key in range(0, n_kv, PANEL):
                    var panel = keys.unsafe_offset(key * depth)
                    multiply[False](
                        products.unsafe_offset(key), n_products, quantized_queries, depth, panel, panel.unsafe_offset(PANEL * depth), n_rows, depth, has_amx
                    )
                for i in range(n_rows):
                    var sum = weigh(
                        rebind[Digits](high.unsafe_offset(i * words_stride).bitcast[UInt8]()),
                        rebind[Digits](low.unsafe_offset(i * words_stride).bitcast[UInt8]()),
                        products.unsafe_offset(i * n_products),
                        key_scales,
                        query_offsets.unsafe_load(i),
                        query_factors.unsafe_load(i),
                        n_kv,
                    )
                    sums.unsafe_store(i, sum)
                for d in range(0, head_dim, PANEL):
                    var panel = values.unsafe_offset(d * depth_kv)
                    multiply[True](highs, PANEL, high, words_stride, panel, panel, QUERIES + n_rows, depth_kv, has_amx)
                    average(
                        contexts.unsafe_offset(at + d), n_state, highs, lows, value_scales.unsafe_offset(d), sums, n_rows,
                        min(PANEL, head_dim - d),
                    )
            _ = words_memory^
            _ = memory^

        sync_parallelize(work, n_heads * n_shares)
