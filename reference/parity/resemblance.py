"""What a wrong array looks like beside the right one: the sentence that saves an hour of looking at numbers."""

from collections.abc import Callable, Mapping

import numpy as np

from reference.numerics.dtypes import DTYPES

ENOUGH = 0.01  # of the difference that is to be explained


def resemblance(actual: np.ndarray, expected: np.ndarray, inputs: Mapping[str, np.ndarray] | None = None) -> str:
    """What explains all but a hundredth of the difference of two arrays of one shape, in a few words; empty where no simple test tells.

    inputs: what the op computed from, by name; one of them may have come through as it was.
    """
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
    both = np.isfinite(actual) & np.isfinite(expected)
    if not both.all():
        return (
            _where(np.isfinite(actual) != np.isfinite(expected))
            or "not finite where float64 is, or the other way round"
        )
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    limit = ENOUGH * _norm(actual - expected)

    def explains(other: np.ndarray) -> bool:
        return other.shape == actual.shape and _norm(actual - other) <= limit

    tests: list[Callable[[], str]] = [
        lambda: "all zeros" if not actual.any() and expected.any() else "",
        *(
            lambda name=name, array=array: f"its input {name}, unchanged" if explains(array) else ""
            for name, array in (inputs or {}).items()
        ),
        lambda: _factor(actual, expected, explains),
        lambda: _rounded(expected, explains),
        lambda: _moved(actual, expected, explains),
        lambda: _saturated(actual, expected),
        lambda: _where(np.abs(actual - expected) > limit / np.sqrt(actual.size)),
        lambda: _same_everywhere(actual - expected, limit),
    ]
    return next((found for test in tests if (found := test())), "")


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.ravel()))


def _factor(actual: np.ndarray, expected: np.ndarray, explains: Callable[[np.ndarray], bool]) -> str:
    square = float(np.vdot(expected, expected))
    factor = float(np.vdot(expected, actual)) / square if square else 0.0
    return f"a constant factor of {factor:.4g}" if explains(factor * expected) else ""


def _rounded(expected: np.ndarray, explains: Callable[[np.ndarray], bool]) -> str:
    with np.errstate(over="ignore"):
        found = (name for name, dtype in DTYPES.items() if explains(expected.astype(dtype).astype(np.float64)))
        return next((f"the right one, rounded to {name}" for name in found), "")


def _moved(actual: np.ndarray, expected: np.ndarray, explains: Callable[[np.ndarray], bool]) -> str:
    for axis in range(1, actual.ndim):
        for step in (1, -1):
            inner = (slice(None),) * axis + (slice(1, None) if step == 1 else slice(None, -1),)
            difference = actual[inner] - np.roll(expected, step, axis)[inner]
            if actual.shape[axis] > 2 and _norm(difference) <= ENOUGH * _norm(actual - expected):
                return f"shifted by one along axis {axis}"
    for a in range(1, actual.ndim):
        for b in range(a + 1, actual.ndim):
            if explains(expected.swapaxes(a, b)):
                return f"axes {a} and {b} swapped"
    return ""


def _saturated(actual: np.ndarray, expected: np.ndarray) -> str:
    for name, limit, clipped in (("above", actual.max(), np.minimum), ("below", actual.min(), np.maximum)):
        at_limit = actual == limit
        if at_limit.sum() > 1 and _norm(actual - clipped(expected, limit)) <= ENOUGH * _norm(actual - expected):
            return f"cut off {name} {limit:.4g}"
    return ""


def _where(wrong: np.ndarray) -> str:
    """Whether what is wrong keeps to one index of an axis, or begins at one."""
    for axis in range(wrong.ndim - 1, 0, -1):
        indices = np.flatnonzero(wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis)))
        if len(indices) == 1 and wrong.shape[axis] > 1:
            return f"wrong only at index {indices[0]} of axis {axis}"
    for axis in range(1, wrong.ndim):
        indices = np.flatnonzero(wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis)))
        if len(indices) and indices[0] > 0 and len(indices) >= 0.9 * (wrong.shape[axis] - indices[0]):
            return f"wrong from index {indices[0]} of axis {axis} on"
    return ""


def _same_everywhere(difference: np.ndarray, limit: float) -> str:
    along = tuple(range(difference.ndim - 1))
    if difference.ndim > 1 and _norm(difference - difference.mean(axis=along, keepdims=True)) <= limit:
        return "a term that is the same at every position is missing, or one too many (a bias?)"
    return ""
