"""The product of a few rows of x with a matrix, which is read once, by all threads of the GPU.

A matrix has rows [n_out, n_in]. A group of 16 or 32 lanes computes the products of some of its rows
with some rows of x. Weights come straight into registers, 16 bytes at a time, before the rows of x
are known.
"""

from max.gpu import block_idx, lane_id, warp_id
from std.math import ceildiv
from std.sys import size_of

from .launch import Weights

comptime WARPS = 4
comptime THREADS = 32 * WARPS
comptime BLOCKS = 264  # about two for each multiprocessor of a large GPU
comptime LOADS = 12  # of 16 bytes each, that a lane has in registers


@always_inline
def width_of[dtype: DType]() -> Int:
    """Return how many weights a lane reads at a time, 16 bytes."""
    return 16 // size_of[Scalar[dtype]]()


@always_inline
def lanes_of[dtype: DType, n_in: Int]() -> Int:
    """Return how many lanes share a row of the matrix; n_in is a multiple of 128."""
    return 32 if n_in % (32 * width_of[dtype]()) == 0 else 16


@always_inline
def chunks_of[dtype: DType, n_in: Int]() -> Int:
    """Return how many times a lane reads for its share of a row."""
    return n_in // (lanes_of[dtype, n_in]() * width_of[dtype]())


@always_inline
def outputs_of[dtype: DType, n_in: Int, n_out: Int, together: Int]() -> Int:
    """Return how many rows of the matrix a group of lanes multiplies at once: 1, 2 or 4.

    More rows use what is read of x more often. Fewer rows keep more multiprocessors busy.
    """
    comptime groups = BLOCKS * WARPS * (32 // lanes_of[dtype, n_in]())
    return 4 if n_out >= 4 * groups else (2 if n_out >= 2 * groups or together > 1 else 1)


@always_inline
def outputs_of_block[dtype: DType, n_in: Int, n_out: Int, together: Int]() -> Int:
    """Return how many rows of the matrix a block multiplies."""
    return WARPS * (32 // lanes_of[dtype, n_in]()) * outputs_of[dtype, n_in, n_out, together]()


@always_inline
def tile_of[dtype: DType, n_in: Int, outputs: Int]() -> Int:
    """Return how many chunks of each row are in registers at once; a divisor of all of them."""
    comptime chunks = chunks_of[dtype, n_in]()
    comptime for parts in range(1, chunks + 1):
        comptime if chunks % parts == 0 and (chunks // parts) * outputs <= LOADS:
            return chunks // parts
    return 1


comptime Tile[dtype: DType, n_in: Int, outputs: Int] = Array[
    SIMD[dtype, width_of[dtype]()], outputs * tile_of[dtype, n_in, outputs]()
]


struct Place[dtype: DType, n_in: Int, n_out: Int, together: Int](ImplicitlyCopyable, RegisterPassable):
    """Where a thread works: which rows of the matrix, which rows of x, which part of both."""

    var lane: Int  # in its group
    var first_output: Int  # a row of the matrix
    var first_row: Int  # of x

    @always_inline
    def __init__(out self):
        comptime lanes = lanes_of[Self.dtype, Self.n_in]()
        comptime outputs = outputs_of[Self.dtype, Self.n_in, Self.n_out, Self.together]()
        var group = Int(lane_id()) // lanes
        self.lane = Int(lane_id()) % lanes
        self.first_output = ((Int(block_idx.y) * WARPS + Int(warp_id())) * (32 // lanes) + group) * outputs
        self.first_row = Int(block_idx.x) * Self.together

    @always_inline
    def output_and_row(self, i: Int) -> Tuple[Int, Int]:
        """Return the row of the matrix and the row of x that this lane's i-th sum belongs to."""
        comptime outputs = outputs_of[Self.dtype, Self.n_in, Self.n_out, Self.together]()
        comptime n = outputs * Self.together
        comptime lanes = lanes_of[Self.dtype, Self.n_in]()
        var item = (self.lane & (min(n, lanes) - 1)) * max(1, n // lanes) + i
        return self.first_output + (item & (outputs - 1)), self.first_row + item // outputs

    @always_inline
    def has_sums(self) -> Bool:
        """Whether this lane keeps sums; if there are fewer sums than lanes, the first ones do."""
        comptime n = outputs_of[Self.dtype, Self.n_in, Self.n_out, Self.together]() * Self.together
        return self.lane < n


@always_inline
def load_tile[
    dtype: DType, n_in: Int, outputs: Int
](matrix: Weights[dtype], first: Int, last: Int, part: Int, lane: Int) -> Tile[dtype, n_in, outputs]:
    """Read a lane's share of a part of some rows of a matrix; after the last row, that one again."""
    comptime width = width_of[dtype]()
    comptime tile = tile_of[dtype, n_in, outputs]()
    comptime lanes = lanes_of[dtype, n_in]()
    var result = Tile[dtype, n_in, outputs](fill=0)
    comptime for r in range(outputs):
        var row = matrix.unsafe_offset(min(first + r, last) * n_in + (part * tile * lanes + lane) * width)
        comptime for c in range(tile):
            result[r * tile + c] = row.unsafe_load[width=width, alignment=16, invariant=True](c * lanes * width)
    return result^


@always_inline
def multiply[
    dtype: DType, n_in: Int, outputs: Int, together: Int, space: AddressSpace
](
    var held: Tile[dtype, n_in, outputs],
    matrix: Weights[dtype],
    first: Int,
    last: Int,
    x: Pointer[Float32, MutAnyOrigin, address_space=space],
    n_rows: Int,
    lane: Int,
) -> Array[Float32, outputs * together]:
    """Multiply rows of a matrix, the first part of which is held, with the first rows of x.

    Args:
        held: part 0 of the rows.
        matrix: [n_out, n_in].
        first: row of the matrix.
        last: row of the matrix that exists.
        x: [n_rows, n_in]. After its last row, that one is taken again.
        n_rows: of x, at least 1.
        lane: of this thread in its group.

    Returns:
        A lane's parts of the sums, [together, outputs].
    """
    comptime width = width_of[dtype]()
    comptime tile = tile_of[dtype, n_in, outputs]()
    comptime lanes = lanes_of[dtype, n_in]()
    comptime parts = chunks_of[dtype, n_in]() // tile
    # Of one row of x there are few sums, so each is kept in parts that don't wait for each other.
    comptime wide = width if together == 1 else 1
    var sums = Array[SIMD[DType.float32, wide], outputs * together](fill=0)
    comptime for part in range(parts):
        var next = Tile[dtype, n_in, outputs](fill=0)
        comptime if part + 1 < parts:
            next = load_tile[dtype, n_in, outputs](matrix, first, last, part + 1, lane)
        comptime for m in range(together):
            var row = x.unsafe_offset(min(m, n_rows - 1) * n_in + (part * tile * lanes + lane) * width)
            comptime for c in range(tile):
                var values = row.unsafe_load[width=width, alignment=16](c * lanes * width)
                comptime for r in range(outputs):
                    var weights = held[r * tile + c].cast[DType.float32]()
                    comptime if together == 1:
                        sums[r] = rebind[SIMD[DType.float32, wide]](weights).fma(
                            rebind[SIMD[DType.float32, wide]](values), sums[r]
                        )
                    else:
                        comptime for i in range(width):
                            sums[m * outputs + r] = SIMD[DType.float32, wide](weights[i]).fma(
                                SIMD[DType.float32, wide](values[i]), sums[m * outputs + r]
                            )
        held = next^
    var result = Array[Float32, outputs * together](fill=0)
    comptime for i in range(outputs * together):
        result[i] = sums[i].reduce_add()
    return result^
