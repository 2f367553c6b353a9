"""Products of many rows with an int8 weight matrix.

Rows are also quantized to int8, each with its own scale. Sums are exact.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv

from . import amx
from .tile import BLOCK, GROUP, PANEL, WIDTH, Floats, block_rows
from .tile_int8 import FOUR, OFFSET, Bytes, Words, multiply, n_words, pack, quantize


def dequantize(
    y: Floats, y_stride: Int, sums: Words, x_scales: Floats, x_sums: Words, scale: Floats, bias: Floats, n: Int, n_outputs: Int
):
    """Write the products of quantized rows with packed weights, whose sums are [n, GROUP], plus bias.

    Only the first n_outputs outputs are written.
    """
    for i in range(n):
        var offset = Int32(OFFSET) * x_sums.unsafe_load(i)
        var factor = x_scales.unsafe_load(i)
        var whole = n_outputs // WIDTH * WIDTH
        for o in range(0, whole, WIDTH):
            var exact = (sums.unsafe_load[width=WIDTH](i * GROUP + o) - offset).cast[DType.float32]()
            var wide = exact * (scale.unsafe_load[width=WIDTH](o) * factor)
            y.unsafe_store(i * y_stride + o, wide + bias.unsafe_load[width=WIDTH](o))
        for o in range(whole, n_outputs):
            var exact = (sums.unsafe_load(i * GROUP + o) - offset).cast[DType.float32]()
            y.unsafe_store(i * y_stride + o, exact * (scale.unsafe_load(o) * factor) + bias.unsafe_load(o))


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
        var depth = n_words(n_in)
        var n_panels = ceildiv(n_out, PANEL)
        var memory = List[Int32](unsafe_uninit_length=n_panels * PANEL * depth)
        var panels = rebind[Words](memory.unsafe_ptr())
        var weights = rebind[Bytes](weight.unsafe_ptr())
        var rows = rebind[Floats](x.unsafe_ptr())
        var results = rebind[Floats](y.unsafe_ptr())
        var scales = rebind[Floats](scale.unsafe_ptr())
        var biases = rebind[Floats](bias.unsafe_ptr())

        def pack_one(p: Int) {imm panels, imm weights, imm n_in, imm n_out, imm depth}:
            pack(panels.unsafe_offset(p * PANEL * depth), weights.unsafe_offset(p * PANEL * n_in), min(PANEL, n_out - p * PANEL), n_in)

        sync_parallelize(pack_one, n_panels)
        var n_rows = block_rows(n)
        var has_amx = amx.is_available()

        def block(b: Int) {
            imm results, imm rows, imm panels, imm scales, imm biases, imm n, imm n_in, imm n_out, imm depth, imm n_rows, imm has_amx
        }:
            var first = b * n_rows
            var n_block_rows = min(n_rows, n - first)
            var stride = depth + WIDTH  # no power of two, which would put all rows into the same cache sets
            var memory = List[Int32](unsafe_uninit_length=BLOCK * (stride + GROUP))
            var words = rebind[Words](memory.unsafe_ptr())
            var sums = words.unsafe_offset(BLOCK * stride)
            var x_scales = Array[Float32, BLOCK](uninitialized=True)
            var x_sums = Array[Int32, BLOCK](uninitialized=True)
            for i in range(n_block_rows):
                for k in range(n_in // FOUR, depth):
                    words.unsafe_store(i * stride + k, 0)
                var bytes = rebind[Bytes](words.unsafe_offset(i * stride).bitcast[Int8]())
                var scale_and_sum = quantize(bytes, rows.unsafe_offset((first + i) * n_in), n_in)
                x_scales[i] = scale_and_sum[0]
                x_sums[i] = scale_and_sum[1]
            for o in range(0, n_out, GROUP):
                var n_together = min(GROUP, n_out - o)
                for p in range(0, n_together, PANEL):
                    var panel = panels.unsafe_offset((o + p) * depth)
                    var next_panel = panel.unsafe_offset(depth * PANEL)
                    multiply[False](sums.unsafe_offset(p), GROUP, words, stride, panel, next_panel, n_block_rows, depth, has_amx)
                dequantize(
                    results.unsafe_offset(first * n_out + o), n_out, sums, rebind[Floats](x_scales.unsafe_ptr()),
                    rebind[Words](x_sums.unsafe_ptr()), scales.unsafe_offset(o), biases.unsafe_offset(o), n_block_rows, n_together,
                )
            _ = memory^
            _ = x_scales^
            _ = x_sums^

        sync_parallelize(block, ceildiv(n, n_rows))
        _ = memory^
