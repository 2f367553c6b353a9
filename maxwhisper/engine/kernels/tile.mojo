"""Building blocks of products of large matrices.

The sums of a tile of rows and outputs stay in registers.
"""

from std.bit import log2_floor
from std.math import ceildiv
from std.runtime import parallelism_level
from std.sys import PrefetchOptions, prefetch, simd_width_of, size_of

comptime WIDTH = simd_width_of[DType.float32]()
# Sums of a tile take all registers except for a few: 32 with AVX-512, 16 without.
comptime ROWS = 6  # rows of a tile
comptime VECTORS = 4 if WIDTH == 16 else 2  # vectors of outputs of a tile
comptime PANEL = VECTORS * WIDTH  # outputs of a tile
comptime DEPTH = 128  # inputs that are summed before sums are written; such a panel stays in the L1 cache
comptime BLOCK = 32 * ROWS  # most rows that a core computes at a time
comptime GROUP = 512 // PANEL * PANEL  # outputs that a block computes together; their sums stay in the L2 cache
comptime STRIDE = DEPTH + WIDTH  # of copied rows; a power of two would put all rows into the same cache sets
comptime UNROLLED = 4  # inputs whose products are added in one round of the innermost loop
# Number of inputs that are packed for all outputs of a panel before the next inputs, so that their
# cache lines in the panel stay in the L1 cache.
comptime TOGETHER = 64
comptime Floats = Pointer[Float32, MutAnyOrigin]


def block_rows(n: Int) -> Int:
    """Return the number of rows of a block, so that each core gets as many blocks of n rows."""
    var n_cores = parallelism_level()
    var n_blocks = max(ceildiv(ceildiv(n, BLOCK), n_cores), 1) * n_cores
    return max(ceildiv(ceildiv(n, n_blocks), ROWS), 1) * ROWS


def multiply[
    add: Bool
](y: Floats, y_stride: Int, x: Floats, x_stride: Int, panel: Floats, next_panel: Floats, n: Int, depth: Int):
    """Write x [n, depth] @ panel [depth, PANEL] to y [n, PANEL], or if `add` add it to y.

    Meanwhile, next_panel of the same size is loaded into the cache.
    """
    var n_tiles = ceildiv(n, ROWS)
    var i = 0
    while i + ROWS <= n:
        prefetch_part(next_panel, depth * PANEL, i // ROWS, n_tiles)
        multiply_tile[ROWS, add](y.unsafe_offset(i * y_stride), y_stride, x.unsafe_offset(i * x_stride), x_stride, panel, depth)
        i += ROWS
    while i < n:
        multiply_tile[1, add](y.unsafe_offset(i * y_stride), y_stride, x.unsafe_offset(i * x_stride), x_stride, panel, depth)
        i += 1


@always_inline
def multiply_tile[
    n_rows: Int, add: Bool
](y: Floats, y_stride: Int, x: Floats, x_stride: Int, panel: Floats, depth: Int):
    """Write x [n_rows, depth] @ panel [depth, PANEL] to y [n_rows, PANEL], or if `add` add it to y.

    Strides are in elements.
    """
    var sums = Array[SIMD[DType.float32, WIDTH], n_rows * VECTORS](fill=0)
    var rounds = depth // UNROLLED * UNROLLED
    for k in range(0, rounds, UNROLLED):
        comptime for i in range(UNROLLED):
            add_products[n_rows](sums, x.unsafe_offset(k + i), x_stride, panel.unsafe_offset((k + i) * PANEL))
    for k in range(rounds, depth):
        add_products[n_rows](sums, x.unsafe_offset(k), x_stride, panel.unsafe_offset(k * PANEL))
    comptime for i in range(n_rows):
        comptime for j in range(VECTORS):
            var at = i * y_stride + j * WIDTH
            comptime if add:
                sums[i * VECTORS + j] += y.unsafe_load[width=WIDTH](at)
            y.unsafe_store(at, sums[i * VECTORS + j])


@always_inline
def add_products[
    n_rows: Int
](mut sums: Array[SIMD[DType.float32, WIDTH], n_rows * VECTORS], x: Floats, x_stride: Int, panel: Floats):
    """Add the products of one input with all outputs of a tile to sums."""
    var row = Array[SIMD[DType.float32, WIDTH], VECTORS](fill=0)
    comptime for j in range(VECTORS):
        row[j] = panel.unsafe_load[width=WIDTH](j * WIDTH)
    comptime for i in range(n_rows):
        var factor = SIMD[DType.float32, WIDTH](x.unsafe_load(i * x_stride))
        comptime for j in range(VECTORS):
            comptime s = i * VECTORS + j
            sums[s] = factor.fma(row[j], sums[s])


@always_inline
def prefetch_part[
    dtype: DType
](numbers: Pointer[Scalar[dtype], MutAnyOrigin], n: Int, part: Int, n_parts: Int):
    """Start to load one of n_parts equal parts of n numbers, which are needed soon, into the cache."""
    comptime LINE = 64 // size_of[dtype]()  # numbers of a cache line
    for i in range(part * n // n_parts, (part + 1) * n // n_parts, LINE):
        prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](numbers.unsafe_offset(i))


def pack[
    dtype: DType
](panels: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], stride: Int, n: Int, n_in: Int, n_taps: Int):
    """Pack the rows of weight [n, n_in, n_taps] into panels [ceil(n / PANEL), n_taps * n_in, PANEL].

    The rows of weight are `stride` elements apart. Missing outputs in the last panel are left
    unchanged.
    """
    var n_square = n // WIDTH * WIDTH if n_taps == 1 else 0  # rows and inputs that are packed in squares
    var n_in_square = n_in // WIDTH * WIDTH
    for o in range(0, n_square, WIDTH):
        var column = panels.unsafe_offset(o // PANEL * (n_in * PANEL) + o % PANEL)
        for k in range(0, n_in_square, WIDTH):
            var square = Array[SIMD[DType.float32, WIDTH], WIDTH](uninitialized=True)
            comptime for i in range(WIDTH):
                square[i] = weight.unsafe_load[width=WIDTH]((o + i) * stride + k).cast[DType.float32]()
            transpose(square)
            comptime for i in range(WIDTH):
                column.unsafe_store((k + i) * PANEL, square[i])
    for start in range(0, n_in, TOGETHER):
        for o in range(n):
            var row = weight.unsafe_offset(o * stride)
            var column = panels.unsafe_offset(o // PANEL * (n_taps * n_in * PANEL) + o % PANEL)
            var packed = n_in_square if o < n_square else 0
            for tap in range(n_taps):
                for k in range(max(start, packed), min(n_in, start + TOGETHER)):
                    column.unsafe_store((tap * n_in + k) * PANEL, row.unsafe_load(k * n_taps + tap).cast[DType.float32]())


@always_inline
def transpose[dtype: DType, size: Int](mut rows: Array[SIMD[dtype, size], size]):
    """Transpose a square, by shuffling its first half with its second half log2(size) times."""
    comptime for _ in range(log2_floor(size)):
        var shuffled = Array[SIMD[dtype, size], size](uninitialized=True)
        comptime for i in range(size // 2):
            var pair = rows[i].interleave(rows[i + size // 2])
            shuffled[2 * i] = rebind[SIMD[dtype, size]](pair.slice[size]())
            shuffled[2 * i + 1] = rebind[SIMD[dtype, size]](pair.slice[size, offset=size]())
        rows = shuffled^


def copy_rows(y: Floats, y_stride: Int, x: Floats, x_stride: Int, n: Int, n_in: Int):
    """Copy x [n, n_in] to y. Strides are in elements."""
    var whole = n_in // WIDTH * WIDTH
    for i in range(n):
        for k in range(0, whole, WIDTH):
            y.unsafe_store(i * y_stride + k, x.unsafe_load[width=WIDTH](i * x_stride + k))
        for k in range(whole, n_in):
            y.unsafe_store(i * y_stride + k, x.unsafe_load(i * x_stride + k))


def zero(x: Floats, n: Int):
    """Write n zeros."""
    for i in range(n):
        x.unsafe_store(i, 0)


@always_inline
def largest_of[magnitude: Bool = False](x: Floats, n: Int) -> Float32:
    """Return the largest of n elements, or of their magnitudes."""
    comptime PARALLEL = 4  # vectors, so that none waits for the one before
    var all_largest = Array[SIMD[DType.float32, WIDTH], PARALLEL](fill=Float32.MIN)
    var whole = n // (PARALLEL * WIDTH) * (PARALLEL * WIDTH)
    for i in range(0, whole, PARALLEL * WIDTH):
        comptime for j in range(PARALLEL):
            var here = x.unsafe_load[width=WIDTH](i + j * WIDTH)
            all_largest[j] = max(all_largest[j], abs(here) if magnitude else here)
    comptime for j in range(1, PARALLEL):
        all_largest[0] = max(all_largest[0], all_largest[j])
    var largest = all_largest[0].reduce_max()
    for i in range(whole, n):
        var here = x.unsafe_load(i)
        largest = max(largest, abs(here) if magnitude else here)
    return largest
