"""What float64 itself may lose: two sound computations of a definition differ by the order of their sums and by their functions, which are
another processor's, or another library's.

A row's bound says how much, with the roundings of float64. A composed row has none, since bounds of bounds would say nothing: its parts
have, and what they come to in the end is tried.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, evaluate, look_up, parse
from reference.numerics.compare import same_non_finite
from reference.ops import TABLE, Op
from reference.ops.composed import Composed
from reference.ops.judge import expect

# Errors of parts that are independent and uniform (as `Approx.typical` has them) move a result by their sum, each times what it weighs
# there. Such a sum exceeds t of its standard deviations with a probability of no more than 2 exp(-t²/2), since uniform numbers are
# sub-Gaussian: 3e-14 for t = 8. The standard deviation is what random signs give: 16 draws tell it to 18 %.
N_DRAWS, T = 16, 8


def may_lose(op: type[Op], arrays: Iterable[np.ndarray]) -> np.ndarray:
    """How far a sound computation of a row in float64 may be from exact arithmetic, elementwise, of these inputs."""
    arrays = _widened(arrays)
    if not issubclass(op, Composed):
        expected = expect(op, "float64", arrays)
        return np.broadcast_to(expected.worst, expected.value.shape)
    given, exact, rng = dict(zip(op.inputs, arrays, strict=True)), op.define(*arrays), np.random.default_rng(0)

    def compute_badly(name: str, inputs: list[np.ndarray]) -> np.ndarray:
        expected = expect(TABLE[name], "float64", inputs)
        return expected.value + expected.typical * rng.choice([-1.0, 1.0], expected.value.shape)

    draws = [list(evaluate(op.parts, given, compute_badly).values())[-1] for _ in range(N_DRAWS)]
    return T * np.sqrt(np.mean((np.stack(draws) - exact) ** 2, axis=0))


def apart(a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> float:
    """The largest difference of two computations, as a share of what both may lose, `limit` each; up to 1 they are the same."""
    if a.shape != b.shape or not same_non_finite(a, b).all():
        return np.inf
    difference = np.abs(np.subtract(a, b, out=np.zeros(a.shape), where=np.isfinite(a)))
    return float(
        np.max(
            np.divide(difference, 2 * limit, out=np.where(difference > 0, np.inf, 0.0), where=limit > 0), initial=0.0
        )
    )


def apart_in_situ(flow: Dataflow, known: Arrays) -> Iterator[tuple[str, float]]:
    """Of each activation of a data flow, by name, how far it is `apart` from its definition on the inputs that it was computed from.

    known: every activation in float64, and what they were given.
    """
    for name, (op, sources) in flow.items():
        inputs = _widened(look_up(known, source) for source in sources)
        yield parse(name).name, apart(look_up(known, name), TABLE[op].define(*inputs), may_lose(TABLE[op], inputs))


def _widened(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [array if array.dtype.kind == "i" else array.astype(np.float64) for array in arrays]
