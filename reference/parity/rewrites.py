"""Differences that are none: other ways to compute the same."""

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, Step, look_up, parse
from reference.numerics.bounds import Approx
from reference.numerics.compare import compare
from reference.numerics.dtypes import DTYPES, unit_roundoff
from reference.ops import TABLE
from reference.ops.judge import judge


def biased_keys(flow: Dataflow, name: str, known: Arrays, expected: Approx, dtype: str) -> str:
    """Say so if an activation is an attention's keys and differs from what is expected by one vector for all positions; else nothing.

    Such a bias adds a constant to all of a query's scores, which softmax ignores. The context is held against the keys without it.
    """
    scores, step = _consumer(flow, name, ("attention_scores", "attention", "masked_attention"), 1)
    if step is None:
        return ""
    actual = known[parse(name).name]
    if actual.shape != expected.value.shape or not np.isfinite(actual).all():
        return ""
    bias = (actual - expected.value).mean(axis=-2, keepdims=True)
    unbiased = expected.value + bias
    rounding = Approx(unbiased, expected.worst, expected.typical).rounded(unit_roundoff(DTYPES[dtype]))
    if np.abs(bias).max() <= expected.worst.max() or not compare(actual, rounding, actual.dtype).passes:
        return ""
    without = {**known, parse(name).name: expected.value.astype(DTYPES[dtype])}
    mask = step.sources[2:]
    if step.op == "attention_scores":
        weights, _ = _consumer(flow, scores, ("softmax",), 0)
        context, last = _consumer(flow, weights, ("attention_context",), 0)
        values = last.sources[1] if last else ""
    else:
        context, values, mask = scores, step.sources[2], step.sources[3:]
    if not values:
        return ""
    inputs = [look_up(without, source) for source in (*step.sources[:2], values, *mask)]
    row = TABLE["masked_attention" if mask else "attention"]
    verdict = judge(row, dtype, inputs, [look_up(known, context)]).actual
    return f"keys carry a bias, which softmax ignores; equal from {parse(context).name} on" if verdict.passes else ""


def _consumer(flow: Dataflow, name: str, ops: tuple[str, ...], argument: int) -> tuple[str, Step | None]:
    """The step that takes an activation as this argument of one of these ops, and its name."""
    base = parse(name).name
    for key, step in flow.items():
        if step.op in ops and parse(step.sources[argument]).name == base:
            return key, step
    return "", None
