"""What products of large matrices are made of: a tile of rows and outputs that stays in registers while it is summed up."""

from std.sys import simd_width_of

comptime WIDTH = simd_width_of[DType.float32]()
comptime ROWS = 12 if WIDTH == 16 else 6  # of a tile, which takes all of a processor's registers but a few
comptime VECTORS = 2  # of outputs
comptime PANEL = VECTORS * WIDTH  # outputs of a tile
comptime TOGETHER = 64  # inputs that are laid out for all outputs of a panel while these lines are in the nearest cache
comptime Floats = Pointer[Float32, MutAnyOrigin]


@always_inline
def multiply_tile[
    n_rows: Int, add: Bool
](y: Floats, y_stride: Int, x: Floats, x_stride: Int, panel: Floats, panel_stride: Int, depth: Int):
    """Put x [n_rows, depth] @ panel [depth, PANEL] into y [n_rows, PANEL], or add it to what is there. Rows are so many numbers apart."""
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
    """Put x [n_rows, depth] @ panel [depth, PANEL] + bias [PANEL] into y [n_rows, PANEL]."""
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
    """Lay the rows of weight [n, n_in, n_taps], which are `stride` apart, side by side: panels [ceil(n / PANEL), n_taps * n_in, PANEL].

    Outputs that are missing in the last panel are left as they are.
    """
    for start in range(0, n_in, TOGETHER):
        for o in range(n):
            var row = weight.unsafe_offset(o * stride)
            var column = panels.unsafe_offset(o // PANEL * (n_taps * n_in * PANEL) + o % PANEL)
            for tap in range(n_taps):
                for k in range(start, min(n_in, start + TOGETHER)):
                    column.unsafe_store((tap * n_in + k) * PANEL, row.unsafe_load(k * n_taps + tap).cast[DType.float32]())


def zero(x: Floats, n: Int):
    """Put n zeros."""
    for i in range(n):
        x.unsafe_store(i, 0)
