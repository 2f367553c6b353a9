"""Rows of x in shared memory: normalized, or put together from the parts of an attention."""

from max.gpu import lane_id, thread_idx, warp_id
from max.gpu.sync import barrier
from std.math import exp, sqrt
from std.memory import unsafe_stack_allocation

from .launch import HEAD_DIM, LOWEST, Floats, Weights
from .lanes import sum_lanes
from .product import THREADS, WARPS

comptime EPSILON = Float32(1e-5)
comptime WIDTH = 4
comptime Four = SIMD[DType.float32, WIDTH]
comptime Shared = Pointer[Float32, MutAnyOrigin, address_space=AddressSpace.SHARED]


@always_inline
def room_for[n: Int]() -> Shared:
    """Return shared memory for n numbers."""
    return rebind[Shared](unsafe_stack_allocation[n, Float32, address_space=AddressSpace.SHARED, alignment=16]())


struct Affine[n_in: Int](Copyable):
    """A lane's share of a layer norm's weight and bias, for a row in the 32 lanes of a warp."""

    comptime CHUNKS = Self.n_in // (32 * WIDTH)
    var weight: Array[Four, Self.CHUNKS]
    var bias: Array[Four, Self.CHUNKS]

    @always_inline
    def __init__(out self, weight: Weights[DType.float32], bias: Weights[DType.float32]):
        self.weight = Array[Four, Self.CHUNKS](fill=0)
        self.bias = Array[Four, Self.CHUNKS](fill=0)
        comptime for c in range(Self.CHUNKS):
            var at = (c * 32 + Int(lane_id())) * WIDTH
            self.weight[c] = weight.unsafe_load[width=WIDTH, alignment=16, invariant=True](at)
            self.bias[c] = bias.unsafe_load[width=WIDTH, alignment=16, invariant=True](at)


@always_inline
def normalize_row[
    n_in: Int
](staged: Shared, normed: Floats, x: Floats, affine: Affine[n_in], records: Bool):
    """Compute layer norm of a row by a warp; two passes, the mean first.

    Args:
        staged: receives the result, [n_in].
        normed: receives it, too, if `records`.
        x: [n_in].
        affine: the layer norm's weights.
        records: whether this block writes to `normed`.
    """
    comptime chunks = n_in // (32 * WIDTH)
    var values = Array[Four, chunks](fill=0)
    var sums = Four(0)
    comptime for c in range(chunks):
        values[c] = x.unsafe_load[width=WIDTH, alignment=16]((c * 32 + Int(lane_id())) * WIDTH)
        sums += values[c]
    var mean = sum_lanes[32](sums.reduce_add()) / Float32(n_in)
    var squares = Four(0)
    comptime for c in range(chunks):
        values[c] -= mean
        squares += values[c] * values[c]
    var scale = 1 / sqrt(sum_lanes[32](squares.reduce_add()) / Float32(n_in) + EPSILON)
    comptime for c in range(chunks):
        var at = (c * 32 + Int(lane_id())) * WIDTH
        var result = values[c] * scale * affine.weight[c] + affine.bias[c]
        staged.unsafe_store[alignment=16](at, result)
        if records:
            normed.unsafe_store[alignment=16](at, result)


@always_inline
def normalize[
    n_in: Int, together: Int
](staged: Shared, normed: Floats, x: Floats, affine: Affine[n_in], first: Int, n_rows: Int, records: Bool):
    """Compute layer norm of rows, a warp each.

    Args:
        staged: receives the results, [together, n_in].
        normed: receives them, too, if `records`; [n_rows, n_in].
        x: [n_rows, n_in].
        affine: the layer norm's weights.
        first: of the rows.
        n_rows: of all rows, more than `first`.
        records: whether this block writes to `normed`.
    """
    for i in range(Int(warp_id()), min(together, n_rows - first), WARPS):
        var at = (first + i) * n_in
        normalize_row[n_in](
            staged.unsafe_offset(i * n_in), normed.unsafe_offset(at), x.unsafe_offset(at), affine, records
        )
    barrier()


@always_inline
def put_together[
    n_in: Int, n_splits: Int, together: Int
](staged: Shared, context: Floats, parts: Floats, scales: Floats, first: Int, n_rows: Int, records: Bool):
    """Put the parts of an attention together, as `attention.mojo` leaves them.

    Args:
        staged: receives the results, [together, n_in].
        context: receives them, too, if `records`; [n_rows, n_in].
        parts: sums of values, [n_rows, n_head, n_splits, HEAD_DIM].
        scales: the highest score, and the sum of exponentials, [n_rows, n_head, n_splits, 2].
        first: of the rows.
        n_rows: of all rows, more than `first`.
        records: whether this block writes to `context`.
    """
    comptime fours = HEAD_DIM // WIDTH
    comptime n_head = n_in // HEAD_DIM
    for i in range(Int(thread_idx.x), min(together, n_rows - first) * (n_in // WIDTH), THREADS):
        var row_and_head = first * n_head + i // fours
        var d = (i % fours) * WIDTH
        var some_parts = Array[Four, n_splits](fill=0)
        var some_scales = Array[SIMD[DType.float32, 2], n_splits](fill=0)
        comptime for j in range(n_splits):
            var split = row_and_head * n_splits + j
            some_scales[j] = scales.unsafe_load[width=2, alignment=8](split * 2)
            some_parts[j] = parts.unsafe_load[width=WIDTH, alignment=16](split * HEAD_DIM + d)
        var highest = LOWEST
        comptime for j in range(n_splits):
            highest = max(highest, some_scales[j][0])
        var total = Float32(0)
        var sum = Four(0)
        comptime for j in range(n_splits):
            var share = exp(some_scales[j][0] - highest)
            total = share.fma(some_scales[j][1], total)
            sum = some_parts[j].fma(Four(share), sum)
        staged.unsafe_store[alignment=16](i * WIDTH, sum / total)
        if records:
            context.unsafe_store[alignment=16](first * n_in + i * WIDTH, sum / total)
    barrier()
