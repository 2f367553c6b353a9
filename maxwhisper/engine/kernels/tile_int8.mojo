"""Building blocks of products of large int8 matrices, with exact sums.

Four 8-bit numbers are in each word, because one instruction adds their products.
"""

from std.math import ceildiv, round
from std.memory import bitcast
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

from . import amx
from .tile import DEPTH, PANEL, ROWS, UNROLLED, VECTORS, WIDTH, Floats, largest_of, prefetch_part, transpose

comptime FOUR = 4  # numbers of a word
comptime LARGEST = Float32(127)  # the largest quantized value
comptime OFFSET = 128  # added to packed weights, because the processor multiplies unsigned with signed numbers
comptime Words = amx.Words
comptime Bytes = Pointer[Int8, MutAnyOrigin]
comptime Sums = SIMD[DType.int32, WIDTH]


def n_words(n: Int) -> Int:
    """Return the number of words for n 8-bit numbers and zeros, a multiple of amx.WORDS."""
    return ceildiv(n, FOUR * amx.WORDS) * amx.WORDS


def multiply[
    x_is_unsigned: Bool
](sums: Words, sums_stride: Int, x: Words, x_stride: Int, panel: Words, next_panel: Words, n: Int, depth: Int, has_amx: Bool):
    """Write x [n, depth] @ panel [depth, PANEL] to sums [n, PANEL].

    One of x and panel is unsigned. depth is from `n_words`, and sums and x have memory for n rounded
    up to a multiple of amx.ROWS rows. Meanwhile, the first words of next_panel are loaded into the
    cache.

    Args:
        has_amx: amx.is_available().
    """
    var n_tiles = ceildiv(n, ROWS)
    for k in range(0, depth, DEPTH):
        var part = panel.unsafe_offset(k * PANEL)
        var next_part = part.unsafe_offset(DEPTH * PANEL) if k + DEPTH < depth else next_panel
        var part_depth = min(DEPTH, depth - k)
        if has_amx:
            amx.multiply[x_is_unsigned](
                sums, sums_stride, x.unsafe_offset(k), x_stride, part, next_part, n, part_depth, k > 0
            )
            continue
        var i = 0
        while i + ROWS <= n:
            prefetch_part(next_part, part_depth * PANEL, i // ROWS, n_tiles)
            multiply_tile[ROWS, x_is_unsigned](
                sums.unsafe_offset(i * sums_stride), sums_stride, x.unsafe_offset(i * x_stride + k), x_stride, part, part_depth, k > 0
            )
            i += ROWS
        while i < n:
            multiply_tile[1, x_is_unsigned](
                sums.unsafe_offset(i * sums_stride), sums_stride, x.unsafe_offset(i * x_stride + k), x_stride, part, part_depth, k > 0
            )
            i += 1


@always_inline
def multiply_tile[
    n_rows: Int, x_is_unsigned: Bool
](sums: Words, sums_stride: Int, x: Words, x_stride: Int, panel: Words, depth: Int, add: Bool):
    """Write x [n_rows, depth] @ panel [depth, PANEL] to sums [n_rows, PANEL], or if `add` add it."""
    var tile = Array[Sums, n_rows * VECTORS](fill=0)
    if add:
        comptime for i in range(n_rows):
            comptime for j in range(VECTORS):
                tile[i * VECTORS + j] = sums.unsafe_load[width=WIDTH](i * sums_stride + j * WIDTH)
    var rounds = depth // UNROLLED * UNROLLED
    for k in range(0, rounds, UNROLLED):
        comptime for i in range(UNROLLED):
            add_words[n_rows, x_is_unsigned](tile, x.unsafe_offset(k + i), x_stride, panel.unsafe_offset((k + i) * PANEL))
    for k in range(rounds, depth):
        add_words[n_rows, x_is_unsigned](tile, x.unsafe_offset(k), x_stride, panel.unsafe_offset(k * PANEL))
    comptime for i in range(n_rows):
        comptime for j in range(VECTORS):
            sums.unsafe_store(i * sums_stride + j * WIDTH, tile[i * VECTORS + j])


@always_inline
def add_words[
    n_rows: Int, x_is_unsigned: Bool
](mut sums: Array[Sums, n_rows * VECTORS], x: Words, x_stride: Int, panel: Words):
    """Add the products of one word of each row with all outputs of a tile to sums."""
    var row = Array[Sums, VECTORS](fill=0)
    comptime for j in range(VECTORS):
        row[j] = panel.unsafe_load[width=WIDTH](j * WIDTH)
    comptime for i in range(n_rows):
        var word = Sums(x.unsafe_load(i * x_stride))
        comptime for j in range(VECTORS):
            comptime s = i * VECTORS + j
            comptime if x_is_unsigned:
                sums[s] = add_products(sums[s], word, row[j])
            else:
                sums[s] = add_products(sums[s], row[j], word)


@always_inline
def add_products(sums: Sums, unsigned: Sums, signed: Sums) -> Sums:
    """Add the products of four unsigned 8-bit numbers with four signed ones to each sum."""
    comptime if CompilationTarget.has_vnni() and WIDTH == 16:
        var bytes = bitcast[DType.uint8, FOUR * WIDTH](unsigned)
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", Sums](sums, bytes, bitcast[DType.int8, FOUR * WIDTH](signed))
    else:
        var all = sums
        comptime for i in range(FOUR):
            all += ((unsigned >> Int32(8 * i)) & 255) * ((signed << Int32(24 - 8 * i)) >> 24)
        return all


def quantize(q: Bytes, x: Floats, n: Int) -> Tuple[Float32, Int32]:
    """Quantize a row of n elements to q, with scale max|x| / 127.

    Returns the scale, and the sum of the quantized elements.
    """
    var largest = largest_of[magnitude=True](x, n)
    var whole = n // WIDTH * WIDTH
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


def pack(panel: Words, weight: Bytes, n: Int, n_in: Int):
    """Pack n rows of weight [n, n_in] into panel [n_words(n_in), PANEL], four inputs in each word.

    Missing outputs and words are left unchanged.
    """
    comptime FLIPPED = Int32(-0x7F7F7F80)  # the first bit of each byte; flipping it adds OFFSET
    var whole = n_in // FOUR
    var n_square = n // WIDTH * WIDTH  # rows and words that are packed in squares
    var n_words_square = whole // WIDTH * WIDTH
    for o in range(0, n_square, WIDTH):
        for k in range(0, n_words_square, WIDTH):
            var square = Array[Sums, WIDTH](uninitialized=True)
            comptime for i in range(WIDTH):
                var bytes = weight.unsafe_load[width=FOUR * WIDTH]((o + i) * n_in + k * FOUR)
                square[i] = bitcast[DType.int32, WIDTH](bytes) ^ FLIPPED
            transpose(square)
            comptime for i in range(WIDTH):
                panel.unsafe_store((k + i) * PANEL + o, square[i])
    for o in range(n):
        var row = weight.unsafe_offset(o * n_in)
        for k in range(n_words_square if o < n_square else 0, whole):
            panel.unsafe_store(k * PANEL + o, bitcast[DType.int32, 1](row.unsafe_load[width=FOUR](k * FOUR)) ^ FLIPPED)
        if whole * FOUR < n_in:
            var rest = SIMD[DType.int8, FOUR](0)
            for i in range(n_in - whole * FOUR):
                rest[i] = row.unsafe_load(whole * FOUR + i)
            panel.unsafe_store(whole * PANEL + o, bitcast[DType.int32, 1](rest) ^ FLIPPED)
