"""Each instruction equals its definition in the PTX ISA, by Python's integers and PyTorch."""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.ptx import Kernel, Memory, launch
from reference.ptx.program import PACKED, TYPES

PREFIX = {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}


def width(type: str) -> int:
    """Return the bytes of a type in a register."""
    return 4 if type in PACKED else TYPES[type].itemsize


def run(instruction: str, out: str, inputs: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Run an instruction, a thread for each element.

    Args:
        instruction: its text, with `d` for the result and `a`, `b`, `c` for the inputs.
        out: the type of the result; "pred" is returned as an integer.
        inputs: the type and the values of each input.
    """
    n = len(inputs[0][1])
    memory = Memory()
    out_bytes = 4 if out == "pred" else width(out)
    addresses = [memory.empty((n,), np.dtype(f"u{out_bytes}"), "d")]
    names = {"d": "%p1" if out == "pred" else f"{PREFIX[out_bytes]}50"}
    lines = ["mov.u32 %r60, %tid.x;", "ld.param.b64 %rd60, [p0];"]
    for i, (type, values) in enumerate(inputs):
        size = width(type)
        addresses.append(memory.put(np.ascontiguousarray(values).view(f"u{size}").reshape(-1), "abc"[i]))
        names["abc"[i]] = register = f"{PREFIX[size]}{51 + i}"
        lines += [
            f"ld.param.b64 %rd61, [p{i + 1}];",
            f"mad.wide.u32 %rd62, %r60, {size}, %rd61;",
            f"ld.global.b{8 * size} {register}, [%rd62];",
        ]
    lines.append(re.sub(r"(?<![\w.%])[abcd](?![\w.])", lambda name: names[name[0]], instruction) + ";")
    lines.append(f"mad.wide.u32 %rd62, %r60, {out_bytes}, %rd60;")
    if out == "pred":
        lines.append("selp.b32 %r50, 1, 0, %p1;")
    lines += [f"st.global.b{8 * out_bytes} [%rd62], {PREFIX[out_bytes]}50;", "ret;"]
    parameters = ", ".join(f".param .u64 p{i}" for i in range(len(inputs) + 1))
    registers = ".reg .pred %p<9>; .reg .b16 %rs<99>; .reg .b32 %r<99>; .reg .b64 %rd<99>;"
    text = f".entry test({parameters})\n{{\n{registers}\n" + "\n".join(lines) + "\n}\n"
    launch(Kernel.parse(text), 1, n, addresses, memory)
    result = memory.get(addresses[0])
    return result.astype(bool) if out == "pred" else result.view(TYPES[out])


EDGES = {
    "s32": [0, 1, -1, 2, -2, 7, -7, 31, 32, 33, 2**31 - 1, -(2**31), 123456789],
    "u32": [0, 1, 2, 7, 31, 32, 33, 2**31, 2**32 - 1, 123456789],
    "s64": [0, 1, -1, 3, -3, 63, 64, 2**63 - 1, -(2**63), 10**15],
    "u64": [0, 1, 3, 63, 64, 2**63, 2**64 - 1, 10**15],
    "u16": [0, 1, 15, 16, 2**15, 2**16 - 1],
    "f32": [0.0, -0.0, 1.0, -1.5, 3.1, 1e-40, -1e-40, 1e38, -3e38, 0.5, 2.5, math.inf, -math.inf, math.nan],
    "f64": [0.0, 1.0, -1.5, 1e300, 1e-300, math.inf, math.nan],
    "f16": [0.0, 1.0, -1.5, 65504.0, 6e-8, math.inf, math.nan],
}


def pairs(type: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of edge cases of a type."""
    edges = np.array(EDGES[type], TYPES[type])
    x, y = np.meshgrid(edges, edges)
    return x.reshape(-1), y.reshape(-1)


def wrapped(value: int, type: str) -> int:
    """Return the number of a type that has the lower bits of an integer."""
    bits = 8 * width(type)
    value &= 2**bits - 1
    return value - 2**bits if type[0] == "s" and value >> bits - 1 else value


def truncated(x: int, y: int) -> int:
    """Divide and round toward zero."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def shifted(x: int, n: int, type: str) -> int:
    """Shift left, or right by -n."""
    return wrapped(x << n, type) if n >= 0 else x >> -n


OF_INTEGERS: dict[str, Callable[[int, int, str], int]] = {
    "add": lambda x, y, type: wrapped(x + y, type),
    "sub": lambda x, y, type: wrapped(x - y, type),
    "mul.lo": lambda x, y, type: wrapped(x * y, type),
    "mul.hi": lambda x, y, type: x * y >> 8 * width(type),
    "min": lambda x, y, type: min(x, y),
    "max": lambda x, y, type: max(x, y),
    "div": lambda x, y, type: wrapped(truncated(x, y), type) if y else 0,
    "rem": lambda x, y, type: wrapped(x - truncated(x, y) * y, type) if y else x,
}


@pytest.mark.parametrize("type", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("operation", OF_INTEGERS)
def test_integers(operation: str, type: str) -> None:
    x, y = pairs(type)
    expected = [OF_INTEGERS[operation](int(a), int(b), type) for a, b in zip(x, y)]
    assert run(f"{operation}.{type} d, a, b", type, [(type, x), (type, y)]).tolist() == expected


@pytest.mark.parametrize("type", ["s32", "u32", "s64", "u64"])
def test_shifts_beyond_the_width_give_zeros_or_signs(type: str) -> None:
    x = np.array(EDGES[type], TYPES[type])
    for n in (0, 1, 31, 32, 63, 64, 100):
        amounts = np.full(len(x), n, np.uint32)
        left = run(f"shl.b{8 * width(type)} d, a, b", type, [(type, x), ("u32", amounts)])
        assert left.tolist() == [shifted(int(a), n, type) for a in x]
        right = run(f"shr.{type} d, a, b", type, [(type, x), ("u32", amounts)])
        assert right.tolist() == [shifted(int(a), -n, type) for a in x]


@pytest.mark.parametrize(("type", "wide"), [("s32", "s64"), ("u32", "u64"), ("u16", "u32")])
def test_products_in_twice_the_width(type: str, wide: str) -> None:
    x, y = pairs(type)
    expected = [int(a) * int(b) for a, b in zip(x, y)]
    assert run(f"mul.wide.{type} d, a, b", wide, [(type, x), (type, y)]).tolist() == expected
    z = np.full(len(x), 5, TYPES[wide])
    sums = run(f"mad.wide.{type} d, a, b, c", wide, [(type, x), (type, y), (wide, z)]).tolist()
    assert sums == [wrapped(value + 5, wide) for value in expected]


@pytest.mark.parametrize("operation", ["and", "or", "xor"])
def test_bits(operation: str) -> None:
    x, y = pairs("u64")
    expected = getattr(torch, f"bitwise_{operation}")(*(torch.from_numpy(a.view(np.int64)) for a in (x, y)))
    assert np.array_equal(
        run(f"{operation}.b64 d, a, b", "u64", [("u64", x), ("u64", y)]), expected.numpy().view(np.uint64)
    )


def test_counts_of_bits() -> None:
    x = np.array(EDGES["u32"], np.uint32)
    assert run("popc.b32 d, a", "u32", [("u32", x)]).tolist() == [int(a).bit_count() for a in x]
    assert run("clz.b32 d, a", "u32", [("u32", x)]).tolist() == [32 - int(a).bit_length() for a in x]


OF_FLOATS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div.rn": torch.div,
    "min": torch.fmin,
    "max": torch.fmax,
    "min.NaN": torch.minimum,
    "max.NaN": torch.maximum,
    "copysign": lambda x, y: torch.copysign(y, x),
}


@pytest.mark.parametrize("type", ["f32", "f64"])
@pytest.mark.parametrize("operation", OF_FLOATS)
def test_floats(operation: str, type: str) -> None:
    x, y = pairs(type)
    expected = OF_FLOATS[operation](torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_array_equal(run(f"{operation}.{type} d, a, b", type, [(type, x), (type, y)]), expected)


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=30))
@settings(max_examples=100)
def test_fma_rounds_once(numbers: list[tuple[float, float, float]]) -> None:
    x, y, z = (np.array(column, np.float32) for column in zip(*numbers))
    results = run("fma.rn.f32 d, a, b, c", "f32", [("f32", x), ("f32", y), ("f32", z)])
    for a, b, c, result in zip(x, y, z, results):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        if np.isinf(result):
            assert abs(exact) >= Fraction(float(np.finfo(np.float32).max))
            continue
        with np.errstate(over="ignore"):
            neighbours = [np.nextafter(result, np.float32(to)) for to in (-np.inf, np.inf)]
        for neighbour in filter(np.isfinite, neighbours):
            assert abs(Fraction(float(result)) - exact) <= abs(Fraction(float(neighbour)) - exact)


def test_fma_where_rounding_twice_is_wrong() -> None:
    """The sum lies just below the middle of two float32 numbers, and float64 rounds it to that."""
    x, y, z = (np.array([value], np.float32) for value in (1 + 2**-23, 1.5, -(2**-60)))
    (result,) = run("fma.rn.f32 d, a, b, c", "f32", [("f32", x), ("f32", y), ("f32", z)])
    assert result == 1.5 + 2**-23
    assert np.float32(x.astype(float) * y.astype(float) + z.astype(float)) == 1.5 + 2**-22


@pytest.mark.parametrize("name", ["ex2", "lg2", "rsqrt", "sqrt", "rcp", "sin", "cos", "tanh"])
def test_functions(name: str) -> None:
    names = {"ex2": "exp2", "lg2": "log2", "rcp": "reciprocal"}
    x = np.array(EDGES["f32"], np.float32)
    expected = getattr(torch, names.get(name, name))(torch.from_numpy(x).double()).float().numpy()
    np.testing.assert_array_equal(run(f"{name}.approx.f32 d, a", "f32", [("f32", x)]), expected)


def test_ftz_flushes_subnormal_numbers() -> None:
    x, one = np.array([1e-40, -1e-40, 1.2e-38], np.float32), np.ones(3, np.float32)
    flushed = run("mul.ftz.f32 d, a, b", "f32", [("f32", x), ("f32", one)])
    assert flushed.tolist() == [0, 0, x[2]] and np.signbit(flushed).tolist() == [False, True, False]
    assert run("mul.ftz.f32 d, a, b", "f32", [("f32", one * x[2]), ("f32", one / 2)]).tolist() == [0, 0, 0]


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y and not math.isnan(x) and not math.isnan(y),
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}


@pytest.mark.parametrize("type", ["f32", "f64", "s32", "u64"])
@pytest.mark.parametrize("how", COMPARISONS)
def test_comparisons(how: str, type: str) -> None:
    x, y = pairs(type)
    expected = [COMPARISONS[how](a, b) for a, b in zip(x.tolist(), y.tolist())]
    assert run(f"setp.{how}.{type} d, a, b", "pred", [(type, x), (type, y)]).tolist() == expected
    if type[0] == "f":
        unordered = np.isnan(x) | np.isnan(y)
        true = run(f"setp.{how}u.{type} d, a, b", "pred", [(type, x), (type, y)])
        assert np.array_equal(true, expected | unordered)


def test_comparisons_joined_with_another_predicate() -> None:
    x = np.array([1, 2, 3], np.int32)
    text = "{{ setp.gt.s32 %p2, a, 1; setp.{how}.{join}.s32 d, a, b, {sign}%p2; }}"
    for join, sign, expected in (("and", "", [0, 1, 0]), ("or", "", [1, 1, 1]), ("and", "!", [1, 0, 0])):
        result = run(
            text.format(how="lt", join=join, sign=sign), "pred", [("s32", x), ("s32", np.full(3, 3, np.int32))]
        )
        assert result.tolist() == expected


def test_floats_to_integers_round_and_saturate() -> None:
    x = np.array([2.5, 3.5, -2.5, -0.5, 1e10, -1e10, math.inf, -math.inf, math.nan], np.float32)
    most, least = 2**31 - 1, -(2**31)
    beyond = [most, least, most, least, 0]
    ways = {"rzi": [2, 3, -2, 0], "rni": [2, 4, -2, 0], "rmi": [2, 3, -3, -1], "rpi": [3, 4, -2, 0]}
    for rounding, near in ways.items():
        assert run(f"cvt.{rounding}.s32.f32 d, a", "s32", [("f32", x)]).tolist() == [*near, *beyond]
    assert run("cvt.rzi.u32.f32 d, a", "u32", [("f32", x)]).tolist() == [2, 3, 0, 0, 2**32 - 1, 0, 2**32 - 1, 0, 0]


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
@settings(max_examples=50)
def test_floats_to_half_precision_round_to_nearest_even(numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    exact = torch.from_numpy(x)
    for type, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        ours = run(f"cvt.rn.{type}.f32 d, a", type, [("f32", x)])
        np.testing.assert_array_equal(ours.astype(np.float32), exact.to(dtype).float().numpy())
        back = run(f"cvt.f32.{type} d, a", "f32", [(type, ours)])
        np.testing.assert_array_equal(back, exact.to(dtype).float().numpy())


@pytest.mark.parametrize(("type", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_packed_halves(type: str, dtype: Any) -> None:
    """The first source is the upper half. Arithmetic is that of each half."""
    x, y = np.array([1.5, -2.25], np.float32), np.array([0.1, 7.0], np.float32)
    packed = run(f"cvt.rn.{type}x2.f32 d, a, b", f"{type}x2", [("f32", x), ("f32", y)]).reshape(-1, 2)
    assert np.array_equal(packed, np.stack([y, x], axis=1).astype(dtype))
    doubled = run(f"add.{type}x2 d, a, a", f"{type}x2", [(f"{type}x2", packed)]).reshape(-1, 2)
    assert np.array_equal(doubled, packed + packed)


def test_integers_are_extended_by_their_own_sign() -> None:
    x = np.array(EDGES["s32"], np.int32)
    assert run("cvt.s64.s32 d, a", "s64", [("s32", x)]).tolist() == x.tolist()
    assert run("cvt.u64.u32 d, a", "u64", [("u32", x)]).tolist() == x.view(np.uint32).tolist()
    assert run("cvt.u16.u32 d, a", "u16", [("u32", x.view(np.uint32))]).tolist() == [a & 0xFFFF for a in x.tolist()]
    assert run("cvt.rn.f32.s32 d, a", "f32", [("s32", x)]).tolist() == x.astype(np.float32).tolist()


def test_moves_pack_and_unpack() -> None:
    x = np.array([0x11112222, 0x33334444], np.uint32)
    swapped = run("{ mov.b32 {%rs1, %rs2}, a; mov.b32 d, {%rs2, %rs1}; }", "u32", [("u32", x)])
    assert swapped.tolist() == [0x22221111, 0x44443333]
    upper = run("{ mov.b32 {_, %rs2}, a; mov.b32 d, {%rs2, %rs2}; }", "u32", [("u32", x)])
    assert upper.tolist() == [0x11111111, 0x33333333]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [(0x3210, 0x11228844), (0x7654, 0x55667788), (0x5410, 0x77888844), (0x0123, 0x44882211), (0x98BF, 0xFF000000)],
)
def test_bytes_are_permuted(selector: int, expected: int) -> None:
    """Bytes 0 to 3 are those of the first number; a selector's fourth bit repeats the sign."""
    x, y = (np.array([number], np.uint32) for number in (0x11228844, 0x55667788))
    assert run(f"prmt.b32 d, a, b, {selector}", "u32", [("u32", x), ("u32", y)]).tolist() == [expected]


@pytest.mark.parametrize("segment", [0, 0b11000, 0b11110])
@pytest.mark.parametrize("offset", [0, 1, 5, 16, 31])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str, offset: int, segment: int) -> None:
    """The loop is the definition in chapter 9.7.9.6 of the PTX ISA, lane by lane."""
    clamp = 0 if mode == "up" else 31
    expected, found = [], []
    for lane in range(32):
        last = (lane & segment) | (clamp & ~segment)
        other = {
            "up": lane - offset,
            "down": lane + offset,
            "bfly": lane ^ offset,
            "idx": (lane & segment) | (offset & ~segment),
        }[mode]
        inside = other >= last if mode == "up" else other <= last
        found.append(inside)
        expected.append(other if inside else lane)
    x = np.arange(64, dtype=np.uint32)
    c = segment << 8 | clamp
    values = run(f"shfl.sync.{mode}.b32 d, a, {offset}, {c}, -1", "u32", [("u32", x)])
    assert values.tolist() == [*expected, *(32 + lane for lane in expected)]
    predicates = run(f"shfl.sync.{mode}.b32 %r1|d, a, {offset}, {c}, -1", "pred", [("u32", x)])
    assert predicates.tolist() == found * 2


def test_votes() -> None:
    x = np.arange(64, dtype=np.uint32)
    text = "{{ setp.{how}.u32 %p2, a, {than}; vote.sync.{mode} d, %p2, -1; }}"
    ballot = run(text.format(how="lt", than=40, mode="ballot.b32"), "u32", [("u32", x)])
    assert ballot.tolist() == [2**32 - 1] * 32 + [2**8 - 1] * 32
    for mode, expected in (("any.pred", [True, True]), ("all.pred", [True, False]), ("uni.pred", [True, False])):
        votes = run(text.format(how="lt", than=40, mode=mode), "pred", [("u32", x)])
        assert votes.tolist() == np.repeat(expected, 32).tolist()


def test_a_guard_leaves_the_other_threads_alone() -> None:
    x = np.arange(40, dtype=np.uint32)
    text = "{{ setp.lt.u32 %p2, a, 3; mov.b32 d, a; @{sign}%p2 mov.b32 d, 99; }}"
    assert run(text.format(sign=""), "u32", [("u32", x)]).tolist() == [99] * 3 + list(range(3, 40))
    assert run(text.format(sign="!"), "u32", [("u32", x)]).tolist() == [0, 1, 2] + [99] * 37
