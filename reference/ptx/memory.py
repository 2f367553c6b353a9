"""A GPU's memory: arrays at addresses, and who used which bytes since the last barrier."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reference.ptx.errors import MisalignedAddress, OutOfBounds, Race, UninitializedRead

ALIGNMENT = 256  # of arrays, as CUDA allocates them; at least as many unused bytes lie between two
POISON = 0xFF  # fills memory that nobody has written: NaN in every floating-point type
NOBODY = -1

# Tells whether what other threads did, at certain times, is ordered before what threads do now.
Ordered = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Array:
    """An array in a GPU's memory."""

    name: str
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    read_only: bool

    @property
    def end(self) -> int:
        """The address of the first byte after it."""
        return self.address + self.dtype.itemsize * int(np.prod(self.shape, dtype=int))


class Memory:
    """The global memory of a GPU."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._edges = np.zeros((2, 0), np.int64)  # of all arrays: the first byte, and the one after
        self._read_only = np.zeros(0, bool)
        self.bytes = np.full(0, POISON, np.uint8)
        self.written = np.zeros(0, bool)

    def put(self, values: np.ndarray, name: str = "", read_only: bool = False) -> int:
        """Copy an array to the GPU, and return its address.

        Args:
            values: any shape and dtype.
            name: for errors.
            read_only: whether it is an error if a kernel writes to it.
        """
        address = self.empty(values.shape, values.dtype, name, read_only)
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.bytes[address : address + flat.size] = flat
        self.written[address : address + flat.size] = True
        return address

    def empty(self, shape: tuple[int, ...], dtype: np.dtype | type, name: str = "", read_only: bool = False) -> int:
        """Allocate an array that nobody has written, and return its address."""
        address = ALIGNMENT + (-(-self.arrays[-1].end // ALIGNMENT) * ALIGNMENT if self.arrays else 0)
        array = Array(name or f"array {len(self.arrays)}", address, tuple(shape), np.dtype(dtype), read_only)
        self.arrays.append(array)
        self._edges = np.column_stack([self._edges, [array.address, array.end]])
        self._read_only = np.append(self._read_only, read_only)
        if (size := array.end + ALIGNMENT) > self.bytes.size:
            room = -(-max(size, 2 * self.bytes.size) // ALIGNMENT) * ALIGNMENT - self.bytes.size
            self.bytes = np.concatenate([self.bytes, np.full(room, POISON, np.uint8)])
            self.written = np.concatenate([self.written, np.zeros(room, bool)])
        return address

    def get(self, address: int) -> np.ndarray:
        """Return a copy of the array at an address."""
        (array,) = (array for array in self.arrays if array.address == address)
        return self.bytes[address : array.end].view(array.dtype).reshape(array.shape).copy()

    def find(self, addresses: np.ndarray) -> np.ndarray:
        """Return the index in `arrays` of the last array that begins at or before each address."""
        return np.searchsorted(self._edges[0], addresses, side="right") - 1

    def refuse_outside(self, at: np.ndarray, size: int, writes: bool) -> bool:
        """Raise `OutOfBounds` for the first address in no array, or in one that is read-only.

        Returns:
            Whether all addresses are in arrays that are read-only.
        """
        which = self.find(at)
        outside = (which < 0) | (at + size > self._edges[1][which]) | (at < self._edges[0][which])
        if outside.any():
            raise OutOfBounds("uses {address}", outside.argmax())
        read_only = self._read_only[which]
        if writes and read_only.any():
            raise OutOfBounds("writes {address}, which is read-only", read_only.argmax())
        return bool(read_only.all())


class Space:
    """Memory as a running kernel uses it: every access is checked.

    Args:
        name: of the state space, for errors.
        bytes: the memory.
        written: for each byte, whether anybody has written it.
        granule: the smallest number of bytes that an instruction reads or writes.
        ordered: tells what is ordered before what, by barriers.
    """

    def __init__(self, name: str, bytes: np.ndarray, written: np.ndarray, granule: int, ordered: Ordered) -> None:
        self.name, self.bytes, self.written, self.granule, self._ordered = name, bytes, written, granule, ordered
        n = bytes.size // granule
        # The last thread that wrote each granule, and when. Threads are stored plus one: where
        # nobody was, the operating system needs no memory for zeros.
        self._writer, self._written_at = np.zeros((2, n), np.int32)
        # The last thread that read it and a different one, if any has since the last barrier.
        self._readers, self._read_at = np.zeros((2, n), np.int32), np.zeros((2, n), np.int32)

    def load(self, at: np.ndarray, dtype: np.dtype, threads: np.ndarray, now: int, constant: bool) -> np.ndarray:
        """Read an element for each thread.

        Args:
            at: indices into `bytes`, inside it and aligned.
            dtype: of the elements.
            threads: those that read.
            now: the time.
            constant: whether nobody can write them.

        Raises:
            UninitializedRead: if nobody has written it.
            Race: if a different thread wrote it, and no barrier is between.
        """
        initialized = self._elements(self.written, at, dtype)
        if (missing := initialized != self._all_bytes(dtype)).any():
            raise UninitializedRead("reads {address}, which nobody has written", missing.argmax())
        for granules in [] if constant else self._granules(at, dtype):
            self._refuse_race(
                self._writer[granules], self._written_at[granules], threads, "reads {address}, which {other} wrote"
            )
            first = self._readers[0, granules] - 1
            replaced = (
                (first == NOBODY) | (first == threads) | self._ordered(first, self._read_at[0, granules], threads)
            )
            self._readers[0, granules[replaced]] = threads[replaced] + 1
            self._read_at[0, granules[replaced]] = now
            # Of threads that read the same granule now, one is first; remember one of the others.
            second = self._readers[0, granules] != threads + 1
            self._readers[1, granules[second]] = threads[second] + 1
            self._read_at[1, granules[second]] = now
        return self._elements(self.bytes, at, dtype).view(dtype)

    def store(self, at: np.ndarray, values: np.ndarray, threads: np.ndarray, now: int) -> None:
        """Write an element for each thread, as `load` reads them.

        Raises:
            Race: if a different thread read or wrote it, and no barrier is between.
        """
        dtype = values.dtype
        for granules in self._granules(at, dtype):
            self._refuse_race(
                self._writer[granules], self._written_at[granules], threads, "writes {address}, which {other} wrote"
            )
            for readers, read_at in zip(self._readers, self._read_at):
                self._refuse_race(readers[granules], read_at[granules], threads, "writes {address}, which {other} read")
            self._writer[granules], self._written_at[granules] = threads + 1, now
            self._refuse_race(
                self._writer[granules], self._written_at[granules], threads, "writes {address}, which {other} wrote"
            )
        size = dtype.itemsize
        self.bytes.view(f"u{size}")[at // size] = values.view(f"u{size}")
        self.written.view(f"u{size}")[at // size] = self._all_bytes(dtype)

    def _granules(self, at: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
        return [at // self.granule + i for i in range(dtype.itemsize // self.granule)]

    def _refuse_race(self, stored: np.ndarray, times: np.ndarray, threads: np.ndarray, text: str) -> None:
        others = stored - 1
        races = (others != NOBODY) & (others != threads) & ~self._ordered(others, times, threads)
        if races.any():
            i = races.argmax()
            raise Race(f"{text}, with no barrier between", i, others[i])

    @staticmethod
    def _elements(bytes: np.ndarray, at: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return bytes.view(f"u{dtype.itemsize}")[at // dtype.itemsize]

    @staticmethod
    def _all_bytes(dtype: np.dtype) -> int:
        return int.from_bytes(b"\x01" * dtype.itemsize, "little")


def refuse_misaligned(at: np.ndarray, size: int) -> None:
    """Raise `MisalignedAddress` for the first address that is not a multiple of a size."""
    if (wrong := at % size != 0).any():
        raise MisalignedAddress(f"uses {{address}}, which is not a multiple of {size} bytes", wrong.argmax())
