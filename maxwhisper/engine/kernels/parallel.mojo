"""When work is worth sharing out."""

from std.runtime import parallelism_level

comptime WORTH_SHARING = 1 << 20  # multiply-adds; a core has done as many by the time that another has begun


def n_workers(multiply_adds: Int, n_parts: Int) -> Int:
    """How many cores are to share work of that many multiply-adds, which comes in n_parts."""
    return min(parallelism_level(), n_parts) if multiply_adds > WORTH_SHARING else 1
