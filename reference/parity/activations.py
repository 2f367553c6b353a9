"""Comparison of a model's activations with float64; the first outside its bounds is the culprit.

Each activation is judged on the implementation's own inputs of its op, so errors before it do not
count. Nothing here depends on Whisper. To compare a model of your own, write its data flow
(`reference.flow.dataflow`), which names the op of the table that computes each activation, and its
inputs. Then capture your activations under these names, and compare:

    flow = {
        "ln": Step("layer_norm", ("x", "ln.weight", "ln.bias")),
        "fc": Step("linear", ("ln", "fc.weight", "fc.bias")),
        "out": Step("residual", ("x", "fc")),
    }
    given = {"x": x, **weights}
    culprit = first_divergence(compare_activations(flow, activations, given, truth(flow, given)))
    print(culprit or "equal within rounding")

For an op that the table lacks, add a row (`reference.ops`). This module needs neither MAX nor
`maxwhisper`. PyTorch is imported only by `judge_with_pytorch`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, evaluate, look_up, parse
from reference.numerics.bounds import Approx
from reference.numerics.compare import MAX_VACUOUS, Verdict, compare, same_non_finite
from reference.ops import find_row
from reference.ops.flow_checks import check_activations, check_flow
from reference.ops.judge import Judged, judge_each, judge_with_pytorch
from reference.parity.resemblance import resemblance
from reference.parity.rewrites import biased_keys


@dataclass(frozen=True)
class Error:
    """The cumulative error: the difference from float64 after all ops up to an activation."""

    rms: float  # root mean square of the differences
    largest: float  # largest absolute difference

    @staticmethod
    def of(array: np.ndarray, truth: np.ndarray) -> "Error":
        """Compute the error of the finite elements.

        It is infinite if the shapes differ, or if NaN or infinities are at different places.
        """
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
    in_situ: Verdict  # of its op, on the implementation's own inputs
    pytorch: Verdict  # of PyTorch's op on the same inputs
    error: Error  # cumulative
    peer: Error | None  # cumulative error of a second implementation, if given
    size: float  # root mean square in float64
    resembles: str = ""  # if it fails: what the values look like
    rewritten: str = ""  # if it is outside its bounds but correct: why
    estimated: bool = False  # whether the bounds are estimates, as for an op without a row

    @property
    def passes(self) -> bool:
        """Whether it meets both bounds and few are vacuous, or it is rewritten equivalently."""
        return bool(self.rewritten) or (self.in_situ.passes and self.in_situ.n_vacuous <= MAX_VACUOUS * self.in_situ.n)

    def __str__(self) -> str:
        if self.rewritten:
            return f"{self.name} ({self.op}): {self.rewritten}"
        vacuous = (
            ""
            if self.passes or not self.in_situ.passes
            else f"; {self.in_situ.n_vacuous} of {self.in_situ.n} bounds are vacuous"
        )
        likeness = f"; it looks like {self.resembles}" if self.resembles else ""
        return f"{self.name} ({self.op}): {self.in_situ}{vacuous}{likeness}"


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
    """Compare every activation of a data flow, in data-flow order.

    Inputs and weights that the implementation shows must equal those given. Those that do not are
    yielded first, with the op "given".

    Args:
        flow: the data flow.
        activations: what the implementation computed, by name. It may include its inputs and
            weights.
        given: weights and inputs, by name.
        exact: the result of `truth` for the same flow, weights and inputs.
        peer: activations of a second implementation.
        only: names of the activations to compare; all by default.
        device: "cpu" or "gpu": the device that computed the activations.
        dtype: "float32", "float16" or "bfloat16": the dtype of the activations.
        verdict: `judge_with_pytorch`, or `judge_alone` of `reference.ops.judge`, which takes half
            the time and does not need PyTorch.

    Raises:
        DataflowError: if the flow is invalid, or an activation or an input is missing.
    """
    check_flow(flow, given)
    check_activations(flow, given, activations, exact, only)
    arrays = {**given, **activations}
    keys = {parse(key).name: key for key in flow}
    for name, array in given.items():
        if name in activations and name not in keys and (only is None or name in only):
            compared = compare_given(name, activations[name], array)
            if not compared.passes:
                yield compared
    steps = {key: step for key, step in flow.items() if only is None or parse(key).name in only}
    for name, judged in judge_each(steps, arrays, dtype, verdict, device):
        array, peer_array = activations[name], (peer or {}).get(name)
        resembles, rewritten = (
            ("", "") if judged.actual.passes else _explain(flow, keys[name], arrays, judged.expected, dtype)
        )
        yield Compared(
            name=name,
            op=flow[keys[name]].op,
            shape=array.shape,
            in_situ=judged.actual,
            pytorch=judged.pytorch,
            error=Error.of(array, exact[name]),
            peer=None if peer_array is None else Error.of(peer_array, exact[name]),
            size=rms(exact[name][np.isfinite(exact[name])]),
            resembles=resembles,
            rewritten=rewritten,
        )


def first_divergence(compared: Iterable[Compared]) -> Compared | None:
    """Return the first activation that does not pass, or None."""
    return next((activation for activation in compared if not activation.passes), None)


def truth(flow: Dataflow, given: Arrays) -> dict[str, np.ndarray]:
    """Compute every activation in float64 by the definitions of the ops.

    Args:
        flow: the data flow.
        given: weights and inputs, by name; floating-point arrays are converted to float64.

    Raises:
        DataflowError: if the flow is invalid, or does not fit the shapes of the arrays.
    """
    check_flow(flow, given)
    exact = {name: array if array.dtype.kind == "i" else array.astype(np.float64) for name, array in given.items()}
    return evaluate(flow, exact, lambda op, inputs: find_row(op).define(*inputs))


def rms(x: np.ndarray) -> float:
    """Compute the root mean square of an array, 0 if it is empty."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def compare_given(name: str, array: np.ndarray, given: np.ndarray) -> Compared:
    """Compare an input or weight that an implementation shows with the given one, exactly."""
    exact = given.astype(np.float64)
    verdict, size = compare(array, Approx.exact(exact), array.dtype), rms(exact[np.isfinite(exact)])
    verdict = replace(verdict, failures=[f"not what was given: {failure}" for failure in verdict.failures])
    return Compared(
        name, "given", array.shape, verdict, verdict, Error.of(array, exact), None, size, resemblance(array, exact)
    )


def _explain(flow: Dataflow, key: str, arrays: Arrays, expected: Approx | None, dtype: str) -> tuple[str, str]:
    """Explain an activation outside its bounds.

    Returns:
        What it looks like, and why it may differ although it is correct. Both are empty if they
        don't apply, or if its op can't be computed.
    """
    if expected is None:
        return "", ""
    inputs = {source: look_up(arrays, source) for source in flow[key].sources}
    resembles, rewritten = resemblance(look_up(arrays, key), expected.value, inputs), ""
    with suppress(ValueError, IndexError):  # later activations may not fit its shape
        rewritten = biased_keys(flow, key, arrays, expected, dtype)
    return resembles, rewritten
