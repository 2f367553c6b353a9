"""Products of many rows with an int8 weight matrix.

Rows are also quantized to int8, each with its own scale. Sums are exact.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, round
from std.memory import bitcast
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

from .linear import BLOCK
from .tile import PANEL, ROWS, TOGETHER, VECTORS, WIDTH, Floats

comptime FOUR = 4  # products that one instruction adds
comptime LARGEST = Float32(127)  # the largest quantized value
comptime OFFSET = 128  # added to weights, because the processor multiplies unsigned with signed numbers
comptime Words = Pointer[Int32, MutAnyOrigin]  # four 8-bit numbers in each
comptime Bytes = Pointer[Int8, MutAnyOrigin]
comptime Sums = SIMD[DType.int32, WIDTH]


@always_inline
def add_products(sums: Sums, weights: Sums, x: Sums) -> Sums:
    """Add the products of four unsigned 8-bit numbers with four signed ones to each sum."""
    comptime if CompilationTarget.has_vnni() and WIDTH == 16:
        var bytes = bitcast[DType.uint8, FOUR * WIDTH](weights)
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", Sums](sums, bytes, bitcast[DType.int8, FOUR * WIDTH](x))
    else:
        var all = sums
        comptime for i in range(FOUR):
            all += ((weights >> Int32(8 * i)) & 255) * ((x << Int32(24 - 8 * i)) >> 24)
        return all


@always_inline
def multiply_tile[
    n_rows: Int
](
    y: Floats, n_out: Int, n_outputs: Int, x: Words, x_scales: Floats, x_sums: Words, panel: Words, scale: Floats, bias: Floats, depth: Int
):
    """Write the dequantized x [n_rows, depth] @ panel [depth, PANEL], plus the bias, to y.

    Only the first n_outputs outputs are written.
    """
    var sums = Array[Sums, n_rows * VECTORS](fill=0)
    for k in range(depth):
        var row = Array[Sums, VECTORS](fill=0)
        comptime for j in range(VECTORS):
            row[j] = panel.unsafe_load[width=WIDTH](k * PANEL + j * WIDTH)
        comptime for i in range(n_rows):
            var four = Sums(x.unsafe_load(i * depth + k))
            comptime for j in range(VECTORS):
                comptime s = i * VECTORS + j
                sums[s] = add_products(sums[s], row[j], four)
    comptime for i in range(n_rows):
        var offset = Int32(OFFSET) * x_sums.unsafe_load(i)
        var factor = x_scales.unsafe_load(i)
        comptime for j in range(VECTORS):
            var exact = (sums[i * VECTORS + j] - offset).cast[DType.float32]()
            var at = i * n_out + j * WIDTH
            if n_outputs >= (j + 1) * WIDTH:
                var wide = exact * (scale.unsafe_load[width=WIDTH](j * WIDTH) * factor)
                y.unsafe_store(at, wide + bias.unsafe_load[width=WIDTH](j * WIDTH))
            else:
                for o in range(j * WIDTH, n_outputs):
                    var one = exact[o - j * WIDTH] * (scale.unsafe_load(o) * factor)
                    y.unsafe_store(i * n_out + o, one + bias.unsafe_load(o))


def quantize(q: Bytes, x: Floats, n: Int) -> Tuple[Float32, Int32]:
    """Quantize a row of n elements to q, with scale max|x| / 127.

    Returns the scale, and the sum of the quantized elements.
    """
    var all_largest = SIMD[DType.float32, WIDTH](0)
    var whole = n // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        all_largest = max(all_largest, abs(x.unsafe_load[width=WIDTH](i)))
    var largest = all_largest.reduce_max()
    for i in range(whole, n):
        largest = max(largest, abs(x.unsafe_load(i)))
    if largest == 0:
        largest = LARGEST
    var factor = LARGEST / largest
    var sums = Sums(0)
    for i in range(0, whole, WIDTH):
        var rounded = round(x.unsafe_load[width=WIDTH](i) * factor).cast[DType.int32]()
        sums += rounded
        q.unsafe_store(i, rounded.cast[DType.int8]())
    var sum = sums.reduce_add()
    for i in range(whole, n):
        var rounded = round(x.unsafe_load(i) * factor).cast[DType.int32]()
        sum += rounded
        q.unsafe_store(i, rounded.cast[DType.int8]())
    return (largest / LARGEST, sum)


def pack(panel: Words, weight: Bytes, n: Int, n_in: Int, depth: Int):
    """Pack n rows of weight [n, n_in] into panel [depth, PANEL], four inputs in each word.

    Missing outputs are left unchanged.
    """
    comptime FLIPPED = Int32(-0x7F7F7F80)  # the first bit of each byte; flipping it adds OFFSET
    var whole = n_in // FOUR
    for start in range(0, depth, TOGETHER):
        for o in range(n):
            var row = weight.unsafe_offset(o * n_in)
            for k in range(start, min(whole, start + TOGETHER)):
                panel.unsafe_store(k * PANEL + o, bitcast[DType.int32, 1](row.unsafe_load[width=FOUR](k * FOUR)) ^ FLIPPED)
    if whole < depth:
        for o in range(n):
            var rest = SIMD[DType.int8, FOUR](0)
            for i in range(n_in - whole * FOUR):
                rest[i] = weight.unsafe_load(o * n_in + whole * FOUR + i)
            panel.unsafe_store(whole * PANEL + o, bitcast[DType.int32, 1](rest) ^ FLIPPED)


@register("maxwhisper.linear_int8")
struct LinearInt8:
    """Linear layer x @ (weight [n_out, n_in] * scale [n_out]).T + bias [n_out].

    x [n, n_in] is quantized per row.
    """

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        weight: InputTensor[dtype=DType.int8, rank=2, ...],
        scale: InputTensor[dtype=DType.float32, rank=1, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n = x.dim_size(0)
        var n_in = x.dim_size(1)
        var n_out = weight.dim_size(0)
        var depth = ceildiv(n_in, FOUR)
        var n_panels = ceildiv(n_out, PANEL)
        var memory = List[Int32](unsafe_uninit_length=n_panels * PANEL * depth)
        var panels = rebind[Words](memory.unsafe_ptr())
        var weights = rebind[Bytes](weight.unsafe_ptr())
        var rows = rebind[Floats](x.unsafe_ptr())
        var results = rebind[Floats](y.unsafe_ptr())
        var scales = rebind[Floats](scale.unsafe_ptr())
        var biases = rebind[Floats](bias.unsafe_ptr())

        def pack_one(p: Int) {imm panels, imm weights, imm n_in, imm n_out, imm depth}:
            pack(panels.unsafe_offset(p * PANEL * depth), weights.unsafe_offset(p * PANEL * n_in), min(PANEL, n_out - p * PANEL), n_in, depth)

        sync_parallelize(pack_one, n_panels)

        def block(b: Int) {
            imm results, imm rows, imm panels, imm scales, imm biases, imm n, imm n_in, imm n_out, imm depth, imm n_panels
        }:
            var first = b * BLOCK
            var n_block_rows = min(BLOCK, n - first)
            var rounded = List[Int32](length=BLOCK * depth, fill=0)
            var words = rebind[Words](rounded.unsafe_ptr())
            var x_scales = Array[Float32, BLOCK](uninitialized=True)
            var x_sums = Array[Int32, BLOCK](uninitialized=True)
            var factors = rebind[Floats](x_scales.unsafe_ptr())
            var offsets = rebind[Words](x_sums.unsafe_ptr())
            for i in range(n_block_rows):
                var bytes = rebind[Bytes](words.unsafe_offset(i * depth).bitcast[Int8]())
                var scale_and_sum = quantize(bytes, rows.unsafe_offset((first + i) * n_in), n_in)
                factors.unsafe_store(i, scale_and_sum[0])
                offsets.unsafe_store(i, scale_and_sum[1])
            for p in range(n_panels):
                var o = p * PANEL
                var panel = panels.unsafe_offset(o * depth)
                var width = min(PANEL, n_out - o)
                var i = 0
                while i + ROWS <= n_block_rows:
                    multiply_tile[ROWS](
                        results.unsafe_offset((first + i) * n_out + o), n_out, width, words.unsafe_offset(i * depth), factors.unsafe_offset(i),
                        offsets.unsafe_offset(i), panel, scales.unsafe_offset(o), biases.unsafe_offset(o), depth,
                    )
                    i += ROWS
                while i < n_block_rows:
                    multiply_tile[1](
                        results.unsafe_offset((first + i) * n_out + o), n_out, width, words.unsafe_offset(i * depth), factors.unsafe_offset(i),
                        offsets.unsafe_offset(i), panel, scales.unsafe_offset(o), biases.unsafe_offset(o), depth,
                    )
                    i += 1
            _ = rounded^
            _ = x_scales^
            _ = x_sums^

        sync_parallelize(block, ceildiv(n, BLOCK))
        _ = memory^
