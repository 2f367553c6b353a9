"""The op that differs, as a program of its own: what one attaches to a report of a defect."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from reference.numerics.compare import compare
from reference.numerics.dtypes import DTYPES
from reference.ops.tensors import from_torch, to_torch
from reference.port.dumps import save_activations
from reference.port.expected import expected
from reference.port.match import Matched
from reference.port.trace import Traced

PROGRAM = '''\
"""{name} differs from its original: {ops}."""

from pathlib import Path

import torch
from safetensors.torch import load_file

arrays = load_file(Path(__file__).with_suffix(".safetensors"))
{lines}
port = arrays["port"]
error = (port.double() - {result}.double()).abs()
print(f"{name}: the port is off by up to {{error.max():.3g}}; a correct result by up to {bound:.3g}")
'''


def minimise(path: Path, traced: Traced, matched: Matched, name: str, dtype: str, device: str) -> None:
    """Write the ops of an activation that fails, and the least of their inputs, as a program.

    The batch is cut down to the first element that still fails by itself.

    Args:
        path: The program; its arrays are stored beside it.
        traced: The original.
        matched: The port's arrays.
        name: The activation.
        dtype: What the port computes in.
        device: Where it ran.
    """
    known = dict(traced.given) | {own: to_torch(array) for own, array in matched.activations.items()}
    should_be = expected(traced, name, known, dtype, device)
    needed = sorted({source for op in should_be.ops for source in op.sources if source in known})
    arrays = _smallest(traced, name, known, needed, dtype, device)
    variables = {own: f"x{i}" for i, own in enumerate(needed)}
    lines = list[str]()
    for own, variable in variables.items():
        lines.append(f'{variable} = arrays["{own}"]' + ".double()" * known[own].is_floating_point())
    for i, op in enumerate(should_be.ops):
        variables[op.name] = f"y{i}"
        lines.append(f"y{i} = {op.as_code(variables)}")
    ops = " → ".join(op.kind for op in should_be.ops)
    again = expected(traced, name, {**known, **{own: to_torch(arrays[own]) for own in needed}}, dtype, device)
    bound = float(np.max(again.approx.worst, initial=0.0))
    save_activations(path.with_suffix(".safetensors"), arrays)
    text = PROGRAM.format(name=name, ops=ops, lines="\n".join(lines), result=variables[name], bound=bound)
    path.write_text(text, encoding="utf-8")


def _smallest(
    traced: Traced, name: str, known: Mapping[str, torch.Tensor], needed: list[str], dtype: str, device: str
) -> dict[str, np.ndarray]:
    """Return the inputs and the port's result, of one element of the batch if that fails alone."""
    whole = {own: from_torch(known[own]) for own in needed} | {"port": from_torch(known[name])}
    batch = whole["port"].shape[0] if whole["port"].ndim else 0
    activations = [own for own in needed if own in traced.ops or own not in traced.weights]
    for i in range(batch if batch > 1 and all(whole[own].shape[:1] == (batch,) for own in activations) else 0):
        part = {own: array[i : i + 1] if own in (*activations, "port") else array for own, array in whole.items()}
        try:
            should_be = expected(traced, name, {**known, **{own: to_torch(part[own]) for own in needed}}, dtype, device)
            fails = not compare(part["port"], should_be.approx, DTYPES[dtype]).passes
        except (RuntimeError, ValueError):  # an op that needs the batch's size
            break
        if fails:
            return part
    return whole
