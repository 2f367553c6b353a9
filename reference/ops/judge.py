"""Comparison of an implementation's results with float64, op by op, on the inputs of each op."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, check_name, look_up, names, naming, parse
from reference.numerics.bounds import Approx
from reference.numerics.compare import Verdict, compare
from reference.numerics.dtypes import DTYPES
from reference.ops import Op, find_row
from reference.ops.composed import Composed


@dataclass(frozen=True)
class Judged:
    """The verdict on an implementation's result, and on PyTorch's from the same inputs."""

    actual: Verdict
    pytorch: Verdict  # equals `actual` if PyTorch was not run
    # The float64 value with its bounds. None if the op can't be computed from these inputs, or if
    # heads were judged one by one and all pass.
    expected: Approx | None

    @property
    def verdicts(self) -> tuple[Verdict, Verdict]:
        """Both verdicts, the implementation's first."""
        return self.actual, self.pytorch


def judge_with_pytorch(
    op: type[Op], dtype: str, inputs: list[np.ndarray], result: np.ndarray, exact: bool = False, device: str = "cpu"
) -> Judged:
    """Judge one op's result. If PyTorch's errors are larger than typical, so may the result's be.

    This imports PyTorch, which nothing else in this module needs.

    Args:
        op: The row.
        dtype: The dtype under test.
        inputs: The op's inputs.
        result: The implementation's result.
        exact: Whether sums of these inputs are exact in any order, see `judge`.
        device: Where the implementation ran, "cpu" or "gpu".
    """
    from reference.ops.torch_counterparts import run_torch

    expected, peer = expect(op, dtype, inputs, exact, device), run_torch(op, inputs)
    return Judged(compare(result, expected, DTYPES[dtype], peer), compare(peer, expected, DTYPES[dtype]), expected)


def judge_alone(op: type[Op], dtype: str, inputs: list[np.ndarray], result: np.ndarray, device: str = "cpu") -> Judged:
    """Judge one op's result without PyTorch, in half the time.

    Nothing is excused, so a result that passes here passes `judge_with_pytorch`, too.

    Args:
        op: The row.
        dtype: The dtype under test.
        inputs: The op's inputs.
        result: The implementation's result.
        device: Where the implementation ran, "cpu" or "gpu".
    """
    expected = expect(op, dtype, inputs, device=device)
    alone = compare(result, expected, DTYPES[dtype])
    return Judged(alone, alone, expected)


def judge(
    op: type[Op],
    dtype: str,
    inputs: list[np.ndarray],
    results: list[np.ndarray],
    exact: bool = False,
    device: str = "cpu",
) -> Judged:
    """Judge an op's result.

    A composed op is judged part by part, and the verdicts are merged. The reported failure is the
    first failing part's, and `expected` is the last part's.

    Args:
        op: The row.
        dtype: The dtype under test.
        inputs: The op's inputs.
        results: The implementation's results; one for each part of a composed op.
        exact: Whether sums of these inputs are exact in any order. Then only the rounding of the
            result itself is allowed.
        device: Where the implementation ran, "cpu" or "gpu".
    """
    if not issubclass(op, Composed):
        return judge_with_pytorch(op, dtype, inputs, results[0], exact, device)
    arrays = dict(zip(op.inputs, inputs, strict=True))
    arrays |= dict(zip(names(op.parts), results, strict=True))
    parts = list(judge_each(op.parts, arrays, dtype, device=device))
    actual, pytorch = (_all_of([(name, judged.verdicts[side]) for name, judged in parts]) for side in (0, 1))
    return Judged(actual, pytorch, parts[-1][1].expected)


def judge_each(
    flow: Dataflow,
    arrays: Arrays,
    dtype: str = "float32",
    verdict: Callable[..., Judged] = judge_with_pytorch,
    device: str = "cpu",
) -> Iterator[tuple[str, Judged]]:
    """Judge each activation of a data flow in situ: against its op on the activation's own inputs.

    An activation whose op can't be computed from its inputs fails.

    Args:
        flow: The data flow.
        arrays: Every activation, the weights and the model's inputs.
        dtype: The dtype under test.
        verdict: `judge_with_pytorch` or `judge_alone`.
        device: Where the implementation ran, "cpu" or "gpu".

    Yields:
        Each activation's name and verdicts, in order.

    Raises:
        DataflowError: An array is missing.
    """
    for name, (op, sources) in flow.items():
        base = parse(name).name
        with naming(name):
            for needed in (*sources, name):
                check_name(needed, arrays)
        try:
            inputs, result = [look_up(arrays, source) for source in sources], look_up(arrays, name)
            heads = {array.shape[1] for array in (*inputs, result) if array.ndim == 4}
            judge_it = (
                partial(_judge_heads, verdict)
                if len(heads) == 1 and result.ndim == 4 and result.size > LARGE
                else verdict
            )
            judged = judge_it(find_row(op), dtype, inputs, result, device=device)
        except (ValueError, IndexError, RuntimeError) as error:  # the op, or a view, can't take these shapes
            shapes = ", ".join(str(list(arrays[parse(source).name].shape)) for source in sources)
            failed = Verdict(
                arrays[base].size, [f"{op} can't be computed from inputs of shapes {shapes}: {error}"], np.inf, np.inf
            )
            judged = Judged(failed, failed, None)
        yield base, judged


# Number of elements above which heads are judged one by one: on all cores, and in arrays that are
# small enough for their memory to be reused.
LARGE = 1_000_000


def _judge_heads(
    verdict: Callable[..., Judged], op: type[Op], dtype: str, inputs: list[np.ndarray], result: np.ndarray, device: str
) -> Judged:
    """Judge an op on [batch, n_head, ...] head by head. Every head has to pass.

    No head depends on a different one.
    """

    def judge_head(head: int) -> Judged:
        only = slice(head, head + 1)
        return verdict(
            op,
            dtype,
            [array[:, only] if array.ndim == 4 else array for array in inputs],
            result[:, only],
            device=device,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy releases the GIL while it computes
        judged = list(pool.map(judge_head, range(result.shape[1])))
    actual, pytorch = (_all_heads([head.verdicts[side] for head in judged]) for side in (0, 1))
    return Judged(actual, pytorch, None if actual.passes else expect(op, dtype, inputs, device=device))


def _all_heads(verdicts: list[Verdict]) -> Verdict:
    """Merge the verdicts on all heads; the worst element is that of the worst head."""
    together = _all_of([(f"head {head}", verdict) for head, verdict in enumerate(verdicts)])
    head = max(range(len(verdicts)), key=lambda head: (bool(verdicts[head].failures), verdicts[head].worst_case_ratio))
    worst = verdicts[head].worst
    if worst is not None and len(worst.index) == 4:
        worst = replace(worst, index=(worst.index[0], head, *worst.index[2:]))
    return replace(together, worst=worst)


def _all_of(verdicts: list[tuple[str, Verdict]]) -> Verdict:
    """Merge verdicts with their names; the failures are the first failing verdict's."""
    failed = [(name, verdict) for name, verdict in verdicts if not verdict.passes]
    name, reported = failed[0] if failed else max(verdicts, key=lambda pair: pair[1].worst_case_ratio)
    return Verdict(
        n=sum(verdict.n for _, verdict in verdicts),
        failures=[f"{name}: {failure}" for failure in reported.failures],
        worst_case_ratio=max(verdict.worst_case_ratio for _, verdict in verdicts),
        rms_ratio=max(verdict.rms_ratio for _, verdict in verdicts),
        n_vacuous=sum(verdict.n_vacuous for _, verdict in verdicts),
        worst=reported.worst,
    )


def expect(
    op: type[Op],
    dtype: str,
    inputs: Iterable[np.ndarray],
    exact: bool = False,
    device: str = "cpu",
    attributes: Mapping[str, Any] | None = None,
) -> Approx:
    """Compute an op in float64, with the bounds of a sound implementation's error. See `judge`.

    Args:
        op: The row.
        dtype: The dtype under test.
        inputs: The op's inputs.
        exact: See `judge`.
        device: See `judge`.
        attributes: Keyword arguments of the row's bound, such as an epsilon.
    """
    roundings = op.roundings(dtype, device)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = op.bound(
            roundings,
            *(array if array.dtype.kind == "i" else array.astype(np.float64) for array in inputs),
            **(attributes or {}),
        )
        if exact and roundings.store == roundings.accumulate:
            return Approx.exact(expected.value.astype(DTYPES[dtype]).astype(np.float64))
    return expected
