"""Products of many rows with a weight matrix, when multiply-adds take most of the time.

A convolution is such a product with overlapping rows.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .tile import PANEL, ROWS, Floats, multiply_tile, multiply_tile_from_bias, pack, zero

comptime DEPTH = 128  # inputs that are summed before sums are written; such a panel stays in the L1 cache
comptime BLOCK = 96  # rows that a core computes at a time


@always_inline
def add_tile[
    n_rows: Int
](y: Floats, stride: Int, x: Floats, x_stride: Int, panel: Floats, bias: Floats, depth: Int, k: Int):
    """Write the products of the first inputs plus the bias to y, or add further products to y."""
    if k == 0:
        multiply_tile_from_bias[n_rows](y, stride, x, x_stride, panel, bias, depth)
    else:
        multiply_tile[n_rows, True](y, stride, x, x_stride, panel, PANEL, depth)


def multiply(
    y: Floats, x: Floats, x_stride: Int, panels: Floats, bias: Floats, n: Int, n_in: Int, n_out: Int, scratch: Floats
):
    """Write x [n, n_in] @ panels + bias to y [n, n_out].

    The rows of x are `x_stride` elements apart. scratch [n, PANEL] is memory for the last panel.
    """
    var padded = Array[Float32, PANEL](fill=0)
    for o in range(0, n_out, PANEL):
        var width = min(PANEL, n_out - o)
        var whole = width == PANEL
        var sums = y.unsafe_offset(o) if whole else scratch
        var stride = n_out if whole else PANEL
        var start = bias.unsafe_offset(o)
        if not whole:
            for j in range(width):
                padded[j] = bias.unsafe_load(o + j)
            start = rebind[Floats](padded.unsafe_ptr())
        for k in range(0, n_in, DEPTH):
            var panel = panels.unsafe_offset(o * n_in + k * PANEL)
            var depth = min(DEPTH, n_in - k)
            var i = 0
            while i + ROWS <= n:
                add_tile[ROWS](sums.unsafe_offset(i * stride), stride, x.unsafe_offset(i * x_stride + k), x_stride, panel, start, depth, k)
                i += ROWS
            while i < n:
                add_tile[1](sums.unsafe_offset(i * stride), stride, x.unsafe_offset(i * x_stride + k), x_stride, panel, start, depth, k)
                i += 1
        if not whole:
            for i in range(n):
                for j in range(width):
                    y.unsafe_store(i * n_out + o + j, scratch.unsafe_load(i * PANEL + j))


def pack_all[
    dtype: DType
](panels: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], n_in: Int, n_out: Int, n_taps: Int) raises:
    """Pack weight [n_out, n_in, n_taps] into panels, in parallel."""
    var size = n_taps * n_in

    def one(p: Int) {imm panels, imm weight, imm n_in, imm n_out, imm n_taps, imm size}:
        var n = min(PANEL, n_out - p * PANEL)
        var panel = panels.unsafe_offset(p * size * PANEL)
        if n < PANEL:
            zero(panel, size * PANEL)
        pack(panel, weight.unsafe_offset(p * PANEL * size), size, n, n_in, n_taps)

    sync_parallelize(one, ceildiv(n_out, PANEL))


@register("maxwhisper.linear")
struct Linear:
    """Linear layer x [n, n_in] @ weight [n_out, n_in].T + bias [n_out].

    Weights are widened to float32 when they are packed.
    """

    @staticmethod
    def execute[
        dtype: DType
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n = x.dim_size(0)
        var n_in = x.dim_size(1)
        var n_out = weight.dim_size(0)
        var memory = List[Float32](unsafe_uninit_length=ceildiv(n_out, PANEL) * PANEL * n_in)
        var panels = rebind[Floats](memory.unsafe_ptr())
        var rows = x.unsafe_ptr()
        var results = y.unsafe_ptr()
        var biases = bias.unsafe_ptr()
        pack_all(panels, weight.unsafe_ptr(), n_in, n_out, 1)

        def block(b: Int) {imm results, imm rows, imm panels, imm biases, imm n, imm n_in, imm n_out}:
            var first = b * BLOCK
            var n_block_rows = min(BLOCK, n - first)
            var scratch = Array[Float32, BLOCK * PANEL](uninitialized=True)
            multiply(
                results.unsafe_offset(first * n_out),
                rows.unsafe_offset(first * n_in),
                n_in,
                panels,
                biases,
                n_block_rows,
                n_in,
                n_out,
                rebind[Floats](scratch.unsafe_ptr()),
            )
            _ = scratch^

        sync_parallelize(block, ceildiv(n, BLOCK))
        _ = memory^


@register("maxwhisper.conv1d")
struct Conv1d:
    """Convolution with three taps along time and one zero of padding at each end.

    The inputs of an output frame are consecutive in memory, so they form a row of 3 * n_in inputs.
    """

    @staticmethod
    def execute[
        stride: Int
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],  # [batch, ceil(n_frames / stride), n_out]
        x: InputTensor[dtype=DType.float32, rank=3, ...],  # [batch, n_frames, n_in]
        weight: InputTensor[dtype=DType.float32, rank=3, ...],  # [n_out, n_in, 3]
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_frames = x.dim_size(1)
        var n_in = x.dim_size(2)
        var n = y.dim_size(1)
        var n_out = weight.dim_size(0)
        var memory = List[Float32](unsafe_uninit_length=ceildiv(n_out, PANEL) * PANEL * 3 * n_in)
        var panels = rebind[Floats](memory.unsafe_ptr())
        var frames = x.unsafe_ptr()
        var results = y.unsafe_ptr()
        var biases = bias.unsafe_ptr()
        pack_all(panels, weight.unsafe_ptr(), n_in, n_out, 3)
        var n_blocks = ceildiv(n, BLOCK)

        def block(task: Int) {
            imm results, imm frames, imm panels, imm biases, imm n, imm n_in, imm n_out, imm n_frames, imm n_blocks
        }:
            var audio, b = divmod(task, n_blocks)
            var own_frames = frames.unsafe_offset(audio * n_frames * n_in)
            var own_results = results.unsafe_offset(audio * n * n_out)
            var scratch = Array[Float32, BLOCK * PANEL](uninitialized=True)
            var spare = rebind[Floats](scratch.unsafe_ptr())
            var padded = List[Float32](length=3 * n_in, fill=0)
            var edge = rebind[Floats](padded.unsafe_ptr())
            var first = b * BLOCK
            var end = min(first + BLOCK, n)
            # Output frames whose inputs include no padding. The others are computed one by one.
            var inner = min(max(first, 1), end)
            var inner_end = max(inner, min(end, (n_frames - 2) // stride + 1))
            if inner < inner_end:
                multiply(
                    own_results.unsafe_offset(inner * n_out),
                    own_frames.unsafe_offset((inner * stride - 1) * n_in),
                    stride * n_in,
                    panels,
                    biases,
                    inner_end - inner,
                    3 * n_in,
                    n_out,
                    spare,
                )
            for t in range(first, end):
                if t < inner or t >= inner_end:
                    for tap in range(3):
                        var frame = t * stride + tap - 1
                        for k in range(n_in):
                            var exists = 0 <= frame < n_frames
                            edge.unsafe_store(tap * n_in + k, own_frames.unsafe_load(frame * n_in + k) if exists else 0)
                    multiply(own_results.unsafe_offset(t * n_out), edge, 0, panels, biases, 1, 3 * n_in, n_out, spare)
            _ = scratch^
            _ = padded^

        sync_parallelize(block, x.dim_size(0) * n_blocks)
        _ = memory^
