"""Attention of few tokens, to the tokens before them or to the audio.

Each block attends to some of the keys. It leaves the sum of their values, the highest score, and the
sum of exponentials relative to that. `staging.put_together` makes attention's result of them.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx, lane_id, thread_idx, warp_id
from max.gpu.primitives import warp
from max.gpu.sync import barrier
from std.math import ceildiv, exp
from std.memory import unsafe_stack_allocation
from std.utils import StaticTuple

from .lanes import sum_lanes
from .launch import HEAD_DIM, LOWEST, Cache, Floats, Int64s, Weights, let_next_start, wait_for_previous
from .product import width_of
from .staging import Shared, room_for

comptime SCALE = Float32(0.125)  # 1 / sqrt(HEAD_DIM)
comptime THREADS = 256
comptime WARPS = THREADS // 32
comptime BLOCKS = 256  # about two for each multiprocessor of a large GPU


@always_inline
def splits_of(n_head: Int, together: Int, most: Int) -> Int:
    """Return how many blocks share the keys of a head: a power of two, at most `most`."""
    var splits = 1
    while 2 * splits <= most and 2 * splits * n_head * together <= BLOCKS:
        splits *= 2
    return splits


@always_inline
def self_splits_of(n_head: Int, together: Int) -> Int:
    """Return how many blocks share the tokens that a head attends to."""
    return splits_of(n_head, together, 4)


@always_inline
def cross_splits_of(n_head: Int, together: Int) -> Int:
    """Return how many blocks share the audio that a head attends to."""
    return splits_of(n_head, together, 16 if together == 1 else 4)


struct Running[width: Int](ImplicitlyCopyable, RegisterPassable):
    """Softmax so far (Milakov and Gimelshein, 2018), of the keys that a group of lanes has seen."""

    var highest: Float32  # score
    var total: Float32  # of exponentials, relative to the highest score
    var sum: SIMD[DType.float32, Self.width]  # of values, weighted by these

    @always_inline
    def __init__(out self):
        self.highest = LOWEST
        self.total = 0
        self.sum = SIMD[DType.float32, Self.width](0)

    @always_inline
    def take[
        n: Int, dtype: DType
    ](mut self, scores: Array[Float32, n], values: Array[SIMD[dtype, Self.width], n]):
        """Take some more keys; those with a score of LOWEST are none."""
        var highest = self.highest
        comptime for i in range(n):
            highest = max(highest, scores[i])
        var before = exp(self.highest - highest)
        self.total *= before
        self.sum *= before
        comptime for i in range(n):
            var weight = exp(scores[i] - highest) if scores[i] > LOWEST else Float32(0)
            self.total += weight
            self.sum = values[i].cast[DType.float32]().fma(SIMD[DType.float32, Self.width](weight), self.sum)
        self.highest = highest

    @always_inline
    def merge_lanes[lanes: Int](mut self):
        """Merge the groups of lanes of a warp, for all of them."""
        var highest = self.highest
        comptime for i in range(5):
            comptime if (1 << i) >= lanes:
                highest = max(highest, warp.shuffle_xor(highest, UInt32(1 << i)))
        var share = exp(self.highest - highest)
        self.highest = highest
        self.total *= share
        self.sum *= share
        comptime for i in range(5):
            comptime if (1 << i) >= lanes:
                self.total += warp.shuffle_xor(self.total, UInt32(1 << i))
                comptime for j in range(Self.width):
                    self.sum[j] += warp.shuffle_xor(self.sum[j], UInt32(1 << i))


comptime MERGING_ROOM = WARPS * (HEAD_DIM + 2)


@always_inline
def merge_warps[
    width: Int
](room: Shared, mut running: Running[width], parts: Floats, scales: Floats, split: Int):
    """Put together what a block's warps have seen, and write it as part `split` of an attention.

    Args:
        room: shared memory for MERGING_ROOM numbers.
        running: what this thread's lanes have seen.
        parts: [..., HEAD_DIM].
        scales: [..., 2].
        split: an index of both.
    """
    comptime lanes = HEAD_DIM // width
    var highests = room.unsafe_offset(WARPS * HEAD_DIM)
    var totals = highests.unsafe_offset(WARPS)
    running.merge_lanes[lanes]()
    var lane = Int(lane_id())
    if lane < lanes:
        room.unsafe_store[alignment=16](Int(warp_id()) * HEAD_DIM + lane * width, running.sum)
    if lane == 0:
        highests.unsafe_store(Int(warp_id()), running.highest)
        totals.unsafe_store(Int(warp_id()), running.total)
    barrier()
    var d = Int(thread_idx.x)
    if d < HEAD_DIM:
        var highest = LOWEST
        comptime for i in range(WARPS):
            highest = max(highest, highests.unsafe_load(i))
        var total = Float32(0)
        var sum = Float32(0)
        comptime for i in range(WARPS):
            var share = exp(highests.unsafe_load(i) - highest)
            total = share.fma(totals.unsafe_load(i), total)
            sum = share.fma(room.unsafe_load(i * HEAD_DIM + d), sum)
        parts.unsafe_store(split * HEAD_DIM + d, sum)
        if d == 0:
            scales.unsafe_store(split * 2, highest)
            scales.unsafe_store(split * 2 + 1, total)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def self_attention_kernel[
    dtype: DType, n_head: Int, n_splits: Int, pdl: Bool
](
    parts: Floats,  # [n_rows, n_head, n_splits, HEAD_DIM]
    scales: Floats,  # [n_rows, n_head, n_splits, 2]
    query: Floats,  # [n_rows, n_head * HEAD_DIM]
    k_cache: Cache[dtype],  # [n_pages, n_head, n_ctx, HEAD_DIM], as v_cache
    v_cache: Cache[dtype],
    page_table: Int64s,  # [n_seq, n_ctx]
    positions: Int64s,  # [n]
    n: Int32,  # rows of a sequence
    n_ctx: Int32,
):
    """Attend from a token to itself and to all before it. Their keys and values are in the cache."""
    comptime width = width_of[dtype]()
    comptime lanes = HEAD_DIM // width  # that share a key
    comptime at_once = THREADS // lanes  # keys
    comptime tile = max(1, 64 // at_once)
    var split = Int(block_idx.x)
    var head = Int(block_idx.y)
    var row = Int(block_idx.z)
    var sequence = Int(UInt32(row) // UInt32(n))
    var group = Int(thread_idx.x) // lanes
    var d = Int(thread_idx.x) % lanes * width
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var n_keys = Int(positions.unsafe_load(row - sequence * Int(n))) + 1
    var share = (n_keys + n_splits - 1) // n_splits
    var begin = split * share
    var end = min(begin + share, n_keys)
    var q = query.unsafe_load[width=width, alignment=16]((row * n_head + head) * HEAD_DIM + d) * SCALE
    var running = Running[width]()
    for start in range(begin, end, tile * at_once):
        var keys = Array[SIMD[dtype, width], tile](fill=0)
        var values = Array[SIMD[dtype, width], tile](fill=0)
        comptime for i in range(tile):
            var key = start + i * at_once + group
            if key < end:
                var page = Int(page_table.unsafe_load(sequence * Int(n_ctx) + key))
                var at = ((page * n_head + head) * Int(n_ctx) + key) * HEAD_DIM + d
                keys[i] = k_cache.unsafe_load[width=width, alignment=16](at)
                values[i] = v_cache.unsafe_load[width=width, alignment=16](at)
        var scores = Array[Float32, tile](fill=LOWEST)
        comptime for i in range(tile):
            var score = sum_lanes[lanes]((keys[i].cast[DType.float32]() * q).reduce_add())
            if start + i * at_once + group < end:
                scores[i] = score
        running.take[tile, dtype](scores, values)
    merge_warps(room_for[MERGING_ROOM](), running, parts, scales, (row * n_head + head) * n_splits + split)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def cross_attention_kernel[
    dtype: DType, n_head: Int, n_splits: Int, together: Int, pdl: Bool
](
    parts: Floats,  # as in `self_attention_kernel`
    scales: Floats,
    query: Floats,
    k: Cache[dtype],  # [n_audio, n_head, n_keys, HEAD_DIM], as v
    v: Cache[dtype],
    n: Int32,  # rows of an audio
    n_keys: Int32,
):
    """Attend to all of the audio. A block reads keys once for some rows; the first ones early."""
    comptime width = width_of[dtype]()
    comptime lanes = HEAD_DIM // width  # that share a key
    comptime at_once = THREADS // lanes  # keys
    comptime tile = 96 // at_once
    comptime Keys = Array[SIMD[dtype, width], tile]
    var split = Int(block_idx.x)
    var head = Int(block_idx.y)
    var n_blocks = (UInt32(n) + UInt32(together) - 1) // UInt32(together)  # of an audio
    var audio = Int(UInt32(block_idx.z) // n_blocks)
    var first = (Int(block_idx.z) - audio * Int(n_blocks)) * together  # of the audio's rows
    var group = Int(thread_idx.x) // lanes
    var d = Int(thread_idx.x) % lanes * width
    var share = (Int(n_keys) + n_splits - 1) // n_splits
    var begin = split * share
    var end = min(begin + share, Int(n_keys))
    var base = (audio * n_head + head) * Int(n_keys) * HEAD_DIM + d
    var keys = Keys(fill=0)
    var values = Keys(fill=0)
    comptime for i in range(tile):
        var at = base + min(begin + i * at_once + group, Int(n_keys) - 1) * HEAD_DIM
        keys[i] = k.unsafe_load[width=width, alignment=16](at)
        values[i] = v.unsafe_load[width=width, alignment=16](at)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var queries = Array[SIMD[DType.float32, width], together](fill=0)
    var running = Array[Running[width], together](fill=Running[width]())
    comptime for m in range(together):
        var row = audio * Int(n) + min(first + m, Int(n) - 1)
        queries[m] = query.unsafe_load[width=width, alignment=16]((row * n_head + head) * HEAD_DIM + d) * SCALE
    for start in range(begin, end, tile * at_once):
        var next_keys = Keys(fill=0)
        var next_values = Keys(fill=0)
        if start + tile * at_once < end:
            comptime for i in range(tile):
                var key = min(start + (tile + i) * at_once + group, Int(n_keys) - 1)
                next_keys[i] = k.unsafe_load[width=width, alignment=16](base + key * HEAD_DIM)
                next_values[i] = v.unsafe_load[width=width, alignment=16](base + key * HEAD_DIM)
        comptime for m in range(together):
            var scores = Array[Float32, tile](fill=LOWEST)
            comptime for i in range(tile):
                var score = sum_lanes[lanes]((keys[i].cast[DType.float32]() * queries[m]).reduce_add())
                if start + i * at_once + group < end:
                    scores[i] = score
            running[m].take[tile, dtype](scores, values)
        keys = next_keys^
        values = next_values^
    var room = room_for[MERGING_ROOM]()
    comptime for m in range(together):
        if first + m < Int(n):
            var row = audio * Int(n) + first + m
            merge_warps(room, running[m], parts, scales, (row * n_head + head) * n_splits + split)
        comptime if m + 1 < together:
            barrier()
