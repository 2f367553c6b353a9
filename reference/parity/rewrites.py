"""Activations that differ because they are computed in a different but equivalent way."""

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, Step, look_up, parse
from reference.numerics.bounds import Approx
from reference.numerics.compare import compare
from reference.numerics.dtypes import DTYPES, unit_roundoff
from reference.ops import TABLE
from reference.ops.judge import judge


def biased_keys(flow: Dataflow, name: str, arrays: Arrays, expected: Approx, dtype: str) -> str:
    """Explain keys of an attention that differ by the same vector at all positions.

    Such a bias adds a constant to all scores of a query, and softmax ignores it. To confirm that,
    the context is compared with the one computed from the keys without the bias.

    Args:
        flow: the data flow.
        name: the activation's key in it.
        arrays: activations, weights and inputs, by name.
        expected: the activation in float64, with its error bounds.
        dtype: "float32", "float16" or "bfloat16": the dtype of the activations.

    Returns:
        The explanation; empty if the activation is no such key.
    """
    scores, step = _find_consumer(flow, name, ("attention_scores", "attention", "masked_attention"), 1)
    if step is None:
        return ""
    actual = arrays[parse(name).name]
    if actual.shape != expected.value.shape or not np.isfinite(actual).all():
        return ""
    bias = (actual - expected.value).mean(axis=-2, keepdims=True)
    unbiased = expected.value + bias
    rounding = Approx(unbiased, expected.worst, expected.typical).rounded(unit_roundoff(DTYPES[dtype]))
    if np.abs(bias).max() <= expected.worst.max() or not compare(actual, rounding, actual.dtype).passes:
        return ""
    without = {**arrays, parse(name).name: expected.value.astype(DTYPES[dtype])}
    mask = step.sources[2:]
    if step.op == "attention_scores":
        weights, _ = _find_consumer(flow, scores, ("softmax",), 0)
        context, last = _find_consumer(flow, weights, ("attention_context",), 0)
        values = last.sources[1] if last else ""
    else:
        context, values, mask = scores, step.sources[2], step.sources[3:]
    if not values:
        return ""
    inputs = [look_up(without, source) for source in (*step.sources[:2], values, *mask)]
    row = TABLE["masked_attention" if mask else "attention"]
    verdict = judge(row, dtype, inputs, [look_up(arrays, context)]).actual
    return f"keys carry a bias, which softmax ignores; equal from {parse(context).name} on" if verdict.passes else ""


def _find_consumer(flow: Dataflow, name: str, ops: tuple[str, ...], argument: int) -> tuple[str, Step | None]:
    """Find the first step of one of these ops whose argument at this index is an activation.

    Returns:
        The step's key in the flow and the step, or ("", None).
    """
    base = parse(name).name
    for key, step in flow.items():
        if step.op in ops and parse(step.sources[argument]).name == base:
            return key, step
    return "", None
