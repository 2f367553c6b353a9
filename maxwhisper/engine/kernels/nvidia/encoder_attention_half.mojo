"""Attention of all of the audio to itself, in float16 on tensor cores.

As `encoder_attention`, in other tiles: a warp takes 32 queries through 32 keys at a time, and its
scores, weights and results stay in its registers. `mma` multiplies 16 x 16 by 16 x 8 numbers. Lane
4 * g + t holds of the left matrix rows g and g + 8, of the right one column g, and of the result
rows g and g + 8 in columns 2 * t and 2 * t + 1 (PTX ISA, "Matrix Fragments for mma.m16n8k16").
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx, grid_dim, lane_id, thread_idx, warp_id
from max.gpu.compute.mma import mma
from max.gpu.sync import barrier
from std.math import exp2
from std.memory import unsafe_stack_allocation
from std.utils import StaticTuple

from .lanes import max_lanes, sum_lanes
from .launch import HEAD_DIM, LOWEST, Cache
from .staging import Four

comptime F16 = DType.float16
comptime Halves = SIMD[F16, 4]
comptime SharedHalves = Pointer[Float16, MutAnyOrigin, address_space=AddressSpace.SHARED]
comptime THREADS = 128
comptime TILES = 2  # of 16 queries, of a warp
comptime WARP_ROWS = 16 * TILES
comptime ROWS = THREADS // 32 * WARP_ROWS  # queries of a block
comptime KEYS = 64  # in shared memory
comptime PART = 32  # keys at a time
comptime CHUNK = 8  # numbers that are copied at once
# Rows are padded, so that a warp's loads lie in different banks.
comptime KEY_STRIDE = HEAD_DIM + 16
comptime VALUE_STRIDE = HEAD_DIM + 8
comptime BITS = Float32(0.125 * 1.4426950408889634)  # log2(e) / sqrt(HEAD_DIM)


@always_inline
def stage[
    to_stride: Int
](room: SharedHalves, source: Cache[F16], first: Int, n_rows: Int, stride: Int):
    """Copy `KEYS` rows to shared memory, zeros where there are none.

    Args:
        room: receives the rows, [KEYS, to_stride].
        source: rows of HEAD_DIM.
        first: of the rows.
        n_rows: of `source`.
        stride: of its rows.
    """
    comptime chunks = HEAD_DIM // CHUNK
    comptime for i in range(KEYS * chunks // THREADS):
        var row = (i * THREADS + Int(thread_idx.x)) // chunks
        var d = Int(thread_idx.x) % chunks * CHUNK
        var numbers = SIMD[F16, CHUNK](0)
        if first + row < n_rows:
            numbers = source.unsafe_load[width=CHUNK, alignment=16]((first + row) * stride + d)
        room.unsafe_store[alignment=16](row * to_stride + d, numbers)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def encoder_attention_half_kernel(
    context: Cache[F16],  # [batch, n, n_head, HEAD_DIM], as query
    query: Cache[F16],
    key: Cache[F16],  # [batch, n_kv, n_head, HEAD_DIM], as value
    value: Cache[F16],
    n: Int32,
    n_kv: Int32,
):
    """Attend to all keys."""
    comptime steps = HEAD_DIM // 16
    comptime tiles = PART // 8  # of keys
    var stride = Int(grid_dim.y) * HEAD_DIM
    var first = Int(block_idx.x) * ROWS + Int(warp_id()) * WARP_ROWS
    var head = Int(block_idx.y) * HEAD_DIM
    var of_queries = Int(block_idx.z) * Int(n) * stride + head
    var of_keys = Int(block_idx.z) * Int(n_kv) * stride + head
    var g = Int(lane_id()) // 4
    var t = Int(lane_id()) % 4
    var room = rebind[SharedHalves](
        unsafe_stack_allocation[
            KEYS * (KEY_STRIDE + VALUE_STRIDE), Float16, address_space=AddressSpace.SHARED, alignment=16
        ]()
    )
    var keys = room
    var values = room.unsafe_offset(KEYS * KEY_STRIDE)
    # In which order the dimensions of queries and keys are summed does not matter: a lane takes four
    # neighbours where `mma` would have two and two others.
    var queries = Array[SIMD[F16, 8], TILES * steps](fill=0)
    comptime for i in range(TILES):
        comptime for c in range(steps):
            var pair = Array[Halves, 2](fill=0)
            comptime for lower in range(2):
                var row = min(first + 16 * i + 8 * lower + g, Int(n) - 1)
                pair[lower] = query.unsafe_load[width=4, alignment=8](of_queries + row * stride + 16 * c + 4 * t)
            queries[i * steps + c] = pair[0].slice[2]().join(pair[1].slice[2]()).join(
                pair[0].slice[2, offset=2]().join(pair[1].slice[2, offset=2]())
            )
    var sums = Array[Four, TILES * HEAD_DIM // 8](fill=0)  # of values, weighted
    var highest = Array[Float32, TILES * 2](fill=LOWEST)  # of a tile's rows g and g + 8
    var totals = Array[Float32, TILES * 2](fill=0)  # of the weights that this lane computes
    for start in range(0, Int(n_kv), KEYS):
        barrier()
        stage[KEY_STRIDE](keys, key.unsafe_offset(of_keys), start, Int(n_kv), stride)
        stage[VALUE_STRIDE](values, value.unsafe_offset(of_keys), start, Int(n_kv), stride)
        barrier()
        for begin in range(0, KEYS, PART):
            var scores = Array[Four, TILES * tiles](fill=0)
            comptime for c in range(steps):
                comptime for j in range(tiles):
                    var at = (begin + 8 * j + g) * KEY_STRIDE + 16 * c + 4 * t
                    var k = keys.unsafe_load[width=4, alignment=8](at)
                    comptime for i in range(TILES):
                        mma(scores[i * tiles + j], queries[i * steps + c], k, scores[i * tiles + j])
            if start + begin + PART > Int(n_kv):
                comptime for j in range(tiles):
                    comptime for e in range(2):
                        if start + begin + 8 * j + 2 * t + e >= Int(n_kv):
                            comptime for i in range(TILES):
                                scores[i * tiles + j][e] = LOWEST
                                scores[i * tiles + j][e + 2] = LOWEST
            comptime for i in range(TILES):
                comptime for lower in range(2):
                    comptime row = 2 * i + lower
                    var most = highest[row]
                    comptime for j in range(tiles):
                        var score = scores[i * tiles + j]
                        most = max(most, max(score[2 * lower], score[2 * lower + 1]))
                    most = max_lanes[4](most)
                    var before = exp2((highest[row] - most) * BITS)
                    highest[row] = most
                    totals[row] *= before
                    comptime for d in range(HEAD_DIM // 8):
                        comptime for e in range(2):
                            sums[i * HEAD_DIM // 8 + d][2 * lower + e] *= before
                    comptime for j in range(tiles):
                        comptime for e in range(2):
                            comptime at = 2 * lower + e
                            var weight = exp2(scores[i * tiles + j][at].fma(BITS, -most * BITS))
                            totals[row] += weight
                            scores[i * tiles + j][at] = weight
            comptime for c in range(PART // 16):
                var weights = Array[SIMD[F16, 8], TILES](fill=0)
                comptime for i in range(TILES):
                    weights[i] = scores[i * tiles + 2 * c].join(scores[i * tiles + 2 * c + 1]).cast[F16]()
                comptime for d in range(HEAD_DIM // 16):
                    # Of two neighbouring dimensions, one goes to each of two products.
                    var even = Halves(0)
                    var odd = Halves(0)
                    comptime for e in range(4):
                        var row = begin + 16 * c + 2 * t + (e % 2) + 8 * (e // 2)
                        var v = values.unsafe_load[width=2, alignment=4](row * VALUE_STRIDE + 16 * d + 2 * g)
                        even[e] = v[0]
                        odd[e] = v[1]
                    comptime for i in range(TILES):
                        comptime at = i * HEAD_DIM // 8 + 2 * d
                        mma(sums[at], weights[i], even, sums[at])
                        mma(sums[at + 1], weights[i], odd, sums[at + 1])
    comptime for i in range(TILES):
        comptime for lower in range(2):
            var total = sum_lanes[4](totals[2 * i + lower])
            var row = first + 16 * i + 8 * lower + g
            if row < Int(n):
                comptime for d in range(HEAD_DIM // 16):
                    comptime at = i * HEAD_DIM // 8 + 2 * d
                    var result = Four(0)
                    comptime for e in range(2):
                        result[2 * e] = sums[at][2 * lower + e]
                        result[2 * e + 1] = sums[at + 1][2 * lower + e]
                    var to = of_queries + row * stride + 16 * d + 4 * t
                    context.unsafe_store[alignment=8](to, (result / total).cast[F16]())
