"""What PTX's instructions compute, as functions of NumPy arrays: one table for each form.

Integers wrap. Every rounding is to nearest even. The functions that PTX calls approximate are
rounded correctly here, so a GPU's results differ in their last bits: by 2 units for `ex2`, `rsqrt`
and `rcp`, and by more for `lg2` near 1 and for `sin`, `cos` and `tanh`.

Source: NVIDIA's "PTX ISA", chapter 9.7.
"""

from collections.abc import Callable

import numpy as np

Function = Callable[..., np.ndarray]


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return x * y + z, rounded once.

    The product of two numbers of float32 or less is exact in float64, and the sum is rounded there
    to odd (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms
    using rounding to odd", 2008). For float64, the product is rounded to NumPy's long double.
    """
    if x.dtype.kind in "iu":
        return x * y + z
    if x.dtype == np.float64:
        return (x.astype(np.longdouble) * y + z).astype(np.float64)
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = product + addend
    part = total - addend
    lost = (product - part) + (addend - (total - part))
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    toward = np.where((lost > 0) == (total > 0), 1, -1)  # of the magnitude; `lost` has no sign if 0
    return np.where(inexact, (bits + toward), bits).view(np.float64).astype(x.dtype)


def _by_integers(of_integers: Function, of_floats: Function) -> Function:
    """Choose the function by the dtype of the first argument."""
    return lambda x, *others: (of_integers if x.dtype.kind in "iu" else of_floats)(x, *others)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Divide integers and round toward zero; 0 where the divisor is 0, which PTX leaves open."""
    safe = np.where(y == 0, 1, y)
    quotient = x // safe
    return np.where(y == 0, 0, quotient + ((x % safe != 0) & ((x < 0) != (safe < 0)))).astype(x.dtype)


def _shift_left(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    return np.where(n >= bits, 0, x << np.minimum(n, bits - 1).astype(x.dtype)).astype(x.dtype)


def _shift_right(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    last = x >> x.dtype.type(bits - 1)  # repeats the sign
    beyond = last if x.dtype.kind == "i" else np.zeros_like(x)
    return np.where(n >= bits, beyond, x >> np.minimum(n, bits - 1).astype(x.dtype)).astype(x.dtype)


def multiply_high(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the upper half of the product of two integers."""
    bits = 8 * x.dtype.itemsize
    return (x.astype(object) * y.astype(object) >> bits).astype(x.dtype)


def multiply_wide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the whole product of two integers, in twice their width."""
    wide = np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")
    return x.astype(wide) * y.astype(wide)


def _in_float64(function: Function) -> Function:
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


def _bits_set(x: np.ndarray) -> np.ndarray:
    return np.unpackbits(x.reshape(-1, 1).view(np.uint8), axis=1).sum(axis=1, dtype=np.uint32)


def _leading_zeros(x: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(x.astype(x.dtype.newbyteorder(">")).reshape(-1, 1).view(np.uint8), axis=1)
    return np.where(bits.any(axis=1), bits.argmax(axis=1), bits.shape[1]).astype(np.uint32)


def permute_bytes(x: np.ndarray, y: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Pick four of the eight bytes of x (first) and y; a selector's fourth bit repeats the sign."""
    both = x.astype(np.uint64) | y.astype(np.uint64) << 32
    result = np.zeros_like(x)
    for i in range(4):
        which = selector >> 4 * i & 15
        byte = (both >> 8 * (which & 7).astype(np.uint64) & 255).astype(np.uint32)
        sign = np.where(byte & 128, np.uint32(255), np.uint32(0))
        result |= np.where(which & 8, sign, byte) << 8 * i
    return result


ONE: dict[str, Function] = {
    "abs": np.abs,
    "neg": np.negative,
    "not": np.invert,
    "popc": _bits_set,
    "clz": _leading_zeros,
    "ex2": _in_float64(np.exp2),
    "lg2": _in_float64(np.log2),
    "rsqrt": _in_float64(lambda x: 1 / np.sqrt(x)),
    "sqrt": _in_float64(np.sqrt),
    "rcp": _in_float64(lambda x: 1 / x),
    "sin": _in_float64(np.sin),
    "cos": _in_float64(np.cos),
    "tanh": _in_float64(np.tanh),
}
TWO: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _by_integers(_divide, np.divide),
    "rem": _by_integers(lambda x, y: x - _divide(x, y) * y, np.fmod),
    "min": _by_integers(np.minimum, np.fmin),  # a number if the other is NaN
    "max": _by_integers(np.maximum, np.fmax),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": _shift_left,
    "shr": _shift_right,
    "copysign": lambda x, y: np.copysign(y, x),  # PTX names the sign's source first
}
THREE: dict[str, Function] = {"fma": fma, "mad": fma, "prmt": permute_bytes}
PROPAGATING = {"min": np.minimum, "max": np.maximum}  # with `.NaN`

_ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def compare(how: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compare as `setp` does: `ltu` and its like are true, and `lt` false, where one is NaN."""
    if how in _UNSIGNED:
        return _ORDERED[_UNSIGNED[how]](x, y)
    if x.dtype.kind in "iub":
        return _ORDERED[how](x, y)
    unordered = np.isnan(x) | np.isnan(y)
    if how in ("num", "nan"):
        return unordered == (how == "nan")
    if how in _ORDERED:
        return _ORDERED[how](x, y) & ~unordered
    return _ORDERED[how.removesuffix("u")](x, y) | unordered


ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(x: np.ndarray, dtype: np.dtype, rounding: str, saturate: bool) -> np.ndarray:
    """Convert as `cvt` does.

    Args:
        x: the numbers.
        dtype: of the result.
        rounding: a key of `ROUND_TO_INTEGER`, or "rn" or "" for another rounding to nearest.
        saturate: whether floats are limited to [0, 1], and integers to those of `dtype`.
    """
    if rounding in ROUND_TO_INTEGER:
        rounded = ROUND_TO_INTEGER[rounding](x.astype(np.float64))
        return _to_integer(rounded, dtype) if dtype.kind in "iu" else rounded.astype(dtype)
    if saturate:
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (0, 1)
        x = np.clip(np.nan_to_num(x), low, high)
    return x.astype(dtype)


def _to_integer(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert whole numbers; those too large become the largest integer, and NaN becomes 0."""
    limits = np.iinfo(dtype)
    low, high = x <= float(limits.min), x >= float(limits.max)
    inside = ~(low | high | np.isnan(x))
    beyond = np.select([low, high], [limits.min, limits.max], 0).astype(dtype)
    return np.where(inside, np.where(inside, x, 0).astype(dtype), beyond)


def flush(x: np.ndarray) -> np.ndarray:
    """Replace subnormal numbers of float32 by zeros of the same sign, as `.ftz` does."""
    if x.dtype != np.float32:
        return x
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)
