"""Interleaved timing: two functions run alternately, so load on the machine slows both alike."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

MIN_SECONDS = 0.02  # of a round of one function: long compared with timer resolution and call cost

_excluded_seconds = 0.0


def clock() -> float:
    """Return seconds, not counting the time spent in counterparts."""
    return time.perf_counter() - _excluded_seconds


class InterleavedTiming:
    """A function to time with `clock`, and its PyTorch counterpart.

    In each round the counterpart runs first, then the function is called `n_calls` times.
    """

    def __init__(self, function: Callable[[], object], counterpart: Callable[[], object]) -> None:
        self._function, self._counterpart = function, counterpart
        self.n_calls, self._n_counterpart_calls = _calls_per_round(function), _calls_per_round(counterpart)
        self.seconds: list[float] = []  # of one call, one number per round of `measure`
        self.counterpart_seconds: list[float] = []  # of one call, one number per round
        self._n_calls_so_far = 0

    def __call__(self) -> None:
        """Call the function once; run the counterpart before if a new round begins."""
        global _excluded_seconds
        begin = time.perf_counter()
        if self._n_calls_so_far % self.n_calls == 0:
            for _ in range(self._n_counterpart_calls):
                self._counterpart()
            self.counterpart_seconds.append((time.perf_counter() - begin) / self._n_counterpart_calls)
        self._n_calls_so_far += 1
        _excluded_seconds += time.perf_counter() - begin
        self._function()

    def measure(self, n_rounds: int) -> float:
        """Run n_rounds rounds and return the ratio of the function's time to its counterpart's."""
        self.seconds.clear()
        self.counterpart_seconds.clear()
        for _ in range(n_rounds):
            begin = clock()
            for _ in range(self.n_calls):
                self()
            self.seconds.append((clock() - begin) / self.n_calls)
        return ratio(self.seconds, self.counterpart_seconds)


def ratio(seconds: Sequence[float], counterpart_seconds: Sequence[float]) -> float:
    """Return the median over rounds of the function's time divided by its counterpart's."""
    return float(np.median(np.array(seconds) / np.array(counterpart_seconds)))


def _calls_per_round(function: Callable[[], object]) -> int:
    """Return how many calls take at least MIN_SECONDS. The first call warms up."""
    function()
    begin = time.perf_counter()
    function()
    return math.ceil(MIN_SECONDS / (time.perf_counter() - begin))
