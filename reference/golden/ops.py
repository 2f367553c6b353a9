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
MAX_NUMBERS = 10_000  # of an input; of more only the sha256 is kept


@dataclass(frozen=True)
class GoldenOp:
    """Inputs of an op, all of them numbers that every dtype holds, and its float64 output."""

    inputs: list[np.ndarray]
    output: np.ndarray


def make_op(name: str) -> GoldenOp:
    """Ask the NumPy definition."""
    sizes = sized(
        name, 4, batch=2, n_head=2, n=3, n_frames=5, n_kv=5, n_out=3, n_vocab=6, n_mlp=5, n_ctx=6, n_samples=320
    )
    arrays = Example(name, "float32", sizes).arrays()
    # Multiples of 1/8 below 4 are exact in eight significant bits, and their sums in few more. Scales, which are small, have more.
    steps = [2**14 if spec.values == ("scales",) else 8 for spec in TABLE[name].inputs.values()]
    inputs = [
        a if a.dtype.kind == "i" else np.where(np.isfinite(a), np.clip(np.round(step * a) / step, -4, 4), a)
        for a, step in zip(arrays, steps)
    ]
    return GoldenOp(
        inputs, np.asarray(TABLE[name].define(*(a if a.dtype.kind == "i" else a.astype(np.float64) for a in inputs)))
    )


def recall_op(name: str) -> GoldenOp:
    """What is kept of an op."""
    kept = json.loads((OPS / f"{name}.json").read_text(encoding="utf-8"))
    inputs = []
    for (key, spec), made in zip(TABLE[name].inputs.items(), make_op(name).inputs, strict=True):
        numbers = kept["inputs"][key]
        if isinstance(numbers, str) and numbers != _digest(made):
            raise ValueError(f"{name} was kept for another {key}")
        inputs.append(made if isinstance(numbers, str) else np.array(numbers, np.dtype(spec.dtype or "float32")))
    return GoldenOp(inputs, np.array(kept["output"], np.float64))


def _digest(array: np.ndarray) -> str:
    """In place of many numbers."""
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(array, np.float64).tobytes()).hexdigest()}"


def renew(check: bool) -> list[str]:
    """Ask the definitions anew; rewrite what is kept, or only check it. Returns what differs."""
    OPS.mkdir(parents=True, exist_ok=True)
    found = []
    for name in TABLE:
        golden, path = make_op(name), OPS / f"{name}.json"
        change = change_of(name, golden) if path.exists() else "was not kept"
        found += [f"{name}: {change}"] if change else []
        if not check:
            path.write_text(_op_document(name, golden), encoding="utf-8")
    for path in sorted(OPS.glob("*.json")):
        if path.stem not in TABLE:
            found.append(f"{path.stem}: is kept, but not in the table")
            if not check:
                path.unlink()
    return found


def change_of(name: str, golden: GoldenOp) -> str:
    """How what is kept differs from what the definition says now; empty where it does not."""
    try:
        kept = recall_op(name)
        same_inputs = all(np.array_equal(a, b) for a, b in zip(golden.inputs, kept.inputs, strict=True))
    except (KeyError, ValueError):
        same_inputs = False
    if not same_inputs:
        return "was kept for other inputs"
    if golden.output.shape != kept.output.shape:
        return f"the output's shape was {kept.output.shape} and is {golden.output.shape}"
    share = apart(golden.output, kept.output, may_lose(TABLE[name], golden.inputs))
    return f"the output differs by {share:.3g} times what float64 may lose" if share > 1 else ""


def _op_document(name: str, golden: GoldenOp) -> str:
    numbers = (array.tolist() if array.size <= MAX_NUMBERS else _digest(array) for array in golden.inputs)
    inputs = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(kept)}" for key, kept in zip(TABLE[name].inputs, numbers, strict=True)
    )
    by = f"nox -s golden, by reference.numerics.definitions in float64, with numpy {version('numpy')} and scipy {version('scipy')}"
    return f'{{\n "written_by": "{by}",\n "inputs": {{\n{inputs}\n }},\n "output": {json.dumps(golden.output.tolist())}\n}}\n'
