"""Attention without a mask on quantized inputs, with exact integer sums.

Queries and keys are quantized to 8 bits per row, values to 8 bits per column, and the exponentials
of the softmax to 16 bits.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, exp, round, sqrt
from std.runtime import parallelism_level

from .linear_int8 import FOUR, Bytes, Sums, Words, add_products, multiply_tile, pack, quantize
from .tile import PANEL, ROWS, VECTORS, WIDTH, Floats

comptime HALF = ROWS // 2  # number of rows whose sums, two per output, stay in registers
comptime LARGEST_WEIGHT = Float32(65535)  # the largest 16-bit number
comptime Digits = Pointer[UInt8, MutAnyOrigin]  # high or low bytes of weights


@always_inline
def weigh(high: Digits, low: Digits, x: Floats, n: Int) -> Float32:
    """Quantize exp(x - max) to 16 bits, and return the sum of the quantized numbers.

    The high and low bytes are written to high and low [n]. 65535 represents 1.
    """
    var whole = n // WIDTH * WIDTH
    var all_largest = SIMD[DType.float32, WIDTH](Float32.MIN)
    for i in range(0, whole, WIDTH):
        all_largest = max(all_largest, x.unsafe_load[width=WIDTH](i))
    var largest = all_largest.reduce_max()
    for i in range(whole, n):
        largest = max(largest, x.unsafe_load(i))
    var sums = Sums(0)
    for i in range(0, whole, WIDTH):
        var weight = round(exp(x.unsafe_load[width=WIDTH](i) - largest) * LARGEST_WEIGHT).cast[DType.int32]()
        sums += weight
        high.unsafe_store(i, (weight >> 8).cast[DType.uint8]())
        low.unsafe_store(i, (weight & 255).cast[DType.uint8]())
    var sum = sums.reduce_add()
    for i in range(whole, n):
        var weight = round(exp(x.unsafe_load(i) - largest) * LARGEST_WEIGHT).cast[DType.int32]()
        sum += weight
        high.unsafe_store(i, (weight >> 8).cast[DType.uint8]())
        low.unsafe_store(i, (weight & 255).cast[DType.uint8]())
    return sum.cast[DType.float32]()


@always_inline
def average[
    n_rows: Int
](
    context: Floats,
    stride: Int,
    n_columns: Int,
    high: Words,
    low: Words,
    n_weights: Int,
    panel: Words,
    scale: Floats,
    sums: Floats,
    depth: Int,
):
    """Write weights [n_rows, n_keys] @ panel [n_keys, PANEL] * scale / sums to context.

    Only the first n_columns columns are written.
    """
    var highs = Array[Sums, n_rows * VECTORS](fill=0)
    var lows = Array[Sums, n_rows * VECTORS](fill=0)
    for k in range(depth):
        var row = Array[Sums, VECTORS](fill=0)
        comptime for j in range(VECTORS):
            row[j] = panel.unsafe_load[width=WIDTH](k * PANEL + j * WIDTH)
        comptime for i in range(n_rows):
            var high_four = Sums(high.unsafe_load(i * n_weights + k))
            var low_four = Sums(low.unsafe_load(i * n_weights + k))
            comptime for j in range(VECTORS):
                comptime s = i * VECTORS + j
                highs[s] = add_products(highs[s], high_four, row[j])
                lows[s] = add_products(lows[s], low_four, row[j])
    comptime for i in range(n_rows):
        var share = 1 / sums.unsafe_load(i)
        comptime for j in range(VECTORS):
            comptime s = i * VECTORS + j
            var sum = highs[s].cast[DType.float32]().fma(256, lows[s].cast[DType.float32]())
            if n_columns >= (j + 1) * WIDTH:
                context.unsafe_store(i * stride + j * WIDTH, sum * (scale.unsafe_load[width=WIDTH](j * WIDTH) * share))
            else:
                for d in range(j * WIDTH, n_columns):
                    context.unsafe_store(i * stride + d, sum[d - j * WIDTH] * (scale.unsafe_load(d) * share))


def pack_values(panels: Words, scale: Floats, v: Floats, stride: Int, n_kv: Int, head_dim: Int):
    """Quantize each column of v [n_kv, head_dim], and pack four keys into one word.

    The rows of v are `stride` elements apart. panels [ceil(head_dim / PANEL), ceil(n_kv / FOUR),
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
    var depth = ceildiv(n_kv, FOUR)
    var p, column = divmod(d, PANEL)
    var panel = panels.unsafe_offset(p * depth * PANEL + column)
    for k in range(depth):
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
        var contexts = rebind[Floats](context.unsafe_ptr())
        var queries = rebind[Floats](q.unsafe_ptr())
        var all_keys = rebind[Floats](k.unsafe_ptr())
        var all_values = rebind[Floats](v.unsafe_ptr())

        def work(task: Int) {
            imm contexts, imm queries, imm all_keys, imm all_values, imm n, imm n_head, imm head_dim, imm n_kv, imm n_state, imm n_shares,
            imm share
        }:
            var head, part = divmod(task, n_shares)
            var sequence, h = divmod(head, n_head)
            var depth = ceildiv(head_dim, FOUR)  # number of words in a row of queries or keys
            var depth_kv = ceildiv(n_kv, FOUR)  # number of words in a row of weights or a column of values
            var n_panels = ceildiv(n_kv, PANEL)
            var n_columns = ceildiv(head_dim, PANEL) * PANEL
            var words_memory = List[Int32](length=n_panels * PANEL * depth + (PANEL + ROWS) * depth + n_columns * depth_kv + 2 * ROWS * depth_kv, fill=0)
            var keys = rebind[Words](words_memory.unsafe_ptr())
            var quantized_keys = keys.unsafe_offset(n_panels * PANEL * depth)
            var quantized_queries = quantized_keys.unsafe_offset(PANEL * depth)
            var values = quantized_queries.unsafe_offset(ROWS * depth)
            var high = values.unsafe_offset(n_columns * depth_kv)
            var low = high.unsafe_offset(ROWS * depth_kv)
            var memory = List[Float32](length=n_panels * PANEL * (ROWS + 2) + n_columns + 3 * ROWS, fill=0)
            var scores = rebind[Floats](memory.unsafe_ptr())
            var key_scales = scores.unsafe_offset(n_panels * PANEL * ROWS)
            var zeros = key_scales.unsafe_offset(n_panels * PANEL)
            var value_scales = zeros.unsafe_offset(n_panels * PANEL)
            var query_scales = value_scales.unsafe_offset(n_columns)
            var sums = query_scales.unsafe_offset(ROWS)
            var query_sums = rebind[Words](sums.unsafe_offset(ROWS).bitcast[Int32]())

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
                pack(keys.unsafe_offset(p * PANEL * depth), bytes, n_panel_keys, head_dim, depth)
            pack_values(
                values, value_scales, all_values.unsafe_offset(first_key), n_state, n_kv, head_dim
            )

            var factor = 1 / sqrt(Float32(head_dim))
            var end = min((part + 1) * share, n)
            for first in range(part * share, end, ROWS):
                var n_rows = min(ROWS, end - first)
                var at = (sequence * n + first) * n_state + h * head_dim
                for i in range(n_rows):
                    var bytes = rebind[Bytes](quantized_queries.unsafe_offset(i * depth).bitcast[Int8]())
                    var scale_and_sum = quantize(bytes, queries.unsafe_offset(at + i * n_state), head_dim)
                    query_scales.unsafe_store(i, scale_and_sum[0] * factor)
                    query_sums.unsafe_store(i, scale_and_sum[1])
                for p in range(n_panels):
                    var key = p * PANEL
                    multiply_tile[ROWS](
                        scores.unsafe_offset(key), n_panels * PANEL, PANEL, quantized_queries, query_scales, query_sums,
                        keys.unsafe_offset(key * depth), key_scales.unsafe_offset(key), zeros, depth,
                    )
                for i in range(n_rows):
                    var sum = weigh(
                        rebind[Digits](high.unsafe_offset(i * depth_kv).bitcast[UInt8]()),
                        rebind[Digits](low.unsafe_offset(i * depth_kv).bitcast[UInt8]()),
                        scores.unsafe_offset(i * n_panels * PANEL),
                        n_kv,
                    )
                    sums.unsafe_store(i, sum)
                for p in range(n_columns // PANEL):
                    var n_panel_columns = min(PANEL, head_dim - p * PANEL)
                    var panel = values.unsafe_offset(p * PANEL * depth_kv)
                    var i = 0
                    while i + HALF <= n_rows:
                        average[HALF](
                            contexts.unsafe_offset(at + i * n_state + p * PANEL), n_state, n_panel_columns, high.unsafe_offset(i * depth_kv),
                            low.unsafe_offset(i * depth_kv), depth_kv, panel, value_scales.unsafe_offset(p * PANEL), sums.unsafe_offset(i), depth_kv,
                        )
                        i += HALF
                    while i < n_rows:
                        average[1](
                            contexts.unsafe_offset(at + i * n_state + p * PANEL), n_state, n_panel_columns, high.unsafe_offset(i * depth_kv),
                            low.unsafe_offset(i * depth_kv), depth_kv, panel, value_scales.unsafe_offset(p * PANEL), sums.unsafe_offset(i), depth_kv,
                        )
                        i += 1
            _ = words_memory^
            _ = memory^

        sync_parallelize(work, n_heads * n_shares)
