"""A loaded model that is not asked anything leaves the processor alone."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30  # Linux, prctl(2)
SLACK = 100_000_000  # nanoseconds

_prctl = (
    ctypes.CDLL(None).prctl if sys.platform == "linux" else None
)  # looked up once: `late_timers` is around every call of a graph


@contextmanager
def late_timers() -> Iterator[None]:
    """Threads that start in here may wake up to 0.1 s later than they ask for.

    At the first graph that runs, MAX 26.7 starts a thread that looks every 0.1 ms whether there is something to log, for as long as the
    process lives, which takes a tenth of a core (`tests/test_max_defects.py`). Linux hands a thread's timer slack on to those it starts.
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
