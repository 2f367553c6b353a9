"""Decide whether one side is slower than the other beyond the machine's noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_ROUNDS = 21
# Pairs of processes that must agree. Memory layout differs between processes and changes the time
# of small ops by 10 %.
N_AGREEING = 3
MIN_DIFFERENCE = 0.1  # of the time: smaller differences are not reported
# The interval from the 6th smallest to the 6th largest of 21 ratios contains their median with
# probability 0.97, for any distribution: P(at most 5 of 21 below the median) = 27896 / 2^21
# (binomial). A few disturbed measurements on either side don't change it.
N_OUTSIDE = 5


@dataclass(frozen=True)
class Speed:
    """The time of a call on both sides, from one pair of processes."""

    old: float  # seconds, median
    new: float  # seconds, median
    ratio: float  # NEW / OLD, median over rounds
    low: float  # the noise interval of the ratio
    high: float

    @classmethod
    def of(cls, old: Sequence[float], new: Sequence[float]) -> "Speed":
        ratios = np.sort(np.array(new) / np.array(old))
        return cls(
            *map(float, (np.median(old), np.median(new), np.median(ratios), ratios[N_OUTSIDE], ratios[-1 - N_OUTSIDE]))
        )

    @property
    def judged(self) -> str:
        """The verdict "slower" or "faster" if beyond noise, else an empty string."""
        if self.low > 1 and self.ratio > 1 + MIN_DIFFERENCE:
            return "slower"
        return "faster" if self.high < 1 and self.ratio < 1 / (1 + MIN_DIFFERENCE) else ""


def agreed(speeds: Sequence[Speed]) -> str:
    """Return the verdict of N_AGREEING pairs of processes if they agree, else an empty string."""
    verdicts = {speed.judged for speed in speeds}
    return verdicts.pop() if len(speeds) >= N_AGREEING and len(verdicts) == 1 else ""
