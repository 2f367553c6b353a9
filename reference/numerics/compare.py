"""The strict comparison of an implementation's result with float64.

Nothing is broadcast, there is no tolerance besides the bounds, and comparing nothing is a failure.
"""

from dataclasses import dataclass, field

import numpy as np

from reference.numerics.bounds import Approx
from reference.numerics.dtypes import largest

# The largest root mean square of an implementation's errors, in units of the typical error.
# Independent roundings stay near 1, a sum without blocking near 2. A wrong constant, a lost term or
# a narrower accumulator goes far beyond.
MAX_RMS = 4.0
# The same for a single channel, an index along the last axis, because one wrong weight shows in one
# channel.
MAX_RMS_IN_CHANNEL = 8.0
MIN_IN_CHANNEL = 64  # elements of a channel that its root mean square is computed from
MAX_VACUOUS = 0.01  # largest share of elements whose bound is vacuous


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
        index = ", ".join(map(str, self.index))
        values = f"{self.actual:.9g}, float64 {self.expected:.9g}"
        return f"worst at [{index}]: {values}, off by {self.error:.3g}, bound {self.bound:.3g}"


@dataclass(frozen=True)
class Verdict:
    """The result of one comparison. Both ratios pass up to 1."""

    n: int  # number of elements
    failures: list[str] = field(default_factory=list)
    # The largest error as a share of its worst-case bound.
    worst_case_ratio: float = 0.0
    # The root mean square of the errors, each in units of its typical error, as a share of
    # `MAX_RMS`; or that of one channel as a share of `MAX_RMS_IN_CHANNEL`, whichever is larger.
    rms_ratio: float = 0.0
    # Elements whose worst-case bound exceeds the largest magnitude, so that they could hardly fail.
    n_vacuous: int = 0
    worst: Worst | None = None

    @property
    def passes(self) -> bool:
        """Whether the result is within the worst-case and the statistical bound."""
        return not self.failures

    def __str__(self) -> str:
        gates = f"{self.worst_case_ratio:.3g} of the worst-case bound, {self.rms_ratio:.3g} of the statistical bound"
        if not self.failures:
            return gates
        # Without a worst element nothing was computed, so there are no ratios.
        return "; ".join([*self.failures, *([gates, str(self.worst)] if self.worst else [])])


def compare(actual: np.ndarray, expected: Approx, dtype: np.dtype, peer: np.ndarray | None = None) -> Verdict:
    """Compare an implementation's result with float64, against both bounds.

    Args:
        actual: The implementation's result.
        expected: The float64 value with its bounds.
        dtype: The dtype that `actual` must have.
        peer: The result of a different sound implementation for the same inputs. If its errors are
            larger than typical, the problem itself is ill-conditioned, and `actual` may have errors
            as large.
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
    overflown = finite & np.isinf(computed) & (np.sign(computed) * truth + worst > largest(dtype))  # correctly
    mismatched = ~same_non_finite(computed, truth) & ~overflown
    if mismatched.any():
        failure = (
            f"not finite where float64 is, or the other way round: {int(mismatched.sum())} of {truth.size} elements"
        )
        return Verdict(truth.size, [failure], np.inf, np.inf, 0, _worst(np.argmax(mismatched), computed, truth, worst))

    failures: list[str] = []
    judged = finite & ~overflown
    error = np.abs(np.where(judged, computed, 0) - np.where(judged, truth, 0))
    ratio = _ratio(error, worst)
    largest_at = np.argmax(ratio)
    if ratio.flat[largest_at] > 1:
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
            index, rms, limit = channel
            rms_ratio = max(rms_ratio, rms / limit)
            if rms > limit:
                failures.append(
                    f"root mean square of errors {rms:.3g} times the typical one at index {index} of the last axis"
                )
    extent = np.abs(truth[finite]).max(initial=0.0)
    n_vacuous = int((worst[finite] > extent).sum()) if extent else 0
    return Verdict(
        truth.size,
        failures,
        float(ratio.flat[largest_at]),
        float(rms_ratio),
        n_vacuous,
        _worst(largest_at, computed, truth, worst),
    )


def _worst_channel(
    computed: np.ndarray, truth: np.ndarray, typical: np.ndarray, rounded: np.ndarray, peer: np.ndarray | None
) -> tuple[int, float, float] | None:
    """Return the channel whose errors come closest to their limit.

    Returns:
        The index along the last axis, its root mean square in typical errors, and the limit of
        that; None if there are too few elements in each channel.
    """
    if truth.ndim < 2 or truth.size < MIN_IN_CHANNEL * truth.shape[-1]:
        return None

    def rms_of_channels(values: np.ndarray) -> np.ndarray:
        errors = np.divide(values - truth, typical, out=np.zeros_like(truth), where=rounded)
        n = np.maximum(rounded.reshape(-1, truth.shape[-1]).sum(0), MIN_IN_CHANNEL)
        return np.sqrt((errors.reshape(-1, truth.shape[-1]) ** 2).sum(0) / n)

    own = rms_of_channels(computed)
    others = np.nan_to_num(rms_of_channels(peer.astype(np.float64)), nan=1.0, posinf=1.0) if peer is not None else 1.0
    limit = MAX_RMS_IN_CHANNEL * np.maximum(1.0, others)
    index = int(np.argmax(own / limit))
    return index, float(own[index]), float(np.broadcast_to(limit, own.shape)[index])


def same_non_finite(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Test elementwise: both finite, or both the same infinity, or both NaN."""
    return (np.isnan(a) == np.isnan(b)) & (np.isposinf(a) == np.isposinf(b)) & (np.isneginf(a) == np.isneginf(b))


def _ratio(error: np.ndarray, bound: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / np.abs(bound))  # a bound may be -0.0


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _worst(flat: np.intp, computed: np.ndarray, truth: np.ndarray, bound: np.ndarray) -> Worst:
    index = tuple(int(i) for i in np.unravel_index(flat, truth.shape))
    return Worst(index, float(computed[index]), float(truth[index]), float(bound[index]))
