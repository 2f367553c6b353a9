"""OpenAI's `.pt` files: a zip archive of a pickle that describes tensors, and their raw bytes.

A pickle can name any function to call. This reader knows eight names, all harmless and all our own; anything else ends the reading.
"""

import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from maxwhisper.checkpoint.checkpoint import MALFORMED, Checkpoint, widen_bfloat16
from maxwhisper.checkpoint.dimensions import ModelDimensions
from maxwhisper.errors import CheckpointError

BFLOAT16 = "bfloat16"


def read_openai(path: Path) -> Checkpoint:
    """Read a `.pt` file as written by `torch.save({"dims": …, "model_state_dict": …})`, executing nothing in it.

    Raises CheckpointError where it is damaged, is no such file, or asks for code to be run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Unpickler(archive).load()
        state = {name: np.ascontiguousarray(array) for name, array in content["model_state_dict"].items()}
        dims = ModelDimensions(**content["dims"])
    except (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, OSError, RuntimeError, *MALFORMED) as error:
        raise CheckpointError(f"{path} is damaged or no OpenAI Whisper checkpoint ({error}); get it anew") from error
    return Checkpoint(dims, state, str(path))


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"{len(pickles)} files named data.pkl in the archive")
        self.archive = archive
        self.folder = pickles[0].removesuffix("data.pkl")
        super().__init__(archive.open(self._stored(pickles[0])))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it wants {module}.{name} to be called, which no tensor needs")
        known = _KNOWN[module, name]
        # A pickle may change what it is given: strings and built-in types it can't, and functions it gets a wrapping of its own.
        return known if isinstance(known, (str, type)) else lambda *arguments: known(*arguments)

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _location, n_elements = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown kind of data, {kind!r}")
        stored = self.archive.read(self._stored(f"{self.folder}data/{key}"))  # checks the CRC
        if dtype == BFLOAT16:
            return widen_bfloat16(np.frombuffer(stored, "<u2", n_elements))
        return np.frombuffer(stored, dtype, n_elements)

    def _stored(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a few bytes could claim to be many gigabytes
            raise pickle.UnpicklingError(f"{name} is compressed")
        return info


def _rebuild_tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """What `torch._utils._rebuild_tensor_v2` does, within the bounds of the storage."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset < 0 or min((*shape, *strides), default=0) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches outside its {len(storage)} stored elements")
    size = storage.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [stride * size for stride in strides])


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "HalfStorage"): "<f2",
    ("torch", "FloatStorage"): "<f4",
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "BFloat16Storage"): BFLOAT16,
    ("torch", "LongStorage"): "<i8",
}
