"""What the machine and its user provide: processor cores and a cache folder."""

import os
from pathlib import Path


def n_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache(name: str) -> Path | None:
    """Return the folder of that name in the user's cache folder; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", name)
    except RuntimeError:
        return None
