"""Sums and maxima over the lanes of a warp."""

from max.gpu.primitives import warp


@always_inline
def sum_lanes[n: Int](value: Float32) -> Float32:
    """Return the sum of a value over groups of n lanes, in each of them."""
    var sum = value
    comptime for i in range(5):
        comptime if (1 << i) < n:
            sum += warp.shuffle_xor(sum, UInt32(1 << i))
    return sum


@always_inline
def max_lanes[n: Int](value: Float32) -> Float32:
    """Return the maximum of a value over groups of n lanes, in each of them."""
    var most = value
    comptime for i in range(5):
        comptime if (1 << i) < n:
            most = max(most, warp.shuffle_xor(most, UInt32(1 << i)))
    return most


@always_inline
def levels_of[n: Int, lanes: Int]() -> Int:
    """Return how often `scatter_sums` halves n values among lanes."""
    comptime for level in range(6):
        comptime if (1 << level) == min(n, lanes):
            return level
    return 0


@always_inline
def scatter_sums[n: Int, lanes: Int](values: Array[Float32, n], lane: Int) -> Array[Float32, max(1, n // lanes)]:
    """Sum each of n values over groups of lanes, and leave each lane with its share of the sums.

    n and lanes are powers of two. Lane i has the sums of the values from
    (i % min(n, lanes)) * max(1, n / lanes) on. This takes n shuffles, where sums in all lanes would
    take n * log2(lanes).
    """
    comptime levels = levels_of[n, lanes]()
    var kept = values.copy()
    comptime for level in range(levels):
        comptime bit = 1 << (levels - 1 - level)
        comptime half = n >> (level + 1)
        var upper = (lane & bit) != 0
        comptime for i in range(half):
            var given = kept[i] if upper else kept[half + i]
            var own = kept[half + i] if upper else kept[i]
            kept[i] = own + warp.shuffle_xor(given, UInt32(bit))
    var sums = Array[Float32, max(1, n // lanes)](fill=0)
    comptime for i in range(max(1, n // lanes)):
        sums[i] = kept[i]
    # Each value may still lie in several lanes.
    comptime for i in range(5):
        comptime if (1 << i) >= n and (1 << i) < lanes:
            sums[0] += warp.shuffle_xor(sums[0], UInt32(1 << i))
    return sums^
