"""A model's activations against float64, one by one: the first that its own op does not explain is the culprit.

Nothing here knows of Whisper. To use it for a model of your own: write its data flow down (`reference.flow.dataflow`), naming the table's
op that computes each activation and what from; capture your activations under these names; and ask.

    flow = {
        "ln": Step("layer_norm", ("x", "ln.weight", "ln.bias")),
        "fc": Step("linear", ("ln", "fc.weight", "fc.bias")),
        "out": Step("residual", ("x", "fc")),
    }
    given = {"x": x, **weights}
    culprit = first_divergence(compare_activations(flow, activations, given, truth(flow, given)))
    print(culprit or "equal within rounding")

An op that the table lacks is one more row of it (`reference.ops`). This module needs neither MAX nor
`maxwhisper`; PyTorch is imported when it is asked for its own result (`judge_with_pytorch`).
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, evaluate, look_up, parse
from reference.numerics.bounds import Approx
from reference.numerics.compare import MAX_VACUOUS, Verdict, compare, same_non_finite
from reference.ops import TABLE
from reference.ops.flow_checks import check_activations, check_flow
from reference.ops.judge import Judged, judge_each, judge_with_pytorch
from reference.parity.resemblance import resemblance
from reference.parity.rewrites import biased_keys


@dataclass(frozen=True)
class Error:
    """How far from float64 after all ops up to here: root mean square, and largest."""

    rms: float
    largest: float

    @staticmethod
    def of(array: np.ndarray, truth: np.ndarray) -> "Error":
        """Of finite elements; infinite where shapes differ, or what is finite and what is not."""
        if array.shape != truth.shape or not same_non_finite(array, truth).all():
            return Error(np.inf, np.inf)
        finite = np.isfinite(truth)
        difference = array[finite] - truth[finite]
        return Error(rms(difference), float(np.abs(difference).max(initial=0.0)))


@dataclass(frozen=True)
class Compared:
    """The comparison of one activation."""

    name: str
    op: str
    shape: tuple[int, ...]
    in_situ: Verdict  # on its op, from the implementation's own inputs
    pytorch: Verdict  # on PyTorch's op, from the same
    error: Error  # cumulative
    peer: Error | None  # another implementation's, if it is known
    size: float  # the truth's root mean square
    resembles: str = ""  # what it looks like, if it fails
    rewritten: str = ""  # why it may differ all the same

    @property
    def passes(self) -> bool:
        """Inside both gates, and the bounds say something; or rewritten to the same effect."""
        return bool(self.rewritten) or (self.in_situ.passes and self.in_situ.n_vacuous <= MAX_VACUOUS * self.in_situ.n)

    def __str__(self) -> str:
        if self.rewritten:
            return f"{self.name} ({self.op}): {self.rewritten}"
        vacuous = (
            ""
            if self.passes or not self.in_situ.passes
            else f"; {self.in_situ.n_vacuous} of {self.in_situ.n} bounds say nothing"
        )
        looks = f"; it looks like {self.resembles}" if self.resembles else ""
        return f"{self.name} ({self.op}): {self.in_situ}{vacuous}{looks}"


def compare_activations(
    flow: Dataflow,
    activations: Arrays,
    given: Arrays,
    exact: Arrays,
    peer: Arrays | None = None,
    only: Collection[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    verdict: Callable[..., Judged] = judge_with_pytorch,
) -> Iterator[Compared]:
    """Compare every activation of a data flow, in its order.

    Before them come, as the op "given", inputs and weights that are not what was given.

    Args:
        flow: the data flow.
        activations: what an implementation computed, by name; its inputs and weights, as far as it shows them, under theirs.
        given: weights and inputs, by name.
        exact: `truth` of the same.
        peer: another implementation's activations.
        only: names of what is to be compared; all by default.
        device: "cpu" or "gpu", where the activations were computed.
        dtype: "float32", "float16" or "bfloat16", that of the activations.
        verdict: `judge_with_pytorch`, or, in half the time and without PyTorch, `judge_alone` of `reference.ops.judge`.

    Raises:
        DataflowError: the flow can't be followed, or an activation or an input is missing.
    """
    check_flow(flow, given)
    check_activations(flow, given, activations, exact, only)
    known = {**given, **activations}
    keys = {parse(key).name: key for key in flow}
    for name, array in given.items():
        if name in activations and name not in keys and (only is None or name in only):
            shown = _compare_given(name, activations[name], array)
            if not shown.passes:
                yield shown
    wanted = {key: step for key, step in flow.items() if only is None or parse(key).name in only}
    for name, judged in judge_each(wanted, known, dtype, verdict, device):
        array, peers = activations[name], (peer or {}).get(name)
        resembles, rewritten = (
            ("", "") if judged.actual.passes else _explain(flow, keys[name], known, judged.expected, dtype)
        )
        yield Compared(
            name=name,
            op=flow[keys[name]].op,
            shape=array.shape,
            in_situ=judged.actual,
            pytorch=judged.pytorch,
            error=Error.of(array, exact[name]),
            peer=None if peers is None else Error.of(peers, exact[name]),
            size=rms(exact[name][np.isfinite(exact[name])]),
            resembles=resembles,
            rewritten=rewritten,
        )


def first_divergence(compared: Iterable[Compared]) -> Compared | None:
    """The first activation outside its bounds, or None."""
    return next((activation for activation in compared if not activation.passes), None)


def truth(flow: Dataflow, given: Arrays) -> dict[str, np.ndarray]:
    """Every activation in float64, by definitions alone.

    Raises DataflowError where the flow can't be followed, or not on arrays of these shapes.
    """
    check_flow(flow, given)
    exact = {name: array if array.dtype.kind == "i" else array.astype(np.float64) for name, array in given.items()}
    return evaluate(flow, exact, lambda op, inputs: TABLE[op].define(*inputs))


def rms(x: np.ndarray) -> float:
    """The root mean square, 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def _compare_given(name: str, array: np.ndarray, given: np.ndarray) -> Compared:
    """What an implementation shows of its inputs must be the numbers that were given, none rounded."""
    exact = given.astype(np.float64)
    verdict, size = compare(array, Approx.exact(exact), array.dtype), rms(exact[np.isfinite(exact)])
    verdict = replace(verdict, failures=[f"not what was given: {failure}" for failure in verdict.failures])
    return Compared(
        name, "given", array.shape, verdict, verdict, Error.of(array, exact), None, size, resemblance(array, exact)
    )


def _explain(flow: Dataflow, key: str, known: Arrays, expected: Approx | None, dtype: str) -> tuple[str, str]:
    """What an activation that fails resembles, and why it may differ; nothing if its op can't be computed at all."""
    if expected is None:
        return "", ""
    inputs = {source: look_up(known, source) for source in flow[key].sources}
    resembles, rewritten = resemblance(look_up(known, key), expected.value, inputs), ""
    with suppress(ValueError, IndexError):  # of what comes after it, which need not fit
        rewritten = biased_keys(flow, key, known, expected, dtype)
    return resembles, rewritten
