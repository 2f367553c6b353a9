"""The strict comparator: nothing is broadcast, nothing is close enough, and comparing nothing is a failure."""

from dataclasses import dataclass, field

import numpy as np

from reference.numerics.bounds import Approx
from reference.numerics.dtypes import largest

# How many of its typical errors an implementation's root mean square may reach. Rounding that is independent stays near 1, a sum
# without any blocking near 2; a wrong constant, a lost term or a narrower accumulator goes far beyond.
MAX_RMS = 4.0
# And that of a channel alone, a place along the last axis, where there are enough of its elements: one wrong weight shows in one channel.
MAX_RMS_IN_CHANNEL = 8.0
ENOUGH = 64
MAX_VACUOUS = 0.01  # of all elements


@dataclass(frozen=True)
class Worst:
    """The element that comes closest to its bound, or exceeds it most."""

    index: tuple[int, ...]
    actual: float
    expected: float
    bound: float

    @property
    def error(self) -> float:
        return abs(self.actual - self.expected)

    def __str__(self) -> str:
        at = ", ".join(map(str, self.index))
        return f"worst at [{at}]: {self.actual:.9g}, float64 {self.expected:.9g}, off by {self.error:.3g}, bound {self.bound:.3g}"


@dataclass(frozen=True)
class Verdict:
    """The result of one comparison.

    worst_case_ratio: the largest error as a share of its worst-case bound. rms_ratio: the root mean
    square of errors, each in units of its typical one, as a share of `MAX_RMS`, or of a channel as a
    share of `MAX_RMS_IN_CHANNEL`, whichever is more. Both pass up to 1. n_vacuous: elements, of n,
    whose worst-case bound is wider than any value is large, so that nothing could exceed it.
    """

    n: int
    failures: list[str] = field(default_factory=list)
    worst_case_ratio: float = 0.0
    rms_ratio: float = 0.0
    n_vacuous: int = 0
    worst: Worst | None = None

    @property
    def passes(self) -> bool:
        """Inside both gates."""
        return not self.failures

    def __str__(self) -> str:
        gates = f"{self.worst_case_ratio:.3g} of the worst-case bound, {self.rms_ratio:.3g} of the statistical one"
        return (
            "; ".join([*self.failures, gates, *([str(self.worst)] if self.worst else [])]) if self.failures else gates
        )


def compare(actual: np.ndarray, expected: Approx, dtype: np.dtype, peer: np.ndarray | None = None) -> Verdict:
    """Hold an implementation's result against float64 and both gates.

    actual: what was computed, to be of `dtype`; expected: the float64 value with its bounds; peer: what another sound implementation
    computed from the same inputs. Where its errors are larger than typical the problem itself is ill-conditioned, and ours may be, too.
    """
    truth = np.asarray(expected.value, np.float64)
    if actual.dtype != dtype:
        return Verdict(actual.size, [f"dtype {actual.dtype} instead of {dtype}"])
    if actual.shape != truth.shape:
        return Verdict(actual.size, [f"shape {actual.shape} instead of {truth.shape}"])
    if actual.size == 0:
        return Verdict(0, ["nothing was compared"])

    computed, worst, typical = (
        actual.astype(np.float64),
        *(np.broadcast_to(b, truth.shape) for b in (expected.worst, expected.typical)),
    )
    finite = np.isfinite(truth)
    if not ((worst >= 0) & (typical >= 0))[finite].all():
        return Verdict(truth.size, ["the bound itself is not a number"])
    overflown = finite & np.isinf(computed) & (np.sign(computed) * truth + worst > largest(dtype))  # rightly
    strange = ~same_non_finite(computed, truth) & ~overflown
    if strange.any():
        failure = f"not finite where float64 is, or the other way round: {int(strange.sum())} of {truth.size} elements"
        return Verdict(truth.size, [failure], np.inf, np.inf, 0, _worst(np.argmax(strange), computed, truth, worst))

    failures: list[str] = []
    judged = finite & ~overflown
    error = np.abs(np.where(judged, computed, 0) - np.where(judged, truth, 0))
    ratio = _ratio(error, worst)
    at = np.argmax(ratio)
    if ratio.flat[at] > 1:
        failures.append(f"{int((ratio > 1).sum())} of {truth.size} elements exceed the worst-case bound")

    rounded = judged & (typical > 0)
    rms_ratio = 0.0
    if rounded.any():
        own = _rms(error[rounded] / typical[rounded])
        others = 0.0 if peer is None else _rms((peer.astype(np.float64)[rounded] - truth[rounded]) / typical[rounded])
        rms_ratio = own / (MAX_RMS * max(1.0, others if np.isfinite(others) else 1.0))
        if rms_ratio > 1:
            failures.append(
                f"root mean square of errors {own:.3g} times the typical one (the other implementation's {others:.3g})"
            )
        if (channel := _worst_channel(computed, truth, typical, rounded, peer)) is not None:
            place, rms, allowed = channel
            rms_ratio = max(rms_ratio, rms / allowed)
            if rms > allowed:
                failures.append(
                    f"root mean square of errors {rms:.3g} times the typical one at index {place} of the last axis"
                )
    extent = np.abs(truth[finite]).max(initial=0.0)
    n_vacuous = int((worst[finite] > extent).sum()) if extent else 0
    return Verdict(
        truth.size, failures, float(ratio.flat[at]), float(rms_ratio), n_vacuous, _worst(at, computed, truth, worst)
    )


def _worst_channel(
    computed: np.ndarray, truth: np.ndarray, typical: np.ndarray, rounded: np.ndarray, peer: np.ndarray | None
) -> tuple[int, float, float] | None:
    """The place along the last axis whose errors come closest to what is allowed there, their root mean square, and what is allowed."""
    if truth.ndim < 2 or truth.size < ENOUGH * truth.shape[-1]:
        return None

    def rms_of_channels(values: np.ndarray) -> np.ndarray:
        errors = np.divide(values - truth, typical, out=np.zeros_like(truth), where=rounded)
        n = np.maximum(rounded.reshape(-1, truth.shape[-1]).sum(0), ENOUGH)
        return np.sqrt((errors.reshape(-1, truth.shape[-1]) ** 2).sum(0) / n)

    own = rms_of_channels(computed)
    others = np.nan_to_num(rms_of_channels(peer.astype(np.float64)), nan=1.0, posinf=1.0) if peer is not None else 1.0
    allowed = MAX_RMS_IN_CHANNEL * np.maximum(1.0, others)
    place = int(np.argmax(own / allowed))
    return place, float(own[place]), float(np.broadcast_to(allowed, own.shape)[place])


def same_non_finite(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise: both finite, or both the same infinity, or both no number."""
    return (np.isnan(a) == np.isnan(b)) & (np.isposinf(a) == np.isposinf(b)) & (np.isneginf(a) == np.isneginf(b))


def _ratio(error: np.ndarray, bound: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / bound)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _worst(flat: np.intp, computed: np.ndarray, truth: np.ndarray, bound: np.ndarray) -> Worst:
    index = tuple(int(i) for i in np.unravel_index(flat, truth.shape))
    return Worst(index, float(computed[index]), float(truth[index]), float(bound[index]))
