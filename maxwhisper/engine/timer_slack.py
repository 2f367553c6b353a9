"""Keeps MAX's logging thread from using the processor while a loaded model is idle."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30  # Linux, prctl(2)
SLACK = 100_000_000  # nanoseconds

# Looked up once, because `relaxed_timers` surrounds every call of a graph.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@contextmanager
def relaxed_timers() -> Iterator[None]:
    """Allow threads that are started in the body to wake up to 0.1 s late.

    When the first graph runs, MAX 26.7 starts a thread that checks every 0.1 ms whether there is
    something to log. It runs until the process ends and takes a tenth of a core
    (`tests/test_max_defects.py`). On Linux a thread inherits the timer slack of the thread that
    starts it.
    """
    if _prctl is None:
        yield
        return
    slack = _prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
    _prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(SLACK), 0, 0, 0)
    try:
        yield
    finally:
        _prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(slack), 0, 0, 0)
