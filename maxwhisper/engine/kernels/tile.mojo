"""Building blocks of products of large matrices.

The sums of a tile of rows and outputs stay in registers.
"""

from std.sys import simd_width_of

comptime WIDTH = simd_width_of[DType.float32]()
comptime ROWS = 12 if WIDTH == 16 else 6  # rows of a tile; its sums take all registers except for a few
comptime VECTORS = 2  # vectors of outputs of a tile
comptime PANEL = VECTORS * WIDTH  # outputs of a tile
# Number of inputs that are packed for all outputs of a panel before the next inputs, so that their
# cache lines in the panel stay in the L1 cache.
comptime TOGETHER = 64
comptime Floats = Pointer[Float32, MutAnyOrigin]


@always_inline
def multiply_tile[
    n_rows: Int, add: Bool
](y: Floats, y_stride: Int, x: Floats, x_stride: Int, panel: Floats, panel_stride: Int, depth: Int):
    """Write x [n_rows, depth] @ panel [depth, PANEL] to y [n_rows, PANEL], or if `add` add it to y.

    Strides are in elements.
    """
    var sums = Array[SIMD[DType.float32, WIDTH], n_rows * VECTORS](fill=0)
    sum_up[n_rows](sums, x, x_stride, panel, panel_stride, depth)
    comptime for i in range(n_rows):
        comptime for j in range(VECTORS):
            var at = i * y_stride + j * WIDTH
            comptime if add:
                sums[i * VECTORS + j] += y.unsafe_load[width=WIDTH](at)
            y.unsafe_store(at, sums[i * VECTORS + j])


@always_inline
def multiply_tile_from_bias[
    n_rows: Int
](y: Floats, y_stride: Int, x: Floats, x_stride: Int, panel: Floats, bias: Floats, depth: Int):
    """Write x [n_rows, depth] @ panel [depth, PANEL] + bias [PANEL] to y [n_rows, PANEL]."""
    var sums = Array[SIMD[DType.float32, WIDTH], n_rows * VECTORS](fill=0)
    sum_up[n_rows](sums, x, x_stride, panel, PANEL, depth)
    comptime for i in range(n_rows):
        comptime for j in range(VECTORS):
            y.unsafe_store(i * y_stride + j * WIDTH, sums[i * VECTORS + j] + bias.unsafe_load[width=WIDTH](j * WIDTH))


@always_inline
def sum_up[
    n_rows: Int
](
    mut sums: Array[SIMD[DType.float32, WIDTH], n_rows * VECTORS], x: Floats, x_stride: Int, panel: Floats, panel_stride: Int, depth: Int
):
    """Add x [n_rows, depth] @ panel [depth, PANEL] to sums."""
    for k in range(depth):
        var row = Array[SIMD[DType.float32, WIDTH], VECTORS](fill=0)
        comptime for j in range(VECTORS):
            row[j] = panel.unsafe_load[width=WIDTH](k * panel_stride + j * WIDTH)
        comptime for i in range(n_rows):
            var factor = SIMD[DType.float32, WIDTH](x.unsafe_load(i * x_stride + k))
            comptime for j in range(VECTORS):
                comptime s = i * VECTORS + j
                sums[s] = factor.fma(row[j], sums[s])


def pack[
    dtype: DType
](panels: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], stride: Int, n: Int, n_in: Int, n_taps: Int):
    """Pack the rows of weight [n, n_in, n_taps] into panels [ceil(n / PANEL), n_taps * n_in, PANEL].

    The rows of weight are `stride` elements apart. Missing outputs in the last panel are left
    unchanged.
    """
    for start in range(0, n_in, TOGETHER):
        for o in range(n):
            var row = weight.unsafe_offset(o * stride)
            var column = panels.unsafe_offset(o // PANEL * (n_taps * n_in * PANEL) + o % PANEL)
            for tap in range(n_taps):
                for k in range(start, min(n_in, start + TOGETHER)):
                    column.unsafe_store((tap * n_in + k) * PANEL, row.unsafe_load(k * n_taps + tap).cast[DType.float32]())


def zero(x: Floats, n: Int):
    """Write n zeros."""
    for i in range(n):
        x.unsafe_store(i, 0)
