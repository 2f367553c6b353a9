"""The op that differs, as a program of its own: what one attaches to a report of a defect."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from reference.numerics.bounds import Approx
from reference.numerics.compare import Verdict, compare
from reference.numerics.dtypes import DTYPES
from reference.ops.tensors import from_torch, to_torch
from reference.port.dumps import save_activations
from reference.port.expected import expected, ops_between
from reference.port.match import Matched
from reference.port.trace import Traced

PROGRAM = '''\
"""{name} differs from its original: {ops}."""

from pathlib import Path

import torch
from safetensors.torch import load_file

torch.set_default_dtype(torch.float64)
arrays = load_file(Path(__file__).with_suffix(".safetensors"))
{lines}
port = arrays["port"]
error = (port.double() - {result}.double()).abs()
print(f"{name}: the port is off by up to {{error.max():.3g}}; a correct result by up to {bound:.3g}")
'''


def minimise(path: Path, traced: Traced, matched: Matched, name: str, dtype: str, device: str) -> None:
    """Write the ops of an activation that fails, and the least of their inputs, as a program.

    Along each axis but the last, the inputs are cut down to the place of the worst element, if the
    ops treat places alike and it still fails.

    Args:
        path: The program; its arrays are stored beside it.
        traced: The original.
        matched: The port's arrays.
        name: The activation.
        dtype: What the port computes in.
        device: Where it ran.
    """
    known = dict(traced.given) | {own: to_torch(array) for own, array in matched.activations.items()}
    ops = ops_between(traced, name, known)
    needed = sorted({source for op in ops for source in op.sources if source in known})
    activations = [own for own in needed if own not in traced.weights]

    def judged(arrays: Mapping[str, np.ndarray]) -> tuple[Approx, Verdict]:
        inputs = {own: to_torch(arrays[own]) for own in needed}
        approx = expected(traced, name, {**known, **inputs}, dtype, device).approx
        return approx, compare(arrays["port"], approx, DTYPES[dtype])

    arrays = {own: from_torch(known[own]) for own in needed} | {"port": from_torch(known[name])}
    approx, verdict = judged(arrays)
    for axis in range(arrays["port"].ndim - 1):
        size = arrays["port"].shape[axis]
        if verdict.worst is None or any(arrays[own].shape[axis : axis + 1] != (size,) for own in activations):
            continue
        place = verdict.worst.index[axis]
        part = {**arrays, **{own: arrays[own].take([place], axis) for own in (*activations, "port")}}
        with suppress(RuntimeError, ValueError):  # an op that needs the axis' size
            of_part, its_verdict = judged(part)
            # Float64 may sum a part in another order; what other places influence differs far more.
            alike = np.allclose(of_part.value, approx.value.take([place], axis), rtol=1e-9, atol=1e-12)
            if alike and not its_verdict.passes:
                arrays, approx, verdict = part, of_part, its_verdict
    variables, lines = {own: f"x{i}" for i, own in enumerate(needed)}, list[str]()
    for own, variable in variables.items():
        lines.append(f'{variable} = arrays["{own}"]' + ".double()" * known[own].is_floating_point())
    for i, op in enumerate(ops):
        variables[op.name] = f"y{i}"
        lines.append(f"y{i} = {op.as_code(variables)}")
    save_activations(path.with_suffix(".safetensors"), arrays)
    text = PROGRAM.format(
        name=name,
        ops=" → ".join(op.kind for op in ops),
        lines="\n".join(lines),
        result=variables[name],
        bound=float(np.max(approx.worst, initial=0.0)),
    )
    path.write_text(text, encoding="utf-8")
