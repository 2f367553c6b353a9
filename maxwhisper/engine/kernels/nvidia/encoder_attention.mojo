"""Attention of all of the audio to itself, in float32.

A block takes 64 queries of a head through all keys, 64 at a time, and keeps the softmax so far in
registers (Dao et al., "FlashAttention", 2022): no score leaves the block. A thread computes 8 x 4 of
the scores, and then 8 x 4 numbers of the result.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx, grid_dim, thread_idx
from max.gpu.sync import barrier, syncwarp
from std.math import exp
from std.utils import StaticTuple

from .lanes import max_lanes, sum_lanes
from .launch import HEAD_DIM, LOWEST, Floats
from .staging import WIDTH, Four, Shared, room_for

comptime THREADS = 128
comptime ROWS = 64  # queries of a block
comptime KEYS = 64  # at a time
comptime LANES = 16  # that share a query
comptime OWN_ROWS = ROWS * LANES // THREADS  # queries of a thread
comptime CHUNKS = HEAD_DIM // WIDTH  # of a row
comptime TILE = KEYS * HEAD_DIM
comptime SCALE = Float32(0.125)  # 1 / sqrt(HEAD_DIM)


@always_inline
def swizzled(row: Int, chunk: Int) -> Int:
    """Return where a chunk of a row is, so that 8 rows' chunks lie in different banks."""
    return row * HEAD_DIM + (chunk ^ (row & 7)) * WIDTH


@always_inline
def stage[
    swizzles: Bool
](room: Shared, source: Floats, first: Int, n_rows: Int, stride: Int, scale: Float32 = 1):
    """Copy 64 rows to shared memory, zeros where there are none.

    Args:
        room: receives the rows, [64, HEAD_DIM].
        source: rows of HEAD_DIM.
        first: of the rows.
        n_rows: of `source`.
        stride: of its rows.
        scale: factor.
    """
    comptime for i in range(ROWS * CHUNKS // THREADS):
        var row = (i * THREADS + Int(thread_idx.x)) // CHUNKS
        var chunk = Int(thread_idx.x) % CHUNKS
        var numbers = Four(0)
        if first + row < n_rows:
            numbers = source.unsafe_load[width=WIDTH, alignment=16]((first + row) * stride + chunk * WIDTH)
        var at = swizzled(row, chunk) if swizzles else row * HEAD_DIM + chunk * WIDTH
        room.unsafe_store[alignment=16](at, numbers * scale)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def encoder_attention_kernel(
    context: Floats,  # [batch, n, n_head, HEAD_DIM], as query
    query: Floats,
    key: Floats,  # [batch, n_kv, n_head, HEAD_DIM], as value
    value: Floats,
    n: Int32,
    n_kv: Int32,
):
    """Attend to all keys."""
    var stride = Int(grid_dim.y) * HEAD_DIM
    var first = Int(block_idx.x) * ROWS
    var head = Int(block_idx.y) * HEAD_DIM
    var of_queries = Int(block_idx.z) * Int(n) * stride + head
    var of_keys = Int(block_idx.z) * Int(n_kv) * stride + head
    var lane = Int(thread_idx.x) % LANES
    var own = Int(thread_idx.x) // LANES * OWN_ROWS  # the first query of this thread
    var queries = room_for[3 * TILE]()
    var keys = queries.unsafe_offset(TILE)  # and then softmax's weights, [ROWS, KEYS]
    var values = keys.unsafe_offset(TILE)
    stage[False](queries, query.unsafe_offset(of_queries), first, Int(n), stride, SCALE)
    var sums = Array[Four, OWN_ROWS](fill=0)  # of values, weighted
    var highest = Array[Float32, OWN_ROWS](fill=LOWEST)
    var totals = Array[Float32, OWN_ROWS](fill=0)  # of the weights that this thread computes
    for start in range(0, Int(n_kv), KEYS):
        barrier()
        stage[True](keys, key.unsafe_offset(of_keys), start, Int(n_kv), stride)
        stage[False](values, value.unsafe_offset(of_keys), start, Int(n_kv), stride)
        barrier()
        var scores = Array[Four, OWN_ROWS](fill=0)
        for chunk in range(CHUNKS):
            var some_keys = Array[Four, WIDTH](fill=0)
            comptime for j in range(WIDTH):
                some_keys[j] = keys.unsafe_load[width=WIDTH, alignment=16](swizzled(lane + j * LANES, chunk))
            comptime for i in range(OWN_ROWS):
                var q = queries.unsafe_load[width=WIDTH, alignment=16]((own + i) * HEAD_DIM + chunk * WIDTH)
                comptime for j in range(WIDTH):
                    comptime for e in range(WIDTH):
                        scores[i][j] = q[e].fma(some_keys[j][e], scores[i][j])
        barrier()
        comptime for i in range(OWN_ROWS):
            comptime for j in range(WIDTH):
                if start + lane + j * LANES >= Int(n_kv):
                    scores[i][j] = LOWEST
            var most = max_lanes[LANES](max(highest[i], scores[i].reduce_max()))
            var before = exp(highest[i] - most)
            var weights = exp(scores[i] - most)
            highest[i] = most
            totals[i] = totals[i].fma(before, weights.reduce_add())
            sums[i] *= before
            comptime for j in range(WIDTH):
                keys.unsafe_store((own + i) * KEYS + lane + j * LANES, weights[j])
        syncwarp()
        for chunk in range(KEYS // WIDTH):
            var some_values = Array[Four, WIDTH](fill=0)
            comptime for e in range(WIDTH):
                var at = (chunk * WIDTH + e) * HEAD_DIM + lane * WIDTH
                some_values[e] = values.unsafe_load[width=WIDTH, alignment=16](at)
            comptime for i in range(OWN_ROWS):
                var weights = keys.unsafe_load[width=WIDTH, alignment=16]((own + i) * KEYS + chunk * WIDTH)
                comptime for e in range(WIDTH):
                    sums[i] = some_values[e].fma(Four(weights[e]), sums[i])
    comptime for i in range(OWN_ROWS):
        var total = sum_lanes[LANES](totals[i])
        var row = first + own + i
        if row < Int(n):
            context.unsafe_store[alignment=16](of_queries + row * stride + lane * WIDTH, sums[i] / total)
