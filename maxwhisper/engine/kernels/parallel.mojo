"""The number of cores that work is divided among."""

from std.runtime import parallelism_level

comptime WORTH_SHARING = 1 << 20  # multiply-adds; a core does as many while a second core starts


def n_workers(multiply_adds: Int, n_parts: Int) -> Int:
    """Return the number of cores for work of n_parts with this many multiply-adds in all."""
    return min(parallelism_level(), n_parts) if multiply_adds > WORTH_SHARING else 1
