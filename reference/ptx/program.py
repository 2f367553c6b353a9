"""PTX text as instructions, with the kernel's parameters, registers and shared memory.

Source: NVIDIA's "PTX ISA", chapters 4 (syntax), 5 (types, state spaces) and 10 (special registers).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np

# Packed types have two numbers in a register of 32 bits, which `Threads` views as two columns.
TYPES = {
    "pred": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16x2": np.dtype(np.float16),
    "bf16x2": np.dtype(ml_dtypes.bfloat16),
}
PACKED = ("f16x2", "bf16x2")


@dataclass(frozen=True)
class Register:
    """A register of each thread."""

    name: str
    dtype: np.dtype  # an unsigned integer of its width, or bool for a predicate


@dataclass(frozen=True)
class Special:
    """A register that the hardware sets, such as `%tid.x`."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a floating-point number."""

    bits: int


@dataclass(frozen=True)
class Symbol:
    """The name of a parameter, of an array in shared memory, or of a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """`[base+offset]`."""

    base: "Register | Symbol | Immediate"
    offset: int


@dataclass(frozen=True)
class Several:
    """`{a, b}` or `a|b`."""

    parts: tuple["Operand", ...]


@dataclass(frozen=True)
class Negated:
    """`!p`."""

    register: Register


Operand = Register | Special | Immediate | Symbol | Address | Several | Negated


@dataclass(frozen=True)
class Instruction:
    """An instruction, such as `@%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8];`."""

    text: str
    line: int  # in the PTX text, from 1
    guard: Register | Negated | None  # threads for which it is false skip the instruction
    opcode: str  # the part before the first dot
    modifiers: tuple[str, ...]  # the other parts
    operands: tuple[Operand, ...]

    @cached_property
    def type(self) -> str:
        """The last modifier that is a type; "" if there is none."""
        return next((modifier for modifier in reversed(self.modifiers) if modifier in TYPES), "")

    def has(self, *modifiers: str) -> bool:
        """Whether it has one of these modifiers."""
        return any(modifier in self.modifiers for modifier in modifiers)

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel, in the bytes that a launch passes."""

    name: str
    type: str  # a key of TYPES
    count: int  # elements; 1 but for a structure
    offset: int

    @property
    def size(self) -> int:
        """In bytes."""
        return TYPES[self.type].itemsize * self.count


@dataclass(frozen=True)
class Kernel:
    """A kernel's instructions, and what it declares.

    Args:
        name: as in the PTX.
        parameters: in order.
        shared: the offset in bytes of each array in shared memory.
        shared_size: the bytes of them all. Memory whose size the launch sets comes after them.
        code: the instructions.
        labels: the index in `code` of each label.
        max_threads: of a block; None if the kernel does not limit them.
    """

    name: str
    parameters: tuple[Parameter, ...]
    shared: dict[str, int]
    shared_size: int
    code: tuple[Instruction, ...]
    labels: dict[str, int]
    max_threads: int | None

    @staticmethod
    def parse(text: str, name: str = "") -> "Kernel":
        """Parse the only kernel of a PTX text whose name contains `name`.

        Raises:
            ValueError: if there is none or more than one, or if a line can't be parsed.
        """
        text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: re.sub(r"[^\n]", " ", comment[0]), text, flags=re.DOTALL)
        entries = [entry for entry in _ENTRY.finditer(text) if name in entry["name"]]
        if len(entries) != 1:
            found = ", ".join(entry["name"] for entry in entries) or "none"
            raise ValueError(f"one kernel named {name!r} is expected, but the PTX has: {found}")
        (entry,) = entries
        end = text.index("\n}", entry.end())
        body, line = text[entry.end() : end], text.count("\n", 0, entry.end()) + 1
        widths = {prefix: _register_dtype(type) for type, prefix in _REGISTERS.findall(body)}
        # Shared memory may be declared in the kernel or before all kernels.
        shared, shared_size = _shared(text[: _ENTRY.search(text).start()] + body)  # type: ignore[union-attr]
        code, labels = _code(body, line, widths)
        threads = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)", entry["directives"])
        return Kernel(
            entry["name"],
            tuple(_parameters(entry["parameters"])),
            shared,
            shared_size,
            code,
            labels,
            int(threads[1]) if threads else None,
        )


_ENTRY = re.compile(
    r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)(?P<directives>[^{]*)\{",
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%[a-zA-Z_$]+)<\d+>")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
_PARAMETER = re.compile(
    r"\.param\s+\.(?:align\s+(\d+)\s+\.)?(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
)
_STATEMENT = re.compile(r"(?:@(?P<guard>!?%\w+)\s+)?(?P<operation>[a-z][\w.:]*)\s*(?P<operands>.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


def _register_dtype(type: str) -> np.dtype:
    return TYPES["pred"] if type == "pred" else np.dtype(f"u{TYPES[type].itemsize}")


def _parameters(text: str) -> Iterator[Parameter]:
    end = 0
    for align, type, name, count in _PARAMETER.findall(text):
        n = int(count or 1)
        offset = _aligned(end, int(align or TYPES[type].itemsize))
        yield Parameter(name, type, n, offset)
        end = offset + TYPES[type].itemsize * n


def _shared(text: str) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    declared = _SHARED.findall(text)
    for align, type, name, count in sorted(declared, key=lambda declaration: declaration[3] == ""):
        offsets[name] = _aligned(end, int(align or TYPES[type].itemsize))
        # An array without a size gets the memory whose size the launch sets.
        end = offsets[name] + TYPES[type].itemsize * int(count or 0)
    return offsets, end


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _code(body: str, line: int, widths: dict[str, np.dtype]) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    code, labels = list[Instruction](), dict[str, int]()
    for statement in re.split(r"(?<=[;:])(?=\s)", body):
        start = line + statement[: len(statement) - len(statement.lstrip())].count("\n")
        line += statement.count("\n")
        statement = statement.strip().removesuffix(";").lstrip("{} \t\n")
        if not statement or statement.startswith("."):
            continue
        if statement.endswith(":"):
            labels[statement[:-1].strip()] = len(code)
            continue
        code.append(_instruction(" ".join(statement.split()), start, widths))
    return tuple(code), labels


def _instruction(text: str, line: int, widths: dict[str, np.dtype]) -> Instruction:
    matched = _STATEMENT.fullmatch(text)
    if matched is None:
        raise ValueError(f"line {line} of the PTX is no instruction: {text}")
    opcode, *modifiers = matched["operation"].replace("::", ".").split(".")
    operands = tuple(_operand(operand, widths) for operand in _OPERAND.findall(matched["operands"]))
    guard = _operand(matched["guard"], widths) if matched["guard"] else None
    assert guard is None or isinstance(guard, Register | Negated)
    return Instruction(text, line, guard, opcode, tuple(modifiers), operands)


def _operand(text: str, widths: dict[str, np.dtype]) -> Operand:
    if text.startswith("{"):
        return Several(tuple(_operand(part, widths) for part in _OPERAND.findall(text[1:-1])))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(_operand(base, widths), int(offset or 0))  # type: ignore[arg-type]
    if "|" in text:
        return Several(tuple(_operand(part, widths) for part in text.split("|")))
    if text.startswith("!"):
        return Negated(_operand(text[1:], widths))  # type: ignore[arg-type]
    if text.startswith("%"):
        dtype = widths.get(text.rstrip("0123456789"))
        return Special(text) if dtype is None else Register(text, dtype)
    if floating := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
        return Immediate(int(floating[1], 16))
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        digits = text.removesuffix("U")
        octal = re.fullmatch(r"(-?)0(\d+)", digits)
        return Immediate(int("".join(octal.groups()), 8) if octal else int(digits, 0))
    return Symbol(text)
