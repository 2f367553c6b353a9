"""Kernels launched one after the other, which programmatic dependent launch may overlap.

Source: NVIDIA's "CUDA C++ Programming Guide", "Programmatic Dependent Launch and Synchronization".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reference.ptx.errors import Race
from reference.ptx.interpreter import launch
from reference.ptx.memory import NOBODY, Memory
from reference.ptx.program import Kernel
from reference.ptx.threads import Threads

WORD = 4  # bytes; who used memory is remembered for each word


@dataclass
class Grid:
    """A launched kernel, and which of the stream's earlier kernels have ended by when.

    Args:
        ended_at_start: those whose results it may use from its start on.
        ended_after_wait: those whose results a thread may use after `griddepcontrol.wait`.
        waited: whether every thread waits.
        waited_first: whether every thread waits before it lets the next kernel start.
    """

    ended_at_start: frozenset[int]
    ended_after_wait: frozenset[int]
    waited: bool = False
    waited_first: bool = False


class Stream:
    """A stream of kernels on one memory.

    A kernel that overlaps starts when every thread of the kernel before has run
    `griddepcontrol.launch_dependents` or has exited. What that kernel and those that it did not
    wait for write may then not be there yet, and what they read may not be overwritten.

    Kernels are interpreted one after the other here. That an order is missing is seen from who used
    the same words.

    Args:
        memory: what the kernels read and write.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._grids: list[Grid] = []
        # The last kernel that wrote each word, and the last that read it.
        self._writer = self._reader = np.full(0, NOBODY, np.int32)

    def launch(
        self,
        kernel: Kernel,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[int | float],
        dynamic_shared: int = 0,
        seed: int = 0,
        overlaps: bool = False,
    ) -> int:
        """Run a kernel after those launched before, as `reference.ptx.launch` does.

        Args:
            kernel: as there, and so the next five.
            grid: the number of blocks.
            block: the number of threads of a block.
            arguments: the kernel's.
            dynamic_shared: bytes of shared memory beyond those that the kernel declares.
            seed: of the order of warps.
            overlaps: whether it is launched with programmatic stream serialization.

        Raises:
            Race: if a thread uses memory that an earlier kernel may still be using.
        """
        if (more := self.memory.bytes.size // WORD - len(self._writer)) > 0:
            room = np.full(more, NOBODY, np.int32)
            self._writer, self._reader = (np.concatenate([used, room]) for used in (self._writer, self._reader))
        launched = self._grid(overlaps)
        self._grids.append(launched)
        order = _Order(launched, len(self._grids) - 1, self._writer, self._reader)
        return launch(kernel, grid, block, arguments, self.memory, dynamic_shared, seed, order)

    def _grid(self, overlaps: bool) -> Grid:
        everything = frozenset(range(len(self._grids)))
        if not overlaps or not self._grids:
            return Grid(everything, everything)
        previous = self._grids[-1]
        at_start = previous.ended_after_wait if previous.waited_first else previous.ended_at_start
        before = previous.ended_after_wait if previous.waited else previous.ended_at_start
        return Grid(at_start, at_start | before | {len(self._grids) - 1})


class _Order:
    """Checks every use of global memory by one kernel."""

    def __init__(self, grid: Grid, index: int, writer: np.ndarray, reader: np.ndarray) -> None:
        self.grid, self._index, self._writer, self._reader = grid, index, writer, reader
        # For each kernel, whether it has ended at the start, and after waiting. The last one is
        # this kernel and, as index -1, nobody.
        self._ended = np.array(
            [
                [i in ended or i == index for i in range(index + 1)]
                for ended in (grid.ended_at_start, grid.ended_after_wait)
            ]
        )

    def use(self, at: np.ndarray, size: int, waited: np.ndarray, writes: bool) -> None:
        """Check the bytes that threads read or write, and remember them.

        Args:
            at: the address of each.
            size: the number of bytes.
            waited: whether each thread has waited for the kernel before.
            writes: whether they write.

        Raises:
            Race: if an earlier kernel that may not have ended uses them.
        """
        for offset in range(0, size, WORD):
            words = (at + offset) // WORD
            self._refuse(self._writer[words], waited, "writes" if writes else "reads", "wrote")
            if writes:
                self._refuse(self._reader[words], waited, "writes", "read")
                self._writer[words] = self._index
            else:
                self._reader[words] = self._index

    def end(self, threads: Threads) -> None:
        """Note how the kernel's threads waited."""
        self.grid.waited = bool(threads.waited.all())
        self.grid.waited_first = bool(threads.waited_first.all())

    def _refuse(self, users: np.ndarray, waited: np.ndarray, does: str, did: str) -> None:
        if (early := ~self._ended[waited.astype(int), users]).any():
            i = int(early.argmax())
            when = "after waiting for another only" if waited[i] else "before griddepcontrol.wait"
            raise Race(f"{does} {{address}}, which kernel {users[i]} of the stream {did}, {when}", i)
