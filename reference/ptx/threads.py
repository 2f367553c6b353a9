"""The threads of a grid: their registers, where each is in the program, and what each waits for."""

from collections.abc import Mapping

import numpy as np

from reference.ptx.memory import POISON
from reference.ptx.program import (
    PACKED,
    TYPES,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Register,
    Special,
    Symbol,
)

WARP = 32
Dim = tuple[int, int, int]


class Threads:
    """All threads of a grid, block by block, x first.

    Args:
        kernel: what they run.
        grid: the number of blocks in x, y and z.
        block: the number of threads of a block in x, y and z.
    """

    def __init__(self, kernel: Kernel, grid: Dim, block: Dim) -> None:
        self.n_blocks, self.block_size = int(np.prod(grid)), int(np.prod(block))
        n = self.n_blocks * self.block_size
        in_block = np.tile(np.arange(self.block_size), self.n_blocks)
        self.block = np.repeat(np.arange(self.n_blocks), self.block_size)
        n_warps = -(-self.block_size // WARP)  # of a block
        self.warp = self.block * n_warps + in_block // WARP
        self.lane = in_block % WARP
        self.pc = np.zeros(n, int)
        self.exited = np.zeros(n, bool)
        self.waits = np.zeros(n, bool)  # at a barrier of the block
        self.stalls = np.zeros(n, bool)  # at an instruction of the warp
        # Whether it has waited for the kernel before, and had when it let the next kernel start.
        self.waited, self.waited_first = np.zeros(n, bool), np.ones(n, bool)
        self._shared = kernel.shared
        self._registers: dict[str, np.ndarray] = {}
        self._special = {
            **_coordinates("tid", in_block, block),
            **_coordinates("ctaid", self.block, grid),
            **{f"%ntid.{axis}": np.full(n, size) for axis, size in zip("xyz", block)},
            **{f"%nctaid.{axis}": np.full(n, size) for axis, size in zip("xyz", grid)},
            "%laneid": self.lane,
            "%lanemask_lt": (1 << self.lane) - 1,
        }

    def __len__(self) -> int:
        return len(self.pc)

    def where(self, thread: int) -> str:
        """Say which thread it is."""
        thread_at, block_at = (
            tuple(int(self._special[f"%{name}.{axis}"][thread]) for axis in "xyz") for name in ("tid", "ctaid")
        )
        return f"thread {thread_at} of block {block_at}"

    def read(self, operand: Operand, type: str, threads: np.ndarray) -> np.ndarray:
        """Return an operand's value for each thread; for a packed type, two in a row.

        A register may be wider than the type, whose bits are then its lower ones.
        """
        if isinstance(operand, Negated):
            return ~self.read(operand.register, "pred", threads)
        dtype = TYPES[type]
        if type == "pred" and not isinstance(operand, Register):
            assert isinstance(operand, Immediate)
            return np.full(len(threads), bool(operand.bits))
        bits = np.dtype("u4" if type in PACKED else f"u{dtype.itemsize}")
        match operand:
            case Register(name, register_dtype):
                values = self._register(name, register_dtype)[threads]
                if register_dtype.kind == "b":
                    return values
            case Special(name):
                if name not in self._special:
                    raise NotImplementedError(f"the special register {name}")
                values = self._special[name][threads]
            case Immediate(number):
                values = np.full(len(threads), number & (1 << 8 * bits.itemsize) - 1, bits)
            case Symbol(name) if name in self._shared:
                values = np.full(len(threads), self._shared[name])
            case _:
                raise NotImplementedError(f"the operand {operand}")
        values = np.ascontiguousarray(values.astype(bits)).view(dtype)
        return values.reshape(-1, 2) if type in PACKED else values

    def write(self, operand: Operand, values: np.ndarray, threads: np.ndarray) -> None:
        """Set a register of each thread. A wider register is filled with the sign or with zeros."""
        if operand == Symbol("_"):  # the result is dropped
            return
        assert isinstance(operand, Register), operand
        register = self._register(operand.name, operand.dtype)
        if operand.dtype.kind != "b":
            if values.ndim == 2:  # packed
                values = np.ascontiguousarray(values).view(np.uint32)[:, 0]
            elif values.dtype.kind != "i":
                values = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
            values = values.astype(f"i{operand.dtype.itemsize}" if values.dtype.kind == "i" else operand.dtype)
            values = values.view(operand.dtype)
        register[threads] = values

    def takes_part(self, instruction: Instruction, threads: np.ndarray) -> np.ndarray:
        """Return for which threads an instruction's guard is true."""
        if instruction.guard is None:
            return np.ones(len(threads), bool)
        return self.read(instruction.guard, "pred", threads)

    def _register(self, name: str, dtype: np.dtype) -> np.ndarray:
        if name not in self._registers:
            poison = True if dtype.kind == "b" else int.from_bytes(bytes([POISON]) * dtype.itemsize, "little")
            self._registers[name] = np.full(len(self), poison, dtype)
        return self._registers[name]


def _coordinates(name: str, index: np.ndarray, size: Dim) -> Mapping[str, np.ndarray]:
    x, y, _ = size
    return {f"%{name}.x": index % x, f"%{name}.y": index // x % y, f"%{name}.z": index // (x * y)}
