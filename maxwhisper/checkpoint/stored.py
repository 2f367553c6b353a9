"""Weights in files: mapped into memory, and read only when they are needed."""

import hashlib
import mmap
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from maxwhisper.errors import CheckpointError

BFLOAT16 = "bfloat16"  # NumPy has no such dtype; its bits are read as uint16


@dataclass(frozen=True)
class StoredBytes:
    """The bytes of a file, or bytes in memory."""

    mapped: Any  # supports the buffer protocol; the whole file, mapped into memory
    file: BufferedReader | None = None
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)  # of the place to read at in the file

    def __post_init__(self) -> None:
        if self.file is not None:
            weakref.finalize(self, self.file.close)

    @staticmethod
    def of(path: Path) -> "StoredBytes":
        """Map a file; raise OSError if that is impossible."""
        if not path.stat().st_size:  # an empty file can't be mapped
            return StoredBytes(b"")
        file = path.open("rb")
        return StoredBytes(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), file)

    def __len__(self) -> int:
        return len(self.mapped)

    def view(self, dtype: str, n: int, offset: int) -> np.ndarray:
        """Return n elements from an offset in bytes, without a copy."""
        return np.frombuffer(self.mapped, dtype, n, offset)

    def read(self, dtype: str, n: int, offset: int) -> np.ndarray:
        """Return what `view` returns, but read from the file, and aligned.

        Pages of a mapped file that were touched count as the memory of this process. Those that are
        only read don't.

        Raises:
            CheckpointError: if the file has become shorter.
        """
        if self.file is None:
            view = self.view(dtype, n, offset)
            return view if view.flags.aligned else view.copy()
        array = np.empty(n, dtype)
        with self.lock:
            self.file.seek(offset)
            n_read = self.file.readinto(array.view(np.uint8).data)
        if n_read < array.nbytes:
            raise CheckpointError(f"{self.file.name} changed while it was read; load it again")
        return array

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, len(self), _READ_AT_ONCE):
            digest.update(self.read("uint8", min(_READ_AT_ONCE, len(self) - start), start).data)
        return digest.hexdigest()


_READ_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)  # slots, because a pickle must not change attributes
class StoredTensor:
    """A weight as it is stored."""

    shape: tuple[int, ...]
    dtype: str  # NumPy's name, or `BFLOAT16`
    content: StoredBytes
    offset: int = 0  # in bytes
    # Of int8 weights, the dequantization scales, float32, one per element of the first dimension.
    scale: np.ndarray | None = None

    @staticmethod
    def of(array: np.ndarray) -> "StoredTensor":
        """Describe an array in memory."""
        return StoredTensor(array.shape, array.dtype.name, StoredBytes(np.ascontiguousarray(array).data))

    @property
    def itemsize(self) -> int:
        return np.dtype(self._numpy_dtype).itemsize

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers, or int8 numbers with scales."""
        return self.dtype == BFLOAT16 or self.scale is not None or np.dtype(self.dtype).kind == "f"

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Return the part with these indices of the first dimension."""
        n_bytes = self.itemsize * int(np.prod(self.shape[1:]))
        scale = None if self.scale is None else self.scale[start:stop]
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=self.offset + start * n_bytes, scale=scale)

    def view(self) -> np.ndarray:
        """Return the stored elements in place, bfloat16 as uint16.

        Raises:
            ValueError: if they are outside the content.
        """
        return self.content.view(self._numpy_dtype, self.size, self.offset).reshape(self.shape)

    def read(self) -> np.ndarray:
        """Return what `view` returns, but read from the file (`StoredBytes.read`)."""
        return self.content.read(self._numpy_dtype, self.size, self.offset).reshape(self.shape)

    def numbers(self) -> np.ndarray:
        """Read the numbers, bfloat16 and int8 as float32: exactly, and dequantized."""
        stored = self.read()
        if self.dtype == BFLOAT16:  # the same sign, exponent and leading bits
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if self.scale is not None:
            return stored * self.scale.reshape(-1, *[1] * (stored.ndim - 1))
        return stored

    def equals(self, other: "StoredTensor") -> bool:
        """Whether both have the same shape and numbers."""
        same_place = (self.shape, self.dtype, self.offset) == (other.shape, other.dtype, other.offset)
        if same_place and self.content is other.content:
            return True
        return self.shape == other.shape and np.array_equal(self.numbers(), other.numbers())

    @property
    def _numpy_dtype(self) -> str:
        return "uint16" if self.dtype == BFLOAT16 else self.dtype


class Weights(Mapping[str, np.ndarray]):
    """Stored weights as arrays of their numbers, each read anew whenever it is looked up."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = dict(stored)

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> "Weights":
        """Make stored weights of arrays in memory."""
        if isinstance(arrays, Weights):
            return arrays
        return Weights({name: StoredTensor.of(array) for name, array in arrays.items()})

    def __getitem__(self, name: str) -> np.ndarray:
        return self.stored[name].numbers()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the weight
        return name in self.stored
