"""The error of float64 itself.

Two sound computations of a definition differ, because processors and libraries differ in the order
of sums and in their functions. A row's bound, with the roundings of float64, limits this error. A
composed row has no bound, since bounds of bounds would say nothing. Its parts have bounds, and the
total error is estimated from random errors of the parts.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, evaluate, look_up, parse
from reference.numerics.compare import same_non_finite
from reference.ops import Op, find_row
from reference.ops.composed import Composed
from reference.ops.judge import expect

# The errors of the parts are independent and uniform, as `Approx.typical` assumes. They change a
# result by their weighted sum. Uniform numbers are sub-Gaussian, so such a sum exceeds t of its
# standard deviations with a probability of at most 2 exp(-t²/2), which is 3e-14 for t = 8. Errors
# with random signs estimate the standard deviation: 16 draws to within 18 %.
N_DRAWS, T = 16, 8


def may_lose(op: type[Op], arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Return how far a sound float64 computation of a row may be from exact arithmetic.

    Args:
        op: The row.
        arrays: Its inputs.

    Returns:
        The largest error of each element.
    """
    arrays = _widened(arrays)
    if not issubclass(op, Composed):
        expected = expect(op, "float64", arrays)
        return np.broadcast_to(expected.worst, expected.value.shape)
    inputs, exact, rng = dict(zip(op.inputs, arrays, strict=True)), op.define(*arrays), np.random.default_rng(0)

    def compute_with_error(name: str, inputs: list[np.ndarray]) -> np.ndarray:
        expected = expect(find_row(name), "float64", inputs)
        return expected.value + expected.typical * rng.choice([-1.0, 1.0], expected.value.shape)

    draws = [list(evaluate(op.parts, inputs, compute_with_error).values())[-1] for _ in range(N_DRAWS)]
    return T * np.sqrt(np.mean((np.stack(draws) - exact) ** 2, axis=0))


def apart(a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> float:
    """Return the largest difference of two float64 computations, as a share of twice `limit`.

    They agree if it is at most 1.

    Args:
        a: The result of one computation.
        b: The result of the other one.
        limit: The largest error of each of them, elementwise.
    """
    if a.shape != b.shape or not same_non_finite(a, b).all():
        return np.inf
    difference = np.abs(np.subtract(a, b, out=np.zeros(a.shape), where=np.isfinite(a)))
    return float(
        np.max(
            np.divide(difference, 2 * limit, out=np.where(difference > 0, np.inf, 0.0), where=limit > 0), initial=0.0
        )
    )


def apart_in_situ(flow: Dataflow, arrays: Arrays) -> Iterator[tuple[str, float]]:
    """Compare each activation of a data flow with its definition on the activation's own inputs.

    Args:
        flow: The data flow.
        arrays: Every activation in float64, the weights and the model's inputs.

    Yields:
        The activation's name and its difference, see `apart`.
    """
    for name, (op, sources) in flow.items():
        inputs = _widened(look_up(arrays, source) for source in sources)
        yield (
            parse(name).name,
            apart(look_up(arrays, name), find_row(op).define(*inputs), may_lose(find_row(op), inputs)),
        )


def _widened(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Convert all but integers to float64."""
    return [array if array.dtype.kind == "i" else array.astype(np.float64) for array in arrays]
