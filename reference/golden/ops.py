"""Small inputs of every op with the float64 outputs of the NumPy definitions, in `golden/ops`."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from reference.ops import TABLE
from reference.ops.float64_error import apart, may_lose
from reference.ops.inputs import Example, sized

OPS = Path(__file__).parents[2] / "golden" / "ops"
MAX_NUMBERS = 10_000  # of an input; if it has more elements, only its sha256 is stored


@dataclass(frozen=True)
class GoldenOp:
    """Inputs of an op, representable exactly in every dtype, and its float64 output."""

    inputs: list[np.ndarray]
    output: np.ndarray


def make_op(name: str) -> GoldenOp:
    """Compute an op's output by its NumPy definition, on small generated inputs."""
    sizes = sized(
        name, 4, batch=2, n_head=2, n=3, n_frames=5, n_kv=5, n_out=3, n_vocab=6, n_mlp=5, n_ctx=6, n_samples=320
    )
    arrays = Example(name, "float32", sizes).arrays()
    # Multiples of 1/8 up to 4 are exact in eight significant bits, and their sums need few more.
    # Scales are small, so they are multiples of 2^-14.
    steps = [2**14 if spec.values == ("scales",) else 8 for spec in TABLE[name].inputs.values()]
    inputs = [
        a if a.dtype.kind == "i" else np.where(np.isfinite(a), np.clip(np.round(step * a) / step, -4, 4), a)
        for a, step in zip(arrays, steps)
    ]
    return GoldenOp(
        inputs, np.asarray(TABLE[name].define(*(a if a.dtype.kind == "i" else a.astype(np.float64) for a in inputs)))
    )


def recall_op(name: str) -> GoldenOp:
    """Read the stored inputs and output of an op.

    Raises:
        ValueError: if an input stored as sha256 differs from the generated one.
    """
    document = json.loads((OPS / f"{name}.json").read_text(encoding="utf-8"))
    inputs = []
    for (key, spec), generated in zip(TABLE[name].inputs.items(), make_op(name).inputs, strict=True):
        numbers = document["inputs"][key]
        if isinstance(numbers, str) and numbers != _digest(generated):
            raise ValueError(f"{name} is stored for a different {key}; run nox -s golden")
        inputs.append(generated if isinstance(numbers, str) else np.array(numbers, np.dtype(spec.dtype or "float32")))
    return GoldenOp(inputs, np.array(document["output"], np.float64))


def _digest(array: np.ndarray) -> str:
    """Return the sha256 of an array, stored instead of a large input."""
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(array, np.float64).tobytes()).hexdigest()}"


def update(check: bool) -> list[str]:
    """Compute all ops by their definitions, and compare the results with the stored ones.

    Args:
        check: write nothing; otherwise the new results are stored.

    Returns:
        A message for each difference.
    """
    OPS.mkdir(parents=True, exist_ok=True)
    changes = []
    for name in TABLE:
        golden, path = make_op(name), OPS / f"{name}.json"
        change = change_of(name, golden) if path.exists() else "was not stored"
        changes += [f"{name}: {change}"] if change else []
        if not check:
            path.write_text(_op_document(name, golden), encoding="utf-8")
    for path in sorted(OPS.glob("*.json")):
        if path.stem not in TABLE:
            changes.append(f"{path.stem}: is stored, but not in the table")
            if not check:
                path.unlink()
    return changes


def change_of(name: str, golden: GoldenOp) -> str:
    """Describe how a stored op differs from the computed one; empty if it does not."""
    try:
        stored = recall_op(name)
        same_inputs = all(np.array_equal(a, b) for a, b in zip(golden.inputs, stored.inputs, strict=True))
    except (KeyError, ValueError):
        same_inputs = False
    if not same_inputs:
        return "was stored for different inputs"
    if golden.output.shape != stored.output.shape:
        return f"the output's shape was {stored.output.shape} and is {golden.output.shape}"
    ratio = apart(golden.output, stored.output, may_lose(TABLE[name], golden.inputs))
    return f"the output differs by {ratio:.3g} times the bound of float64 rounding" if ratio > 1 else ""


def _op_document(name: str, golden: GoldenOp) -> str:
    numbers = (array.tolist() if array.size <= MAX_NUMBERS else _digest(array) for array in golden.inputs)
    inputs = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in zip(TABLE[name].inputs, numbers, strict=True)
    )
    packages = f"numpy {version('numpy')} and scipy {version('scipy')}"
    by = f"nox -s golden, by reference.numerics.definitions in float64, with {packages}"
    output = json.dumps(golden.output.tolist())
    return f'{{\n "written_by": "{by}",\n "inputs": {{\n{inputs}\n }},\n "output": {output}\n}}\n'
