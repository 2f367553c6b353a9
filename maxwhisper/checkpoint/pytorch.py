"""PyTorch's files, such as OpenAI's `.pt`, read without PyTorch and without executing anything.

A file is a zip archive of a pickle, which describes tensors, and of their raw bytes. A pickle can
name any function to call. This reader accepts only a few names, and maps them to harmless functions
of its own. Any other name is an error.
"""

import collections
import math
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maxwhisper.checkpoint.checkpoint import MALFORMED
from maxwhisper.checkpoint.dimensions import ModelDimensions
from maxwhisper.checkpoint.stored import BFLOAT16, StoredBytes, StoredTensor
from maxwhisper.errors import CheckpointError

# Keys under which OpenAI, Lightning and others store the weights; some use the top level instead.
STATES = (
    "model_state_dict",
    "state_dict",
    "model",
)


def read_pytorch(path: Path) -> tuple[dict[str, StoredTensor], ModelDimensions | None]:
    """Find the weights in a file, without executing anything in it.

    Returns:
        The weights by the file's own names, and the model's sizes if the file has them under
        `dims`, as OpenAI's files do.

    Raises:
        CheckpointError: if the file is damaged, holds no weights, or names a function to call.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Unpickler(archive, StoredBytes.of(path)).load()
        dims = ModelDimensions(**content["dims"]) if "dims" in content else None
        states = [content[key] for key in STATES if isinstance(content.get(key), dict)] or [content]
        if len(states) > 1:
            raise ValueError(f"{len(states)} sets of weights in it")
        weights = {str(name): tensor for name, tensor in states[0].items() if isinstance(tensor, StoredTensor)}
    except ForeignNameError as error:
        raise CheckpointError(
            f"{path} wants {error} to be called, which no tensor needs and which is refused; if you trust it, load it "
            "in PyTorch and save its weights alone: torch.save(model.state_dict(), NEW_FILE)"
        ) from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, OSError, RuntimeError, *MALFORMED) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of PyTorch ({error}); download it again"
        ) from error
    if not weights:
        keys = ", ".join(map(str, states[0]))
        raise CheckpointError(
            f"{path} holds no weights, but {keys or 'nothing'}; save them: torch.save(model.state_dict(), NEW_FILE)"
        )
    return weights, dims


class ForeignNameError(pickle.UnpicklingError):
    """A pickle names a function or class that this reader does not accept."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, content: StoredBytes) -> None:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"{len(pickles)} files named data.pkl in the archive")
        self.archive = archive
        self.content = content
        self.folder = pickles[0].removesuffix("data.pkl")
        self.storages = dict[tuple[str, str], StoredTensor]()  # several tensors may share one, such as tied weights
        super().__init__(archive.open(self._stored(pickles[0])))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ACCEPTED:
            raise ForeignNameError(f"{module}.{name}")
        accepted = _ACCEPTED[module, name]
        # A pickle can change attributes of the objects that it receives. Strings and built-in types
        # are immutable. Functions are wrapped each time, so that only the wrapper can be changed.
        return accepted if isinstance(accepted, (str, type)) else lambda *arguments: accepted(*arguments)

    def persistent_load(self, pid: Any) -> StoredTensor:
        kind, dtype, key, _location, n_elements = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown kind of data, {kind!r}")
        if (key, dtype) not in self.storages:
            info = self._stored(f"{self.folder}data/{key}")
            storage = StoredTensor((n_elements,), dtype, self.content, self._offset(info))
            if n_elements * storage.itemsize > info.file_size:
                raise pickle.UnpicklingError(f"{info.filename} has less than {n_elements} elements")
            self.storages[key, dtype] = storage
        return self.storages[key, dtype]

    def _stored(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(name)
        # PyTorch never compresses. A few compressed bytes could expand to many gigabytes.
        if info.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{name} is compressed")
        return info

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Return the offset of a member's bytes in the file, after a check of their CRC."""
        with self.archive.open(info) as member:
            while member.read(1 << 20):
                pass
        # The local header has 30 bytes, of which the last four are the lengths of what follows.
        lengths = struct.unpack_from("<HH", self.content.mapped, info.header_offset + 26)
        return info.header_offset + 30 + sum(lengths)


def _rebuild_tensor(
    storage: StoredTensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> StoredTensor:
    """Do what `torch._utils._rebuild_tensor_v2` does, within the bounds of the storage."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset < 0 or min((*shape, *strides), default=0) < 0 or (0 not in shape and last >= storage.size):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches outside its {storage.size} stored elements")
    contiguous = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if all(size <= 1 or stride == expected for size, stride, expected in zip(shape, strides, contiguous)):
        return replace(storage, shape=tuple(shape), offset=storage.offset + offset * storage.itemsize)
    strided = np.lib.stride_tricks.as_strided(
        storage.read()[offset:], shape, [stride * storage.itemsize for stride in strides]
    )
    return replace(StoredTensor.of(strided), dtype=storage.dtype)  # bits of bfloat16 stay such


def _rebuild_parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data


_ACCEPTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "HalfStorage"): "float16",
    ("torch", "FloatStorage"): "float32",
    ("torch", "DoubleStorage"): "float64",
    ("torch", "BFloat16Storage"): BFLOAT16,
    ("torch", "LongStorage"): "int64",
    ("torch", "IntStorage"): "int32",
    ("torch", "BoolStorage"): "bool",
}
