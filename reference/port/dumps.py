"""Originals and activations in files, read without running anything that they contain."""

import json
import operator
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from reference.ops.tensors import from_torch, to_torch
from reference.port.errors import PortError
from reference.port.trace import Op, Ref, Traced, mapped

KEY = "traced"  # of the metadata


def save_original(path: Path, traced: Traced) -> None:
    """Write an original as a `.safetensors` file, with its ops in the metadata."""
    if not isinstance(traced, Traced):
        raise PortError(f"the original is a {type(traced).__name__}; give what `trace` returns")
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise PortError(f"{path}: name a .safetensors file in a folder that exists")
    ops = [
        {"name": op.name, "target": op.full_name, "args": _coded(op.args), "kwargs": _coded(op.kwargs)}
        | {"path": op.path, "also": op.also, "is_floating": op.is_floating}
        for op in traced.ops.values()
    ]
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in traced.given.items()}
    save_file(tensors, path, {KEY: json.dumps({"ops": ops, "outputs": traced.outputs, "inputs": traced.inputs})})


def load_original(path: Path) -> Traced:
    """Read what `save_original` wrote.

    Raises:
        PortError: The file is something else, or has an op that PyTorch lacks.
    """
    if path.is_dir():
        raise PortError(f"{path} can't be read as an original: it is a folder")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise PortError(f"{path} is no original; write one by `reference.port.save_original`")
        stored, given = json.loads(text), load_file(path)
        ops = {
            op["name"]: Op(
                op["name"], _target(op["target"]), tuple(_decoded(op["args"])), _decoded(op["kwargs"]), op["path"],
                tuple(op["also"]), op["is_floating"],
            )
            for op in stored["ops"]
        }  # fmt: skip
    except PortError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PortError(f"{path} can't be read as an original: {error}") from error
    return Traced(ops, given, tuple(stored["outputs"]), tuple(stored["inputs"]))


def _target(name: str) -> Callable[..., Any]:
    if name == "getitem":
        return operator.getitem
    namespace, packet, overload = name.split(".")
    if namespace != "aten" or not hasattr(torch.ops.aten, packet):
        raise PortError(f"{name} is no op of PyTorch's {torch.__version__}; trace the original with this version")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _coded(x: Any) -> Any:
    """Return arguments as JSON data."""

    def code(value: Any) -> Any:
        if isinstance(value, Ref):
            return {"array": value.name}
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        return value

    return mapped(code, x)


def _decoded(x: Any) -> Any:
    """Return arguments from JSON data."""
    if isinstance(x, list):
        return [_decoded(value) for value in x]
    if not isinstance(x, dict):
        return x
    if x.keys() == {"array"}:
        return Ref(x["array"])
    if x.keys() == {"torch"}:
        return getattr(torch, x["torch"])
    if x.keys() == {"device"}:
        return torch.device(x["device"])
    return {key: _decoded(value) for key, value in x.items()}


def save_activations(path: Path, activations: Mapping[str, np.ndarray]) -> None:
    """Write activations as a `.safetensors` file."""
    save_file({name: to_torch(array).clone() for name, array in activations.items()}, path)


def load_activations(path: Path) -> dict[str, np.ndarray]:
    """Read activations from a `.npz`, `.safetensors`, `.pt` or `.pth` file.

    Raises:
        PortError: The file can't be read, or holds something other than arrays by name.
    """
    readers: dict[str, Callable[[Path], Mapping[str, Any]]] = {
        ".npz": lambda path: dict(np.load(path, allow_pickle=False)),
        ".safetensors": load_file,
        ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
        ".pth": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    }
    if path.suffix not in readers:
        raise PortError(
            f"{path}: {path.suffix or 'a file without a suffix'} is unknown; give one of {', '.join(readers)}"
        )
    try:
        stored = readers[path.suffix](path)
    except (OSError, SafetensorError, ValueError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        reason = getattr(error, "strerror", None) or f"it is no {path.suffix} file of arrays"
        raise PortError(f"{path} can't be read: {reason}") from error
    except Exception as error:  # what torch.load raises for a pickle that would run something
        raise PortError(f"{path} can't be read without running what it contains; save tensors alone") from error
    if not isinstance(stored, Mapping):
        raise PortError(f"{path} holds a {type(stored).__name__}, not arrays by name")
    arrays = {name: from_torch(x) if isinstance(x, torch.Tensor) else x for name, x in stored.items()}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise PortError(f"{path}: {name!r} is a {type(array).__name__}, not an array")
    return arrays
