"""The number of processor cores, and the user's cache folder."""

import os
from pathlib import Path


def n_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache(name: str) -> Path | None:
    """Return the folder `name` in the user's cache folder; None if there is no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", name)
    except RuntimeError:
        return None
