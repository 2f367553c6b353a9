"""What an activation should be, given earlier ones: its float64 value, with its error bounds.

If one op lies between, the table's row bounds it; moving or picking numbers adds no error. If
several do, or one without a row, their error is estimated: the value is computed `SAMPLES` times
more, with every op's result off by as much as its rounding typically is. The estimate's worst case
is `BEYOND` times the typical error.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reference.numerics.bounds import SINGLE_TINY, Approx
from reference.numerics.dtypes import DTYPES, unit_roundoff
from reference.ops import find_row
from reference.ops.judge import expect
from reference.port.rows import NoRow, as_definition, row_of
from reference.port.trace import Op, Traced, mapped, widened

SAMPLES = 8
BEYOND = 20.0

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Expected:
    """An activation's value and bounds."""

    approx: Approx
    ops: tuple[Op, ...]  # between it and what it is computed from; those that move numbers included
    estimated: bool  # whether the bounds are


def ops_between(traced: Traced, name: str, known: Iterable[str]) -> tuple[Op, ...]:
    """Return the ops that compute an activation from known ones, in order."""
    known, needed, stack = set(known), set[str](), [name]
    while stack:
        current = stack.pop()
        if current not in needed:
            needed.add(current)
            stack += [source for source in traced.ops[current].sources if source not in known]
    return tuple(op for own, op in traced.ops.items() if own in needed)


def expected(traced: Traced, name: str, known: Tensors, dtype: str = "float32", device: str = "cpu") -> Expected:
    """Compute an activation in float64 from known ones, with its bounds.

    Args:
        traced: The original.
        name: The activation.
        known: The original's weights and inputs, and the port's activations, by name.
        dtype: The port's dtype.
        device: Where the port ran, "cpu" or "gpu".
    """
    ops = ops_between(traced, name, known)
    values: dict[str, Any] = {
        source: widened(known[source], torch.float64) for op in ops for source in op.sources if source in known
    }
    rounding = [op for op in ops if not row_of(op).is_exact]
    if len(rounding) > 1 or any(not row_of(op).row for op in rounding):
        return Expected(_estimated(ops, values, dtype, device), ops, estimated=True)
    errors = dict[str, tuple[Any, Any]]()
    estimated = False
    for op in ops:
        if row_of(op).is_exact:
            values[op.name] = op.compute(values, torch.float64)
            errors |= _passed_on(op, values, errors)
            continue
        if (approx := _by_row(op, values, dtype, device)) is None:
            approx, estimated = _estimated((op,), values, dtype, device), True
        values[op.name], *both = (torch.from_numpy(np.array(part)) for part in _parts(approx))
        errors[op.name] = both[0], both[1]
    worst, typical = errors.get(name, (torch.zeros_like(values[name]),) * 2)
    return Expected(Approx(*(as_definition(x) for x in (values[name], worst, typical))), ops, estimated)


def _parts(approx: Approx) -> list[np.ndarray]:
    """Return value, worst and typical error, of one shape."""
    parts = (approx.value, approx.worst, approx.typical)
    return [np.broadcast_to(part, np.shape(approx.value)) for part in parts]


def _by_row(op: Op, values: Mapping[str, Any], dtype: str, device: str) -> Approx | None:
    """Bound an op's result by its row, if it has one."""
    row = row_of(op)
    if not row.row:
        return None
    try:
        taken = op.call(row.takes, values)
    except NoRow:
        return None
    arrays = [as_definition(x) for x in taken.arrays]
    return expect(find_row(row.row), dtype, arrays, device=device, attributes=taken.attributes)


def _passed_on(op: Op, values: Mapping[str, Any], errors: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return the errors of an exact op's result: how far it moves if its sources are off."""
    if not any(source in errors for source in op.sources):
        return {}

    def distance(which: int, sign: int) -> Any:
        off = {
            source: _each(lambda value, error: value + sign * error, values[source], errors[source][which])
            for source in op.sources
            if source in errors
        }
        return _each(_apart, op.compute({**values, **off}, torch.float64), values[op.name])

    worst, typical = (_each(torch.maximum, distance(which, 1), distance(which, -1)) for which in (0, 1))
    return {op.name: (worst, typical)}


def _each(function: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """Apply a function to two arrays, or to the arrays of two lists."""
    if isinstance(x, (list, tuple)):
        return [_each(function, a, b) for a, b in zip(x, y, strict=True)]
    return function(x, y)


def _apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return how far two arrays are apart; 0 where they are infinite."""
    return torch.nan_to_num((x - y).abs()) if x.is_floating_point() else torch.zeros(x.shape, dtype=torch.float64)


def _estimated(ops: tuple[Op, ...], values: Mapping[str, Any], dtype: str, device: str) -> Approx:
    """Estimate how far roundings move the last op's result."""
    computed, typical, rowless = dict(values), dict[str, Any](), set[str]()
    unit = unit_roundoff(DTYPES[dtype])
    for op in ops:
        computed[op.name] = op.compute(computed, torch.float64)
        if not row_of(op).is_exact:
            if (approx := _by_row(op, computed, dtype, device)) is None:
                rowless.add(op.name)
            typical[op.name] = (
                mapped(lambda x: unit * x.abs() if _is_floating(x) else x, computed[op.name])
                if approx is None
                else torch.from_numpy(np.array(_parts(approx)[2]))
            )
    exact = computed[ops[-1].name]
    if not _is_floating(exact):
        return Approx.exact(as_definition(exact))
    generator, squares = torch.Generator().manual_seed(0), torch.zeros_like(exact)

    def noisy(x: Any, error: Any) -> Any:
        if not _is_floating(x):
            return x
        return x + torch.randn(x.shape, generator=generator, dtype=torch.float64) * torch.nan_to_num(error)

    for _ in range(SAMPLES):
        sample = dict(values)
        for op in ops:
            shaken = dict[str, Any]()
            if op.name in rowless:
                # Nobody knows how it computes: its inputs are off, too.
                shaken = {source: _each(noisy, x := sample[source], _rounding(x, unit)) for source in op.sources}
            sample[op.name] = op.compute({**sample, **shaken}, torch.float64)
            if op.name in typical:
                sample[op.name] = _each(noisy, sample[op.name], typical[op.name])
        difference = torch.where(torch.isfinite(exact), sample[ops[-1].name] - exact, 0.0)
        squares += torch.nan_to_num(difference) ** 2 / SAMPLES
    # A few samples say little of one element, so it shares its neighbours' along the last axis.
    shared = (squares + squares.mean(-1, keepdim=True)) / 2 if squares.ndim else squares
    error = as_definition(shared.sqrt()) + unit * np.abs(np.nan_to_num(as_definition(exact))) / np.sqrt(3)
    error = error + SINGLE_TINY
    return Approx(as_definition(exact), BEYOND * error, error)


def _is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _rounding(x: Any, unit: float) -> Any:
    """Return how far a relative rounding typically moves numbers."""
    return mapped(lambda part: unit / np.sqrt(3) * part.abs() if _is_floating(part) else part, x)
