"""Simple explanations of the difference between a wrong array and the right one."""

from collections.abc import Callable, Mapping

import numpy as np

from reference.numerics.dtypes import DTYPES

MAX_UNEXPLAINED = 0.01  # share of the difference (2-norm) that an explanation may leave


def resemblance(actual: np.ndarray, expected: np.ndarray, inputs: Mapping[str, np.ndarray] | None = None) -> str:
    """Describe an array in a few words, if that explains 99 % of its difference from the right one.

    Args:
        actual: the wrong array.
        expected: the right array.
        inputs: inputs of the op, by name; the wrong array may be one of them, unchanged.

    Returns:
        The description; empty if no simple explanation applies.
    """
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
    both_finite = np.isfinite(actual) & np.isfinite(expected)
    if not both_finite.all():
        return (
            _where(np.isfinite(actual) != np.isfinite(expected))
            or "not finite where float64 is, or the other way round"
        )
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    limit = MAX_UNEXPLAINED * _norm(actual - expected)

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
    return next((explanation for test in tests if (explanation := test())), "")


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.ravel()))


def _factor(actual: np.ndarray, expected: np.ndarray, explains: Callable[[np.ndarray], bool]) -> str:
    square = float(np.vdot(expected, expected))
    factor = float(np.vdot(expected, actual)) / square if square else 0.0
    return f"a constant factor of {factor:.4g}" if explains(factor * expected) else ""


def _rounded(expected: np.ndarray, explains: Callable[[np.ndarray], bool]) -> str:
    with np.errstate(over="ignore"):
        names = (name for name, dtype in DTYPES.items() if explains(expected.astype(dtype).astype(np.float64)))
        return next((f"the right one, rounded to {name}" for name in names), "")


def _moved(actual: np.ndarray, expected: np.ndarray, explains: Callable[[np.ndarray], bool]) -> str:
    for axis in range(1, actual.ndim):
        for step in (1, -1):
            inner = (slice(None),) * axis + (slice(1, None) if step == 1 else slice(None, -1),)
            difference = actual[inner] - np.roll(expected, step, axis)[inner]
            if actual.shape[axis] > 2 and _norm(difference) <= MAX_UNEXPLAINED * _norm(actual - expected):
                return f"shifted by one along axis {axis}"
    for a in range(1, actual.ndim):
        for b in range(a + 1, actual.ndim):
            if explains(expected.swapaxes(a, b)):
                return f"axes {a} and {b} swapped"
    return ""


def _saturated(actual: np.ndarray, expected: np.ndarray) -> str:
    for name, limit, clipped in (("above", actual.max(), np.minimum), ("below", actual.min(), np.maximum)):
        at_limit = actual == limit
        if at_limit.sum() > 1 and _norm(actual - clipped(expected, limit)) <= MAX_UNEXPLAINED * _norm(
            actual - expected
        ):
            return f"cut off {name} {limit:.4g}"
    return ""


def _where(wrong: np.ndarray) -> str:
    """Say if all wrong elements are at one index of an axis, or from one index on."""
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
