"""Holding what an implementation computed against float64, op by op, on the inputs that it was really given."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, check_name, look_up, naming, parse
from reference.numerics.bounds import Approx
from reference.numerics.compare import Verdict, compare
from reference.numerics.dtypes import DTYPES
from reference.ops import TABLE, Op
from reference.ops.composed import Composed


class Judged(NamedTuple):
    """The verdict on an implementation, and on PyTorch's op from the same inputs."""

    ours: Verdict
    theirs: Verdict


def witnessed(op: type[Op], dtype: str, inputs: list[np.ndarray], result: np.ndarray, exact: bool = False, device: str = "cpu") -> Judged:
    """The verdict on one op's result: where PyTorch's errors are larger than typical ones, too, larger ones are excused."""
    from reference.ops.torch_counterparts import run_torch  # imports PyTorch, which nothing else here needs

    expected, theirs = expect(op, dtype, inputs, exact, device), run_torch(op, inputs)
    return Judged(compare(result, expected, DTYPES[dtype], theirs), compare(theirs, expected, DTYPES[dtype]))


def unwitnessed(op: type[Op], dtype: str, inputs: list[np.ndarray], result: np.ndarray, device: str = "cpu") -> Judged:
    """The same in half the time: PyTorch is not asked, so nothing is excused. What passes here passes there."""
    alone = compare(result, expect(op, dtype, inputs, device=device), DTYPES[dtype])
    return Judged(alone, alone)


def judge(
    op: type[Op], dtype: str, inputs: list[np.ndarray], results: list[np.ndarray], exact: bool = False, device: str = "cpu"
) -> Judged:
    """The verdict on an op's result; of a composed op, on all parts together, and what fails is what the first of them that does says.

    exact: sums of these inputs are exact in any order, so that nothing but the result's own rounding may be seen. device: where it ran.
    """
    if not issubclass(op, Composed):
        return witnessed(op, dtype, inputs, results[0], exact, device)
    known = dict(zip(op.inputs, inputs, strict=True))
    known |= {parse(part).name: result for part, result in zip(op.parts, results, strict=True)}
    parts = list(judge_each(op.parts, known, dtype, device=device))
    return Judged(*(_all_of([(name, judged[side]) for name, judged in parts]) for side in (0, 1)))


def judge_each(
    flow: Dataflow, known: Arrays, dtype: str = "float32", verdict: Callable[..., Judged] = witnessed, device: str = "cpu"
) -> Iterator[tuple[str, Judged]]:
    """In situ: each activation of a data flow, by name and in order, against its op on the inputs it was computed from.

    known: every activation, and what they were given; verdict: `witnessed` or `unwitnessed`. What can't be computed, fails.

    Raises DataflowError where one is missing.
    """
    verdict = partial(verdict, device=device)
    for name, (op, sources) in flow.items():
        base = parse(name).name
        with naming(name):
            for needed in (*sources, name):
                check_name(needed, known)
        try:
            inputs, result = [look_up(known, source) for source in sources], look_up(known, name)
            heads = {array.shape[1] for array in (*inputs, result) if array.ndim == 4}
            judge_it = partial(_judge_heads, verdict) if len(heads) == 1 and result.ndim == 4 and result.size > LARGE else verdict
            judged = judge_it(TABLE[op], dtype, inputs, result)
        except (ValueError, IndexError, RuntimeError) as error:  # shapes that the op, or a view, can't take
            shapes = ", ".join(str(list(known[parse(source).name].shape)) for source in sources)
            failed = Verdict(known[base].size, [f"{op} can't be computed from inputs of shapes {shapes}: {error}"], np.inf, np.inf)
            judged = Judged(failed, failed)
        yield base, judged


LARGE = 1_000_000  # elements, from which on heads are judged each by itself, on all cores and in arrays small enough to be reused


def _judge_heads(verdict: Callable[..., Judged], op: type[Op], dtype: str, inputs: list[np.ndarray], result: np.ndarray) -> Judged:
    """An op on [batch, n_head, …], of which no head sees another; each has to pass."""

    def judge_head(head: int) -> Judged:
        here = slice(head, head + 1)
        return verdict(op, dtype, [array[:, here] if array.ndim == 4 else array for array in inputs], result[:, here])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter while it computes
        judged = list(pool.map(judge_head, range(result.shape[1])))
    return Judged(*(_all_heads([verdicts[side] for verdicts in judged]) for side in (0, 1)))


def _all_heads(verdicts: list[Verdict]) -> Verdict:
    together = _all_of([(f"head {head}", verdict) for head, verdict in enumerate(verdicts)])
    head = max(range(len(verdicts)), key=lambda head: (bool(verdicts[head].failures), verdicts[head].share))
    worst = verdicts[head].worst
    if worst is not None and len(worst.index) == 4:
        worst = replace(worst, index=(worst.index[0], head, *worst.index[2:]))
    return replace(together, worst=worst)


def _all_of(verdicts: list[tuple[str, Verdict]]) -> Verdict:
    failed = [(name, verdict) for name, verdict in verdicts if not verdict.passes]
    name, shown = failed[0] if failed else max(verdicts, key=lambda pair: pair[1].share)
    return Verdict(
        n=sum(verdict.n for _, verdict in verdicts),
        failures=[f"{name}: {failure}" for failure in shown.failures],
        share=max(verdict.share for _, verdict in verdicts),
        sharp_share=max(verdict.sharp_share for _, verdict in verdicts),
        n_vacuous=sum(verdict.n_vacuous for _, verdict in verdicts),
        worst=shown.worst,
    )


def expect(op: type[Op], dtype: str, inputs: Iterable[np.ndarray], exact: bool = False, device: str = "cpu") -> Approx:
    """An op's value in float64 on these inputs, and how far a sound implementation may be from it; see `judge`."""
    roundings = op.roundings(dtype, device)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = op.bound(roundings, *(array if array.dtype.kind == "i" else array.astype(np.float64) for array in inputs))
        if exact and roundings.store == roundings.accumulate:
            return Approx.exact(expected.value.astype(DTYPES[dtype]).astype(np.float64))
    return expected
