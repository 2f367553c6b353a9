"""The verdict on a port: each of its activations against the original's definition of it."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from reference.numerics.compare import Verdict, compare
from reference.numerics.dtypes import DTYPES
from reference.ops.tensors import from_torch, to_torch
from reference.parity.activations import Compared, Error, compare_given, rms
from reference.parity.resemblance import resemblance
from reference.port.errors import PortError
from reference.port.expected import Expected, expected
from reference.port.match import Matched, check, match, refuse_stale
from reference.port.rows import LAYOUTS
from reference.port.trace import Traced


def judge_port(
    traced: Traced,
    port: Mapping[str, np.ndarray],
    *,
    names: Mapping[str, str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    before: Mapping[str, np.ndarray] | None = None,
    partial: bool = False,
) -> Iterator[Compared]:
    """Judge a port's activations in the order in which the original computes them.

    Each is judged in situ: what lies between it and the port's own earlier activations is computed
    in float64. Weights and inputs that the port shows must equal the original's; those that do not
    come first.

    Args:
        traced: The original.
        port: The port's activations by name, and weights and inputs if wanted.
        names: The original's name for some of the port's.
        dtype: What the port computes in.
        device: Where the port ran, "cpu" or "gpu".
        before: The port's arrays of a call before, on other inputs; none may be left over from it.
        partial: Whether the port need not show the original's results.

    Raises:
        PortError: The port's arrays do not fit the original.
    """
    matched, own = match(traced, port, names), {name: from_torch(x) for name, x in traced.run().items()}
    check(traced, matched, own, dtype)
    unseen = [name for name in traced.outputs if name in traced.ops and name not in matched.activations]
    if unseen and not partial:
        unknown = unknown_of(matched)
        raise PortError(
            f"the port does not show the original's result, {unseen[0]!r}, so what comes last would not be judged; "
            "show it (a single result is also known as 'output'), or say `partial`"
            + (f"; {unknown}" if unknown else "")
        )
    if before is not None:
        refuse_stale(traced, matched, match(traced, before, names).activations)
    exact = traced.run(torch.float64)
    for name, array in matched.given.items():
        compared = compare_given(name, array, from_torch(traced.given[name]))
        if not compared.passes:
            yield compared
    known = dict(traced.given) | {name: to_torch(array) for name, array in matched.activations.items()}
    for name, array in matched.activations.items():
        yield _compare(traced, name, array, known, own[name], from_torch(exact[name]), dtype, device)


def unknown_of(matched: Matched) -> str:
    """Return what is to be said about arrays that mean nothing to the original."""
    n, shown = len(matched.unknown), ", ".join(matched.unknown[:3])
    return f"{n} of the port's arrays mean nothing to the original, such as {shown}" if n else ""


def _compare(
    traced: Traced,
    name: str,
    array: np.ndarray,
    known: Mapping[str, torch.Tensor],
    own: np.ndarray,
    exact: np.ndarray,
    dtype: str,
    device: str,
) -> Compared:
    should_be = expected(traced, name, known, dtype, device)
    again = _again(should_be, known)
    if own.dtype.kind in "iub":
        verdict, pytorch = _exact(array, should_be.approx.value), _exact(again, should_be.approx.value)
    else:
        verdict = compare(array, should_be.approx, DTYPES[dtype], again)
        pytorch = compare(again, should_be.approx, again.dtype)
    sources = {source: from_torch(known[source]) for op in should_be.ops for source in op.sources if source in known}
    wide = exact.astype(np.float64)
    return Compared(
        name=name,
        op=" → ".join(op.short for op in should_be.ops if op.short not in LAYOUTS) or should_be.ops[-1].short,
        shape=array.shape,
        in_situ=verdict,
        pytorch=pytorch,
        error=Error.of(array, wide),
        peer=Error.of(own, wide),
        size=rms(wide[np.isfinite(wide)]),
        resembles="" if verdict.passes else resemblance(array, should_be.approx.value, sources),
        estimated=should_be.estimated,
    )


def _exact(array: np.ndarray, value: np.ndarray) -> Verdict:
    """Compare whole numbers, which must be equal."""
    n_wrong = int((array != value).sum())
    return Verdict(array.size, [f"{n_wrong} of {array.size} whole numbers differ"] if n_wrong else [])


def _again(should_be: Expected, known: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Compute an activation as the original does, from the port's own inputs."""
    values = dict(known)
    for op in should_be.ops:
        values[op.name] = op.compute(values)
    return from_torch(values[should_be.ops[-1].name])
