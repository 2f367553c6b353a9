"""A port compared with its original in one call, for tests: `assert_parity`."""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference.ops.tensors import from_torch
from reference.parity.activations import Compared
from reference.port.dumps import save_activations, save_original
from reference.port.errors import PortError
from reference.port.judge import judge_port, unknown_of
from reference.port.match import as_array, match
from reference.port.trace import Traced, trace

Port = Mapping[str, np.ndarray] | Callable[..., Any]


def assert_parity(
    original: torch.nn.Module,
    port: Port,
    *inputs: torch.Tensor,
    names: Mapping[str, str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    weights: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> list[Compared]:
    """Check that a port computes what its original computes, op by op.

    Args:
        original: A PyTorch module.
        port: The activations of a port by name; a function that returns them for the inputs as
            NumPy arrays; or a module of `max.nn` or `torch.nn`.
        inputs: The original's arguments.
        names: The original's name for some of the port's activations.
        dtype: What the port computes in.
        device: Where the port ran, "cpu" or "gpu".
        weights: Of a module of `max.nn`, if it has not loaded them.
        partial: Whether the port need not show the original's results.

    Returns:
        The comparison of each activation, in the order in which the original computes them.

    Raises:
        AssertionError: One is outside its bounds. The first is named, and how to see it again.
        PortError: The port's arrays do not fit the original.
    """
    traced = trace(original, *inputs)
    activations = _activations(port, inputs, weights)
    if unknown := unknown_of(match(traced, activations, names)):
        warnings.warn(unknown, stacklevel=2)
    compared = list(judge_port(traced, activations, names=names, dtype=dtype, device=device, partial=partial))
    failed = [one for one in compared if not one.passes]
    if failed:
        raise AssertionError(describe(failed, compared, _again(traced, activations, names, dtype, device)))
    return compared


def describe(failed: list[Compared], compared: list[Compared], command: str = "") -> str:
    """Return what is to be said about a port whose activations do not all pass."""
    first = failed[0]
    place = f"number {compared.index(first) + 1} of the {len(compared)} compared"
    lines = [f"the first activation that differs is {first.name}, {place}", f"  {first}"]
    if first.estimated:
        lines.append(
            "  its bounds are estimates, because several ops lie between it and the one before, or one without a row"
        )
    if len(failed) > 1:
        lines.append(
            f"  also different, on their own inputs: {', '.join(one.name for one in failed[1:6])}"
            + " …" * (len(failed) > 6)
        )
    return "\n".join([*lines, *([f"  see it again: {command}"] if command else [])])


def _activations(port: Port, inputs: Sequence[Any], weights: Mapping[str, Any] | None) -> Mapping[str, np.ndarray]:
    if isinstance(port, Mapping):
        return port
    if isinstance(port, torch.nn.Module):
        traced = trace(port, *inputs)
        values = traced.run()
        results = {"output": traced.outputs[0]} if len(traced.outputs) == 1 else {}
        shown = {name: name for name in traced.shown_by_hooks} | results
        return {name: from_torch(values[own]) for name, own in shown.items()}
    arrays = [from_torch(x) for x in inputs if isinstance(x, torch.Tensor)]
    if (layer := sys.modules.get("max.nn.layer")) is not None and isinstance(port, layer.Module):
        from reference.port.capture import capture  # only ports to MAX need it

        return capture(port, *arrays, weights=weights)
    if not callable(port):
        raise PortError(f"the port is a {type(port).__name__}; give activations by name, a function, or a module")
    activations = port(*arrays)
    if not isinstance(activations, Mapping):
        raise PortError(f"the port returned a {type(activations).__name__}; return its activations by name")
    return activations


def _again(
    traced: Traced, activations: Mapping[str, np.ndarray], names: Mapping[str, str] | None, dtype: str, device: str
) -> str:
    """Store both sides, and return the command that compares them again."""
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    save_original(folder / "original.safetensors", traced)
    save_activations(folder / "port.safetensors", {name: as_array(name, x) for name, x in activations.items()})
    command = f"python -m reference.compare {folder}/original.safetensors {folder}/port.safetensors"
    options = [f"--dtype {dtype}"] * (dtype != "float32") + [f"--device {device}"] * (device != "cpu")
    if names:
        (folder / "names.json").write_text(json.dumps(dict(names)), encoding="utf-8")
        options.append(f"--names {folder}/names.json")
    return " ".join([command, *options])
