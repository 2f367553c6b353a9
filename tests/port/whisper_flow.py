"""Whisper's data flow written by hand, and the ops of OpenAI's modules that it describes."""

from collections.abc import Mapping

from reference.flow.dataflow import Step, parse
from reference.port import Traced
from reference.port.rows import row_of

# Rows that compute the same; a traced module's are the general ones.
SAME = {
    "conv1d_stride1": "conv1d",
    "conv1d_stride2": "conv1d",
    "attention": "masked_attention",
    "lm_head": "matmul",
}


def pairs(flow: Mapping[str, Step], traced: Traced, given: Mapping[str, str]) -> dict[str, str]:
    """Find for each step of a flow the op of a module that computes the same from the same.

    Ops that move numbers count as views, as the flow has them.

    Args:
        flow: Written by hand.
        traced: The module.
        given: The module's name of each weight and input of the flow.

    Returns:
        The op's name for each step's; it lacks steps that have no op.
    """

    def base(name: str) -> str:
        while name in traced.ops and row_of(traced.ops[name]).is_exact:
            name = traced.ops[name].sources[0]
        return name

    ops = {
        (row_of(op).row, tuple(map(base, op.sources))): name
        for name, op in traced.ops.items()
        if not row_of(op).is_exact
    }
    found = dict(given)
    for key, (row, sources) in flow.items():
        names = [found.get(parse(source).name) for source in sources if parse(source).name != "mask"]
        if row == "token_embedding":
            names.reverse()
        if (name := ops.get((SAME.get(row, row), tuple(names)))) is not None:  # type: ignore[arg-type]
            found[parse(key).name] = name
    return {parse(key).name: found[parse(key).name] for key in flow if parse(key).name in found}


def given_names(traced: Traced, prefix: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the module's name of each weight and input of the flow."""
    return {f"{prefix}.{name}": name for name in traced.weights} | dict(inputs)
