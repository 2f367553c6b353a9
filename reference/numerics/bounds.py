"""Error bounds relative to float64, computed from the inputs at hand.

`Approx` carries a float64 value through an op together with two errors. Each rounding that an
implementation makes adds to both of them. This is a running error analysis (Higham, *Accuracy and
Stability of Numerical Algorithms*, 2nd ed., 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reference.numerics.dtypes import DTYPES, flushed_below, unit_roundoff

# The largest error of an implementation's exp, log or cosine, in ulps of the result. One ulp is at
# most 2u of the result. glibc documents 1 ulp, SLEEF and Intel's SVML 1 to 4 ulps for their vector
# forms. `tests/ops/test_functions.py` sweeps exp and erf.
FUNCTION_ULPS = 4
# The largest absolute error of erf, in units of u. Vector code, including PyTorch's GELU, uses
# Abramowitz and Stegun's formula 7.1.26, whose error is 1.5e-7 in exact arithmetic. rten documents
# 6.64e-7 for it in float32.
ERF_UNITS = 12
SINGLE_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Functions:
    """The roundings of a device's functions besides `FUNCTION_ULPS`."""

    exp_argument: int  # roundings of an exponential's argument, in units of u
    quotient: int  # roundings of a division, in units of u
    logarithm: float  # absolute error of log10


# A GPU computes exp(x) as 2^(x log2 e). The constant log2 e is rounded, and so is the product. It
# computes a quotient as a product with 1/x, which may be off by one ulp. Its log2 is off by 2^-22
# near 1. Its power of 2 is off by 2^-22.5, less than `FUNCTION_ULPS`. Source: NVIDIA, *Parallel
# Thread Execution ISA*, ex2, rcp and lg2.approx.
FUNCTIONS = {"cpu": Functions(1, 1, 0.0), "gpu": Functions(3, 3, 2**-22 * float(np.log10(2)))}


@dataclass(frozen=True)
class Roundings:
    """The roundings of one op in one dtype, as unit roundoffs.

    Inputs are exact, but subnormal ones may be flushed to 0.
    """

    accumulate: float  # of sums and functions
    store: float  # of intermediates between two kernels
    output: float  # of the result
    quantize: float  # of numbers before they are rounded to integers
    tiny: float  # the absolute error that underflow may add to a result
    functions: Functions = FUNCTIONS["cpu"]

    @staticmethod
    def of(dtype: np.dtype, store: np.dtype | None = None, device: str = "cpu") -> "Roundings":
        """Return the roundings that ops promise: float32 inside, and one rounding at the end.

        Args:
            dtype: The dtype of the result.
            store: The dtype of intermediates between two kernels; float32 by default.
            device: The key of `FUNCTIONS`, "cpu" or "gpu".
        """
        single = DTYPES["float32"]
        u = unit_roundoff(single)
        # 3u for quantization: the number was divided by its scale, which was rounded itself.
        return Roundings(
            u, unit_roundoff(store or single), unit_roundoff(dtype), 3 * u, flushed_below(dtype), FUNCTIONS[device]
        )

    @staticmethod
    def in_float64() -> "Roundings":
        """Return the roundings of the definitions themselves, which differ between processors.

        Divisions are the same on all processors, so numbers are quantized to the same integers.
        """
        double = np.dtype(np.float64)
        u = unit_roundoff(double)
        return Roundings(u, u, u, 0.0, float(np.finfo(double).tiny))


@dataclass(frozen=True)
class Approx:
    """Elementwise values that an implementation computes only approximately."""

    value: np.ndarray  # in float64
    worst: np.ndarray  # the worst-case bound of the error
    # The error's standard deviation, if roundings are independent and uniform within their limits.
    # Under this model errors grow like the square root of a sum's length (Higham and Mary, *A new
    # approach to probabilistic rounding error analysis*, 2019).
    typical: np.ndarray

    @staticmethod
    def exact(value: np.ndarray) -> "Approx":
        """Wrap values that all implementations agree on, to the last bit."""
        zero = np.zeros_like(value, np.float64)
        return Approx(value, zero, zero)

    @staticmethod
    def from_input(value: np.ndarray) -> "Approx":
        """Wrap an input: exact, except that subnormal float32 values may be flushed to 0."""
        flushed = np.where(np.abs(value) < SINGLE_TINY, np.abs(value), 0.0)
        return Approx(value, flushed, flushed)

    def rounded(self, u: float, tiny: float = 0.0) -> "Approx":
        """Add one rounding to nearest: |fl(a) - a| <= u |a|, or `tiny` below the normal range."""
        magnitude = np.abs(self.value)
        return Approx(
            self.value,
            self.worst + u * (magnitude + self.worst) + tiny,
            np.hypot(self.typical, u * magnitude / np.sqrt(3)) + tiny / 2,
        )

    def __add__(self, other: "Approx") -> "Approx":
        return Approx(self.value + other.value, self.worst + other.worst, np.hypot(self.typical, other.typical))

    def transposed(self) -> "Approx":
        """Swap the last two dimensions."""
        return Approx(*(array.swapaxes(-1, -2) for array in (self.value, self.worst, self.typical)))

    def rounded_to_integers(self) -> "Approx":
        """Round to integers.

        A value near the middle between two integers may become either of them, and implementations
        need not agree.
        """
        error = self.through(np.rint).worst
        return Approx(np.rint(self.value), error, error)

    def through(self, function: Callable[[np.ndarray], np.ndarray]) -> "Approx":
        """Apply a non-decreasing function, evaluated at both ends of each interval."""
        value = function(self.value)

        def propagate(error: np.ndarray) -> np.ndarray:
            return np.maximum(function(self.value + error) - value, value - function(self.value - error))

        return Approx(value, propagate(self.worst), propagate(self.typical))

    def maximum(self, other: "Approx") -> "Approx":
        """Take the elementwise maximum of two."""
        value = np.maximum(self.value, other.value)

        def propagate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            highest, lowest = np.maximum(self.value + a, other.value + b), np.maximum(self.value - a, other.value - b)
            return np.maximum(highest - value, value - lowest)

        return Approx(value, propagate(self.worst, other.worst), propagate(self.typical, other.typical))

    def largest(self) -> "Approx":
        """Take the largest of all elements."""
        value, index = self.value.max(), np.argmax(self.value)
        worst = max((self.value + self.worst).max() - value, value - (self.value - self.worst).max())
        return Approx(value, np.asarray(worst), self.typical.flat[index])

    def __mul__(self, factor: "Approx") -> "Approx":
        a, b = np.abs(self.value), np.abs(factor.value)
        return Approx(
            self.value * factor.value,
            self.worst * b + factor.worst * a + self.worst * factor.worst,
            np.hypot(self.typical * b, factor.typical * a),
        )


def quantized(numbers: np.ndarray, roundings: Roundings) -> Approx:
    """Round numbers that were divided by a quantization scale to integers."""
    error = roundings.quantize * np.abs(numbers)
    return Approx(numbers, error, error).rounded_to_integers()


def gamma(n: np.ndarray | int, u: float) -> np.ndarray:
    """Return γ_n = n u / (1 - n u), which bounds n roundings (Higham, lemma 3.1).

    The lemma requires n u < 1. For larger n the result is infinite.
    """
    nu = np.asarray(n, np.float64) * u
    return np.where(nu < 1, nu / np.where(nu < 1, 1 - nu, 1), np.inf)


def matmul(a: Approx, b: Approx, u: float) -> Approx:
    """Bound `a @ b`, summed in float32 in any order, with or without fused multiply-add.

    Worst case: γ_n |a| |b| (Higham, 3.5). n counts only the terms that are not zero, because adding
    zero is exact.

    Typical: n partial sums are rounded, each by u/√3 of the sum so far. Let the terms p have the
    sum y. The k-th partial sum has the mean square k Σp²/n if the signs are mixed, and (k y/n)² if
    they are not. Summed over k, the partial sums contribute u²/3 (n Σp²/2 + n y²/3). The products
    contribute u²/3 Σp².
    """
    value = a.value @ b.value
    magnitude_a, magnitude_b = np.abs(a.value), np.abs(b.value)
    n = (
        a.value.shape[-1]
        if a.value.all() and b.value.all()
        else (a.value != 0).astype(np.float64) @ (b.value != 0).astype(np.float64)
    )
    propagated = _product(a.worst, magnitude_b + b.worst) + _product(magnitude_a, b.worst)
    total = magnitude_a @ magnitude_b
    worst = propagated + gamma(n, u) * (total + propagated) + n * SINGLE_TINY
    squares = (a.value**2) @ (b.value**2)
    own = u / np.sqrt(3) * np.sqrt(squares * (1 + n / 2) + n * value**2 / 3)
    propagated_squares = _product(a.typical**2, b.value**2) + _product(a.value**2, b.typical**2)
    return Approx(value, worst, np.sqrt(own**2 + propagated_squares) + np.sqrt(n) * SINGLE_TINY)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    """Compute `a @ b`, but skip the product if one of them contains only zeros.

    This is the case for the errors of exact inputs, and most inputs are exact.
    """
    return a @ b if a.any() and b.any() else 0.0


def affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, u: float) -> Approx:
    """Bound `x @ weight + bias` of inputs, summed in any order, with the bias among the terms.

    Args:
        x: Shape [..., n, k].
        weight: Shape [k, m].
        bias: Shape [m].
        u: The unit roundoff of the sums.
    """
    terms = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
    factors = np.concatenate([weight, bias[None]], axis=0)
    return matmul(Approx.from_input(terms), Approx.from_input(factors), u)


def exp_of_difference(x: Approx, top: np.ndarray, roundings: Roundings) -> Approx:
    """Bound `exp(x - top)` for an exact `top` >= x.

    The argument is rounded, and the function is off by `FUNCTION_ULPS`. A shift of the argument by
    δ changes the value by a factor of e^δ, not of 1 + δ. Large scores in half precision need this.
    """
    u, difference = roundings.accumulate, x.value - top
    of_argument = roundings.functions.exp_argument * u
    finite = np.isfinite(difference)
    argument = np.where(finite, difference, 0.0)
    shift = np.where(finite, x.worst + of_argument * np.abs(argument), 0.0)
    typical_shift = np.where(finite, np.sqrt(x.typical**2 + (of_argument * argument) ** 2 / 3), 0.0)
    value = np.where(finite, np.exp(argument), 0.0)
    relative = np.expm1(shift) + 2 * FUNCTION_ULPS * u * np.exp(shift)
    return Approx(value, value * relative + SINGLE_TINY, value * np.hypot(typical_shift, u) + SINGLE_TINY / 2)
