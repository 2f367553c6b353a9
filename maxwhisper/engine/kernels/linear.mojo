"""Products of many rows with a weight matrix, when multiply-adds take most of the time.

A convolution is such a product with overlapping rows.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .tile import BLOCK, DEPTH, GROUP, PANEL, STRIDE, Floats, block_rows, copy_rows, multiply, pack, zero

comptime SCRATCH = BLOCK * (STRIDE + PANEL)


def multiply_block(
    y: Floats, x: Floats, x_stride: Int, panels: Floats, bias: Floats, n: Int, n_in: Int, n_out: Int, scratch: Floats
):
    """Write x [n, n_in] @ panels + bias to y [n, n_out], for at most BLOCK rows.

    The rows of x are `x_stride` elements apart. scratch [SCRATCH] is memory for a part of x and for
    the sums of an incomplete panel.
    """
    var n_whole = n_out // PANEL * PANEL
    var rest = scratch.unsafe_offset(BLOCK * STRIDE)
    zero(rest, n * PANEL)
    for first in range(0, n_out, GROUP):
        copy_rows(y.unsafe_offset(first), n_out, bias.unsafe_offset(first), 0, n, min(GROUP, n_out - first))
        for k in range(0, n_in, DEPTH):
            var depth = min(DEPTH, n_in - k)
            copy_rows(scratch, STRIDE, x.unsafe_offset(k), x_stride, n, depth)
            for o in range(first, min(first + GROUP, n_out), PANEL):
                var whole = o < n_whole
                var sums = y.unsafe_offset(o) if whole else rest
                var panel = panels.unsafe_offset(o * n_in + k * PANEL)
                multiply[True](sums, n_out if whole else PANEL, scratch, STRIDE, panel, panel.unsafe_offset(n_in * PANEL), n, depth)
    for i in range(n):
        for o in range(n_whole, n_out):
            y.unsafe_store(i * n_out + o, y.unsafe_load(i * n_out + o) + rest.unsafe_load(i * PANEL + o - n_whole))


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

        var n_rows = block_rows(n)

        def block(b: Int) {imm results, imm rows, imm panels, imm biases, imm n, imm n_in, imm n_out, imm n_rows}:
            var first = b * n_rows
            var n_block_rows = min(n_rows, n - first)
            var scratch = List[Float32](unsafe_uninit_length=SCRATCH)
            multiply_block(
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

        sync_parallelize(block, ceildiv(n, n_rows))
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
        var n_rows = block_rows(n)
        var n_blocks = ceildiv(n, n_rows)

        def block(task: Int) {
            imm results, imm frames, imm panels, imm biases, imm n, imm n_in, imm n_out, imm n_frames, imm n_rows, imm n_blocks
        }:
            var audio, b = divmod(task, n_blocks)
            var own_frames = frames.unsafe_offset(audio * n_frames * n_in)
            var own_results = results.unsafe_offset(audio * n * n_out)
            var scratch = List[Float32](unsafe_uninit_length=SCRATCH)
            var spare = rebind[Floats](scratch.unsafe_ptr())
            var padded = List[Float32](length=3 * n_in, fill=0)
            var edge = rebind[Floats](padded.unsafe_ptr())
            var first = b * n_rows
            var end = min(first + n_rows, n)
            # Output frames whose inputs include no padding. The others are computed one by one.
            var inner = min(max(first, 1), end)
            var inner_end = max(inner, min(end, (n_frames - 2) // stride + 1))
            if inner < inner_end:
                multiply_block(
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
                    multiply_block(own_results.unsafe_offset(t * n_out), edge, 0, panels, biases, 1, 3 * n_in, n_out, spare)
            _ = scratch^
            _ = padded^

        sync_parallelize(block, x.dim_size(0) * n_blocks)
        _ = memory^
