"""Exact products of 8-bit matrices by Intel's AMX, eight times as many at once as vectors add.

The compiler has no types for AMX's eight tiles of 16 rows of 64 bytes, so instructions are written
out. Source: Intel's Software Developer's Manual, volume 1, chapter 18.
"""

from std.ffi import external_call
from std.math import ceildiv
from std.sys._assembly import inlined_assembly
from std.sys.info import CompilationTarget

from .tile import PANEL, WIDTH, prefetch_part

comptime ROWS = 16  # of a tile
comptime WORDS = 16  # of a row of a tile
comptime TILES = 8
comptime SUMS = PANEL // WORDS  # the first tiles are sums
comptime X = SUMS  # the number of the tile of x; the remaining ones are parts of a panel
comptime IS_POSSIBLE = CompilationTarget.has_vnni() and CompilationTarget.is_linux() and WIDTH == 16
comptime Words = Pointer[Int32, MutAnyOrigin]


def is_available() -> Bool:
    """Whether this processor and its kernel let this process use AMX. Asks for permission."""
    comptime if IS_POSSIBLE:
        comptime ARCH_PRCTL = 158
        comptime ARCH_REQ_XCOMP_PERM = 0x1023
        comptime XTILEDATA = 18
        return external_call["syscall", Int](ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0
    else:
        return False


def multiply[
    x_is_unsigned: Bool
](sums: Words, sums_stride: Int, x: Words, x_stride: Int, panel: Words, next_panel: Words, n: Int, depth: Int, add: Bool):
    """Write x [n, depth] @ panel [depth, PANEL] to sums [n, PANEL], or if `add` add it to sums.

    As `tile_int8.multiply`, but depth is a multiple of WORDS, and sums and x have memory for whole
    tiles.
    """
    comptime if IS_POSSIBLE:
        configure()
        for i in range(0, n, ROWS):
            prefetch_part(next_panel, depth * PANEL, i // ROWS, ceildiv(n, ROWS))
            comptime for j in range(SUMS):
                if add:
                    load[j](sums.unsafe_offset(i * sums_stride + j * WORDS), sums_stride)
                else:
                    inlined_assembly["tilezero %tmm" + String(j), NoneType, constraints=""]()
            for k in range(0, depth, WORDS):
                load[X](x.unsafe_offset(i * x_stride + k), x_stride)
                comptime for j in range(SUMS):
                    comptime factors = X + 1 + j % (TILES - X - 1)  # the remaining tiles take turns
                    load[factors](panel.unsafe_offset(k * PANEL + j * WORDS), PANEL)
                    add_products[j, factors, x_is_unsigned]()
            comptime for j in range(SUMS):
                store[j](sums.unsafe_offset(i * sums_stride + j * WORDS), sums_stride)
        inlined_assembly["tilerelease", NoneType, constraints=""]()


def configure():
    """Let all tiles have ROWS rows of WORDS words."""
    var config = Array[UInt8, 64](fill=0)
    config[0] = 1  # the palette
    for tile in range(TILES):
        config[16 + 2 * tile] = 4 * WORDS
        config[48 + tile] = ROWS
    inlined_assembly["ldtilecfg ($0)", NoneType, constraints="r,~{memory}"](config.unsafe_ptr())
    _ = config^


@always_inline
def load[tile: Int](source: Words, stride: Int):
    """Load a tile whose rows are `stride` words apart."""
    inlined_assembly["tileloadd ($0,$1), %tmm" + String(tile), NoneType, constraints="r,r,~{memory}"](source, 4 * stride)


@always_inline
def store[tile: Int](target: Words, stride: Int):
    """Store a tile to rows that are `stride` words apart."""
    inlined_assembly["tilestored %tmm" + String(tile) + ", ($0,$1)", NoneType, constraints="r,r,~{memory}"](target, 4 * stride)


@always_inline
def add_products[sums: Int, panel: Int, x_is_unsigned: Bool]():
    """Add the products of the tile of x with a panel's tile to a tile of sums."""
    comptime name = "tdpbusd" if x_is_unsigned else "tdpbsud"
    inlined_assembly[name + " %tmm" + String(panel) + ", %tmm" + String(X) + ", %tmm" + String(sums), NoneType, constraints=""]()
