"""Whether one side is slower than the other, or the machine only seems to say so."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_ROUNDS = 21
N_AGREEING = 3  # pairs of processes: where memory lies differs from one to the next, and moves small ops by a tenth
AT_LEAST = 0.1  # of the time, which nobody would look into
# Of 21 ratios the sixth smallest and the sixth largest lie around their median 97 times in 100, whatever they are distributed like
# (binomially, P(at most 5 of 21 below the median) = 27896 / 2^21), though a few turns on either side be disturbed.
N_OUTSIDE = 5


@dataclass(frozen=True)
class Speed:
    """Seconds of a call on either side, medians; NEW's over OLD's turn by turn: its median and the interval that noise explains."""

    old: float
    new: float
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, old: Sequence[float], new: Sequence[float]) -> "Speed":
        ratios = np.sort(np.array(new) / np.array(old))
        return cls(
            *map(float, (np.median(old), np.median(new), np.median(ratios), ratios[N_OUTSIDE], ratios[-1 - N_OUTSIDE]))
        )

    @property
    def judged(self) -> str:
        """ "slower" or "faster" beyond noise, else nothing."""
        if self.low > 1 and self.ratio > 1 + AT_LEAST:
            return "slower"
        return "faster" if self.high < 1 and self.ratio < 1 / (1 + AT_LEAST) else ""


def agreed(seen: Sequence[Speed]) -> str:
    """What all pairs of processes say of a line, where they agree."""
    verdicts = {speed.judged for speed in seen}
    return verdicts.pop() if len(seen) >= N_AGREEING and len(verdicts) == 1 else ""
