"""Two functions that take turns, so that whatever else a machine does slows both alike, and their ratio is worth keeping."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

AT_LEAST = 0.02  # seconds of a turn: long beside the timer's steps and what a call costs

_stood_still = 0.0


def clock() -> float:
    """Seconds, by a clock that stands still while a twin has its turn."""
    return time.perf_counter() - _stood_still


class Turns:
    """A function to be timed by `clock`, before each turn of which its twin has one. A turn is `n_ours` calls."""

    def __init__(self, ours: Callable[[], object], twin: Callable[[], object]) -> None:
        self._ours, self._twin = ours, twin
        self.n_ours, self._n_twin = _calls(ours), _calls(twin)
        self.seconds: list[float] = []  # of one call, a number for each turn that `take` took
        self.twin_seconds: list[float] = []  # of one call, a number for each turn
        self._n_calls = 0

    def __call__(self) -> None:
        """Call ours, and the twin before where it has its turn."""
        global _stood_still
        begin = time.perf_counter()
        if self._n_calls % self.n_ours == 0:
            for _ in range(self._n_twin):
                self._twin()
            self.twin_seconds.append((time.perf_counter() - begin) / self._n_twin)
        self._n_calls += 1
        _stood_still += time.perf_counter() - begin
        self._ours()

    def take(self, n: int) -> float:
        """The ratio in n turns."""
        self.seconds.clear()
        self.twin_seconds.clear()
        for _ in range(n):
            begin = clock()
            for _ in range(self.n_ours):
                self()
            self.seconds.append((clock() - begin) / self.n_ours)
        return ratio(self.seconds, self.twin_seconds)


def ratio(ours: Sequence[float], twins: Sequence[float]) -> float:
    """The median of our time over the twin's, turn by turn."""
    return float(np.median(np.array(ours) / np.array(twins)))


def _calls(function: Callable[[], object]) -> int:
    """How many calls make a turn."""
    function()
    begin = time.perf_counter()
    function()
    return math.ceil(AT_LEAST / (time.perf_counter() - begin))
