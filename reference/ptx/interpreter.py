"""Run a kernel: all threads of its grid, warps in random order.

What a GPU leaves undefined is an error here, if a thread does it: see `reference.ptx.errors`. A
register that nobody has set holds ones, which is NaN in every floating-point type.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from reference.ptx import arithmetic, tensor_cores
from reference.ptx.errors import Deadlock, KernelError, OutOfBounds
from reference.ptx.memory import POISON, Memory, Space, refuse_misaligned
from reference.ptx.program import (
    PACKED,
    TYPES,
    Address,
    Instruction,
    Kernel,
    Operand,
    Parameter,
    Register,
    Several,
    Symbol,
)
from reference.ptx.threads import Dim, Threads


class Order(Protocol):
    """Checks a kernel's order among others: see `reference.ptx.stream`."""

    def use(self, at: np.ndarray, size: int, waited: np.ndarray, writes: bool) -> None:
        """Check the bytes that threads read or write."""

    def end(self, threads: Threads) -> None:
        """Learn how the threads waited."""


SPLIT = 0.02  # how often some of the warps that are ready at an instruction are left behind


def launch(
    kernel: Kernel,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    arguments: Sequence[int | float],
    memory: Memory,
    dynamic_shared: int = 0,
    seed: int = 0,
    order: Order | None = None,
) -> int:
    """Run a kernel on every thread of a grid.

    Args:
        kernel: the kernel.
        grid: the number of blocks in x, or in x, y and z.
        block: the number of threads of a block, alike.
        arguments: the kernel's; addresses are those that `Memory.put` returned.
        memory: what the kernel reads and writes.
        dynamic_shared: bytes of shared memory beyond those that the kernel declares.
        seed: of the order of warps.
        order: checks the order of this kernel and others of its stream (`reference.ptx.stream`).

    Returns:
        How many times an instruction was run, for any number of threads.

    Raises:
        KernelError: if a thread does what CUDA does not define.
        NotImplementedError: if an instruction is not known.
        ValueError: if the arguments or the block do not fit the kernel.
    """
    return _Launch(kernel, _dim(grid), _dim(block), arguments, memory, dynamic_shared, seed, order).run()


def _dim(sizes: int | Sequence[int]) -> Dim:
    x, y, z = (*([sizes] if isinstance(sizes, int) else sizes), 1, 1)[:3]
    return x, y, z


def _parameter_bytes(kernel: Kernel, arguments: Sequence[int | float]) -> np.ndarray:
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}")
    last = kernel.parameters[-1] if kernel.parameters else Parameter("", "b8", 0, 0)
    data = np.full(last.offset + last.size, POISON, np.uint8)
    for parameter, argument in zip(kernel.parameters, arguments):
        size = parameter.size
        value = np.array(argument, f"f{size}" if isinstance(argument, float) else f"i{size}")
        data[parameter.offset : parameter.offset + size] = value.reshape(1).view(np.uint8)
    return data


class _Launch:
    """The state of a running grid."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Dim,
        block: Dim,
        arguments: Sequence[int | float],
        memory: Memory,
        dynamic_shared: int,
        seed: int,
        order: Order | None,
    ) -> None:
        self.threads = threads = Threads(kernel, grid, block)
        if kernel.max_threads and threads.block_size > kernel.max_threads:
            raise ValueError(
                f"{kernel.name} takes blocks of at most {kernel.max_threads} threads, not {threads.block_size}"
            )
        self.kernel, self.memory, self._rng = kernel, memory, np.random.default_rng(seed)
        self._order = order
        self._parameters = _parameter_bytes(kernel, arguments)
        self.now = 0
        # When a barrier of the block, or of the warp, was last passed.
        self._block_passed = np.zeros(threads.n_blocks, np.int32)
        self._warp_passed = np.zeros(threads.warp[-1] + 1, np.int32)
        self._warp_begins = np.flatnonzero(np.diff(threads.warp, prepend=-1))
        self._shared_size = -(-(kernel.shared_size + dynamic_shared) // 16) * 16 or 16  # of a block
        shared = np.full(self._shared_size * threads.n_blocks, POISON, np.uint8)
        self.spaces = {
            "global": Space("global", memory.bytes, memory.written, self._granule("global"), self._ordered),
            "shared": Space("shared", shared, np.zeros(shared.size, bool), self._granule("shared"), self._ordered),
        }

    def run(self) -> int:
        """Run until all threads have exited, and return the number of steps."""
        threads = self.threads
        with np.errstate(all="ignore"):
            while not threads.exited.all():
                ready = ~(threads.exited | threads.waits | threads.stalls)
                if not ready.any() or self._rng.random() < 0.2:
                    ready = self._pass_barriers(ready)
                self._step(ready)
        if self._order:
            self._order.end(threads)
        return self.now

    def _step(self, ready: np.ndarray) -> None:
        """Run one instruction, on the threads of some warps that are about to run it.

        In each warp, the threads that are behind go first, so that those that branched meet again.
        """
        threads = self.threads
        first = np.minimum.reduceat(np.where(ready, threads.pc, len(self.kernel.code)), self._warp_begins)
        pc = self._rng.choice(np.unique(first[first < len(self.kernel.code)]))
        warps = first == pc
        if self._rng.random() < SPLIT:
            warps &= self._rng.random(len(warps)) < 0.5
        here = np.flatnonzero(warps[threads.warp] & ready & (threads.pc == pc))
        if not len(here):
            return
        self.now += 1
        instruction = self.kernel.code[pc]
        try:
            self._execute(instruction, here)
        except KernelError as error:
            raise type(error)(f"{self.kernel.name}, {instruction}: {error}") from None

    def _execute(self, instruction: Instruction, here: np.ndarray) -> None:
        threads = self.threads
        if instruction.opcode in _TOGETHER:
            threads.stalls[here] = True
            here = self._all_here(instruction, here)
            threads.stalls[here] = False
            if not len(here):
                return
        taken = threads.takes_part(instruction, here)
        active = here[taken]
        threads.pc[here] += 1
        if not len(active):
            return
        if instruction.opcode not in _RUN:
            raise NotImplementedError(f"{self.kernel.name}, {instruction}")
        _RUN[instruction.opcode](self, instruction, active)

    def _all_here(self, instruction: Instruction, here: np.ndarray) -> np.ndarray:
        """Return the stalled threads for which all threads of the mask are here."""
        threads, pc = self.threads, self.threads.pc[here[0]]
        is_here = threads.stalls & (threads.pc == pc)
        stalled = np.flatnonzero(is_here)
        lanes = 1 << threads.lane
        exists, arrived = (np.bitwise_or.reduceat(x, self._warp_begins) for x in (lanes, np.where(is_here, lanes, 0)))
        wanted = exists[threads.warp[stalled]]
        if instruction.opcode != "mma":  # for which all lanes are wanted
            wanted &= threads.read(instruction.operands[-1], "b32", stalled).astype(np.int64)
        return stalled[(arrived[threads.warp[stalled]] & wanted) == wanted]

    def _pass_barriers(self, ready: np.ndarray) -> np.ndarray:
        """Let the threads of each block go on whose other threads have all arrived or exited."""
        threads = self.threads
        arrived = np.all((threads.waits | threads.exited).reshape(threads.n_blocks, -1), axis=1)
        passing = arrived[threads.block] & threads.waits
        self._block_passed[np.unique(threads.block[passing])] = self.now + 1
        threads.waits[passing] = False
        ready = ready | passing
        if not ready.any():
            stuck = int(np.flatnonzero(~threads.exited)[0])
            instruction = self.kernel.code[threads.pc[stuck] - bool(threads.waits[stuck])]
            raise Deadlock(f"{self.kernel.name}, {instruction}: {threads.where(stuck)} waits for ever")
        return ready

    def _ordered(self, others: np.ndarray, times: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Return whether what other threads did is ordered before now by a barrier."""
        block, warp = self.threads.block, self.threads.warp
        same_block, same_warp = block[others] == block[threads], warp[others] == warp[threads]
        return (same_block & (times < self._block_passed[block[threads]])) | (
            same_warp & (times < self._warp_passed[warp[threads]])
        )

    def _granule(self, space: str) -> int:
        """Return the size of the smallest element that an instruction uses in a state space."""
        return min(
            (TYPES[i.type].itemsize for i in self.kernel.code if i.opcode in ("ld", "st") and i.has(space)), default=4
        )

    # Instructions, on the threads whose guard is true. Their `pc` is already the next one.

    def _branch(self, instruction: Instruction, active: np.ndarray) -> None:
        (target,) = instruction.operands
        assert isinstance(target, Symbol)
        self.threads.pc[active] = self.kernel.labels[target.name]

    def _exit(self, instruction: Instruction, active: np.ndarray) -> None:
        self.threads.exited[active] = True

    def _trap(self, instruction: Instruction, active: np.ndarray) -> None:
        raise KernelError(f"{self.threads.where(active[0])} traps")

    def _barrier(self, instruction: Instruction, active: np.ndarray) -> None:
        if instruction.has("warp"):
            self._warp_passed[np.unique(self.threads.warp[active])] = self.now + 1
        elif instruction.has("sync") and len(instruction.operands) == 1:
            self.threads.waits[active] = True
        else:
            raise NotImplementedError(f"{self.kernel.name}, {instruction}")

    def _grid_dependency(self, instruction: Instruction, active: np.ndarray) -> None:
        if instruction.has("wait"):
            self.threads.waited[active] = True
        else:
            self.threads.waited_first[active] = self.threads.waited[active]

    def _nothing(self, instruction: Instruction, active: np.ndarray) -> None:
        """Pass an instruction that only delays what comes after it."""

    def _load(self, instruction: Instruction, active: np.ndarray) -> None:
        destination, address = instruction.operands
        assert isinstance(address, Address)
        dtype = TYPES[instruction.type]
        if instruction.has("param"):
            (parameter,) = (p for p in self.kernel.parameters if p.name == address.base.name)  # type: ignore[union-attr]
            begin = parameter.offset + address.offset
            value = self._parameters[begin : begin + dtype.itemsize].view(dtype)
            self.threads.write(destination, np.repeat(value, len(active)), active)
            return
        space, at, shown, constant = self._locate(instruction, address, active)
        for i, part in enumerate(destination.parts if isinstance(destination, Several) else [destination]):
            values = self._checked(
                space.name, active, shown, space.load, at + i * dtype.itemsize, dtype, active, self.now, constant
            )
            self.threads.write(part, values, active)

    def _store(self, instruction: Instruction, active: np.ndarray) -> None:
        address, source = instruction.operands
        assert isinstance(address, Address)
        size = TYPES[instruction.type].itemsize
        space, at, shown, _ = self._locate(instruction, address, active)
        for i, part in enumerate(source.parts if isinstance(source, Several) else [source]):
            values = self.threads.read(part, instruction.type, active)
            self._checked(space.name, active, shown, space.store, at + i * size, values, active, self.now)

    def _locate(
        self, instruction: Instruction, address: Address, active: np.ndarray
    ) -> tuple[Space, np.ndarray, np.ndarray, bool]:
        """Check an access.

        Returns:
            Its space, the indices of its bytes, the addresses, and whether nobody can write there.
        """
        name = next((name for name in self.spaces if instruction.has(name)), "")
        if not name:
            raise NotImplementedError(f"{self.kernel.name}, {instruction}: neither global nor shared memory")
        wide = isinstance(address.base, Register) and address.base.dtype.itemsize == 8
        at = self.threads.read(address.base, "u64" if wide else "u32", active).astype(np.int64) + address.offset
        parts = next((int(v[1:]) for v in instruction.modifiers if v in ("v2", "v4", "v8")), 1)
        size = TYPES[instruction.type].itemsize * parts
        self._checked(name, active, at, refuse_misaligned, at, size)
        if name == "global":
            writes = instruction.opcode == "st"
            constant = self._checked(name, active, at, self.memory.refuse_outside, at, size, writes)
            if self._order and not constant:
                self._checked(name, active, at, self._order.use, at, size, self.threads.waited[active], writes)
            return self.spaces[name], at, at, constant
        self._checked(name, active, at, self._refuse_outside_shared, at, size)
        return self.spaces[name], at + self.threads.block[active] * self._shared_size, at, False

    def _refuse_outside_shared(self, at: np.ndarray, size: int) -> None:
        if (outside := (at < 0) | (at + size > self._shared_size)).any():
            raise OutOfBounds("uses {address}", int(outside.argmax()))

    def _checked(self, space: str, active: np.ndarray, at: np.ndarray, use: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that uses memory; say in its error which thread uses which address."""
        try:
            return use(*arguments)
        except KernelError as error:
            thread, other = active[error.index], error.other
            address = self._address(space, int(at[error.index]))
            text = str(error).format(address=address, other="" if other < 0 else self.threads.where(other))
            raise type(error)(f"{self.threads.where(thread)} {text}") from None

    def _address(self, space: str, at: int) -> str:
        if space == "shared":
            return f"byte {at} of {self._shared_size} in shared memory"
        index = self.memory.find(np.array([at]))[0]
        if index < 0:
            return f"address {at}, below every array"
        array = self.memory.arrays[index]
        return f"byte {at - array.address} of {array.end - array.address} in {array.name}"

    def _shuffle(self, instruction: Instruction, active: np.ndarray) -> None:
        """Read other lanes' registers, as chapter 9.7.9.6 of the PTX ISA defines."""
        threads = self.threads
        target, source, b, c, _ = instruction.operands
        destination, found = target.parts if isinstance(target, Several) else (target, None)
        offset, packed = (threads.read(x, "b32", active).astype(int) for x in (b, c))
        lane, clamp, segment = threads.lane[active], packed & 31, packed >> 8 & 31
        last = (lane & segment) | (clamp & ~segment)
        mode = next(modifier for modifier in instruction.modifiers if modifier in ("up", "down", "bfly", "idx"))
        other = {
            "up": lane - offset,
            "down": lane + offset,
            "bfly": lane ^ offset,
            "idx": (lane & segment) | (offset & ~segment),
        }[mode]
        inside = other >= last if mode == "up" else other <= last
        others = active - lane + np.where(inside, other, lane)
        if (absent := ~np.isin(others, active)).any():
            thread = active[absent.argmax()]
            raise KernelError(f"{threads.where(thread)} reads a lane that does not take part")
        threads.write(destination, threads.read(source, "b32", others), active)
        if found is not None:
            threads.write(found, inside, active)

    def _vote(self, instruction: Instruction, active: np.ndarray) -> None:
        threads = self.threads
        destination, source, _ = instruction.operands
        votes = threads.read(source, "pred", active)
        ballots = np.zeros(len(self._warp_passed), np.int64)
        voters = np.zeros_like(ballots)
        np.bitwise_or.at(voters, threads.warp[active], 1 << threads.lane[active])
        np.bitwise_or.at(ballots, threads.warp[active], votes.astype(np.int64) << threads.lane[active])
        ballot, all_votes = ballots[threads.warp[active]], voters[threads.warp[active]]
        results = {
            "ballot": ballot.astype(np.uint32),
            "any": ballot != 0,
            "all": ballot == all_votes,
            "uni": (ballot == 0) | (ballot == all_votes),
        }
        threads.write(destination, next(results[m] for m in instruction.modifiers if m in results), active)

    def _multiply_matrices(self, instruction: Instruction, active: np.ndarray) -> None:
        threads, type = self.threads, instruction.modifiers[-2]
        if instruction.modifiers != ("sync", "aligned", "m16n8k16", "row", "col", "f32", type, type, "f32"):
            raise NotImplementedError(f"{self.kernel.name}, {instruction}")
        if len(active) % 32 or (threads.lane[active].reshape(-1, 32) != np.arange(32)).any():
            raise KernelError(f"{threads.where(active[0])} multiplies matrices without all lanes of its warp")

        def numbers(operand: Operand, type: str) -> np.ndarray:
            parts = [threads.read(part, type, active) for part in operand.parts]  # type: ignore[union-attr]
            return np.stack(parts, axis=1).reshape(-1, 32, len(parts) * (2 if type in PACKED else 1))

        destination, a, b, c = instruction.operands
        result = tensor_cores.multiply_accumulate(
            numbers(a, f"{type}x2"), numbers(b, f"{type}x2"), numbers(c, "f32")
        ).reshape(-1, 4)
        for part, values in zip(destination.parts, result.T):  # type: ignore[union-attr]
            threads.write(part, np.ascontiguousarray(values), active)

    def _move(self, instruction: Instruction, active: np.ndarray) -> None:
        threads = self.threads
        destination, source = instruction.operands
        dtype = TYPES[instruction.type]
        if isinstance(destination, Several):  # unpack
            part = np.dtype(f"u{dtype.itemsize // len(destination.parts)}")
            pieces = threads.read(source, instruction.type, active).reshape(-1, 1).view(part)
            for register, piece in zip(destination.parts, pieces.T):
                threads.write(register, np.ascontiguousarray(piece), active)
        elif isinstance(source, Several):  # pack
            part_type = f"b{8 * dtype.itemsize // len(source.parts)}"
            pieces = np.stack([threads.read(register, part_type, active) for register in source.parts], axis=1)
            threads.write(destination, pieces.view(f"u{dtype.itemsize}")[:, 0], active)
        else:
            threads.write(destination, threads.read(source, instruction.type, active), active)

    def _to_address(self, instruction: Instruction, active: np.ndarray) -> None:
        if not instruction.has("global"):  # a generic address of shared memory would need a window of its own
            raise NotImplementedError(f"{self.kernel.name}, {instruction}")
        self._move(instruction, active)

    def _convert(self, instruction: Instruction, active: np.ndarray) -> None:
        to, of = [modifier for modifier in instruction.modifiers if modifier in TYPES]
        rounding = next((m for m in instruction.modifiers if m in ("rn", *arithmetic.ROUND_TO_INTEGER)), "")
        if unknown := {m for m in instruction.modifiers if m not in TYPES} - {rounding, "sat", "ftz"}:
            raise NotImplementedError(f"{self.kernel.name}, {instruction}: {', '.join(sorted(unknown))}")
        destination, *sources = instruction.operands
        # The first of two sources goes to the upper half.
        values = [self.threads.read(source, of, active) for source in reversed(sources)]
        if instruction.has("ftz"):
            values = [arithmetic.flush(value) for value in values]
        results = [arithmetic.convert(value, TYPES[to], rounding, instruction.has("sat")) for value in values]
        self.threads.write(destination, np.stack(results, axis=1) if to in PACKED else results[0], active)

    def _set_predicate(self, instruction: Instruction, active: np.ndarray) -> None:
        threads = self.threads
        destination, x, y, *combined = instruction.operands
        how, *others = instruction.modifiers
        numbers = [threads.read(operand, instruction.type, active) for operand in (x, y)]
        if instruction.has("ftz"):
            numbers = list(map(arithmetic.flush, numbers))
        true = arithmetic.compare(how, *numbers)
        results = [true, ~true]
        if combined:
            other = threads.read(combined[0], "pred", active)
            join = arithmetic.TWO[next(m for m in others if m in ("and", "or", "xor"))]
            results = [join(result, other) for result in results]
        for part, result in zip(destination.parts if isinstance(destination, Several) else [destination], results):
            threads.write(part, result, active)

    def _select(self, instruction: Instruction, active: np.ndarray) -> None:
        destination, x, y, condition = instruction.operands
        numbers = [self.threads.read(operand, instruction.type, active) for operand in (x, y)]
        chosen = np.where(self.threads.read(condition, "pred", active), *numbers)
        self.threads.write(destination, chosen, active)

    def _compute(self, instruction: Instruction, active: np.ndarray) -> None:
        """Run an instruction that computes a number from one, two or three numbers."""
        threads, opcode, type = self.threads, instruction.opcode, instruction.type
        destination, *sources = instruction.operands
        known = {*TYPES, "rn", "lo", "hi", "wide", "approx", "full", "ftz", "sat", "NaN"}
        if unknown := set(instruction.modifiers) - known:
            raise NotImplementedError(f"{self.kernel.name}, {instruction}: {', '.join(sorted(unknown))}")
        types = [type] * len(sources)
        if opcode in ("shl", "shr"):
            types[1] = "u32"
        wide = instruction.has("wide")
        if wide and len(sources) == 3:
            types[2] = f"{type[0]}{2 * int(type[1:])}"
        values = [threads.read(source, source_type, active) for source, source_type in zip(sources, types)]
        if instruction.has("ftz"):
            values = [arithmetic.flush(value) for value in values]
        if wide or instruction.has("hi"):
            product = (arithmetic.multiply_wide if wide else arithmetic.multiply_high)(*values[:2])
            result = product + values[2] if opcode == "mad" else product
        else:
            tables = (arithmetic.ONE, arithmetic.TWO, arithmetic.THREE)
            function = arithmetic.PROPAGATING[opcode] if instruction.has("NaN") else tables[len(values) - 1][opcode]
            result = function(*values)
        if instruction.has("ftz"):
            result = arithmetic.flush(result)
        if instruction.has("sat"):
            result = np.clip(np.nan_to_num(result), 0, 1).astype(result.dtype)
        threads.write(destination, result, active)


# Instructions for which the threads of a warp wait for each other.
_TOGETHER = ("shfl", "vote", "mma")
_RUN: dict[str, Callable[[_Launch, Instruction, np.ndarray], None]] = {
    "bra": _Launch._branch,
    "ret": _Launch._exit,
    "exit": _Launch._exit,
    "trap": _Launch._trap,
    "bar": _Launch._barrier,
    "barrier": _Launch._barrier,
    "griddepcontrol": _Launch._grid_dependency,
    "membar": _Launch._nothing,
    "fence": _Launch._nothing,
    "ld": _Launch._load,
    "st": _Launch._store,
    "shfl": _Launch._shuffle,
    "vote": _Launch._vote,
    "mma": _Launch._multiply_matrices,
    "mov": _Launch._move,
    "cvta": _Launch._to_address,
    "cvt": _Launch._convert,
    "setp": _Launch._set_predicate,
    "selp": _Launch._select,
    **dict.fromkeys([*arithmetic.ONE, *arithmetic.TWO, *arithmetic.THREE], _Launch._compute),
}
