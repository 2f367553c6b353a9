"""How far a sound implementation may be from float64: error bounds that are computed from the inputs at hand.

`Approx` carries a float64 value through an op together with two errors, and each rounding that an implementation makes on the way adds
to both: a running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reference.numerics.dtypes import DTYPES, flushed_below, unit_roundoff

# The most that an implementation's exp, log or cosine may be off, in units of the result's last place (2u of it, at most).
# glibc documents 1, SLEEF and Intel's SVML 1 to 4 for their vector forms. `tests/ops/test_functions.py` sweeps exp and erf.
FUNCTION_ULPS = 4
# Of erf, absolutely, in units of u. Vector code, PyTorch's GELU too, takes Abramowitz and Stegun's 7.1.26, which is off by 1.5e-7 in
# exact arithmetic; rten documents 6.64e-7 for it in float32.
ERF_UNITS = 12
SINGLE_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Functions:
    """What a device's functions round besides `FUNCTION_ULPS`.

    exp_argument: roundings of an exponential's argument, in units of u; quotient: roundings of a division; logarithm: absolute error of
    log10.
    """

    exp_argument: int
    quotient: int
    logarithm: float


# A GPU takes exp(x) for 2^(x log2 e), whose product rounds and whose constant is rounded; 1/x, which may be off by one in the last place,
# and a product for a quotient; and log2, off by 2^-22 near 1 (NVIDIA, *Parallel Thread Execution ISA*: ex2, rcp, lg2.approx, the first of
# which is off by 2^-22.5, less than `FUNCTION_ULPS`).
FUNCTIONS = {"cpu": Functions(1, 1, 0.0), "gpu": Functions(3, 3, 2**-22 * float(np.log10(2)))}


@dataclass(frozen=True)
class Roundings:
    """The roundings of one op in one dtype, as unit roundoffs. Inputs are exact, but may be flushed.

    accumulate: of sums and functions; store: of what lies between two kernels; output: of the result; whole: of numbers before they
    become whole.
    """

    accumulate: float
    store: float
    output: float
    whole: float
    tiny: float  # what underflow may add to a result
    functions: Functions = FUNCTIONS["cpu"]

    @staticmethod
    def of(dtype: np.dtype, store: np.dtype | None = None, device: str = "cpu") -> "Roundings":
        """The contract: float32 inside, one rounding at the end; `store` where intermediates are kept in another dtype."""
        single = DTYPES["float32"]
        u = unit_roundoff(single)
        # What becomes whole was divided by a scale, which had been rounded, too.
        return Roundings(
            u, unit_roundoff(store or single), unit_roundoff(dtype), 3 * u, flushed_below(dtype), FUNCTIONS[device]
        )

    @staticmethod
    def in_float64() -> "Roundings":
        """Of the definitions themselves, where processors differ: they divide alike, and agree on what becomes which whole number."""
        double = np.dtype(np.float64)
        u = unit_roundoff(double)
        return Roundings(u, u, u, 0.0, float(np.finfo(double).tiny))


@dataclass(frozen=True)
class Approx:
    """A number that an implementation computes only approximately, elementwise.

    value: in float64; worst: what its error never exceeds; typical: the error's standard deviation where roundings are independent and
    uniform within their limits, the model under which errors grow like the square root of a sum's length (Higham and Mary, *A new
    approach to probabilistic rounding error analysis*, 2019).
    """

    value: np.ndarray
    worst: np.ndarray
    typical: np.ndarray

    @staticmethod
    def exact(value: np.ndarray) -> "Approx":
        """What all agree on, to the last bit."""
        zero = np.zeros_like(value, np.float64)
        return Approx(value, zero, zero)

    @staticmethod
    def given(value: np.ndarray) -> "Approx":
        """An input: exact, but where it is subnormal in float32 it may be taken for 0."""
        flushed = np.where(np.abs(value) < SINGLE_TINY, np.abs(value), 0.0)
        return Approx(value, flushed, flushed)

    def rounded(self, u: float, tiny: float = 0.0) -> "Approx":
        """After one rounding to nearest: |fl(a) - a| <= u |a|, or `tiny` below the normal range."""
        magnitude = np.abs(self.value)
        return Approx(
            self.value,
            self.worst + u * (magnitude + self.worst) + tiny,
            np.hypot(self.typical, u * magnitude / np.sqrt(3)) + tiny / 2,
        )

    def __add__(self, other: "Approx") -> "Approx":
        return Approx(self.value + other.value, self.worst + other.worst, np.hypot(self.typical, other.typical))

    def transposed(self) -> "Approx":
        """Its last two dimensions exchanged."""
        return Approx(*(array.swapaxes(-1, -2) for array in (self.value, self.worst, self.typical)))

    def whole(self) -> "Approx":
        """After rounding to whole numbers: near the middle between two it may become either, and no two implementations need agree."""
        either = self.through(np.rint).worst
        return Approx(np.rint(self.value), either, either)

    def through(self, increasing: Callable[[np.ndarray], np.ndarray]) -> "Approx":
        """After a function that never falls, taken at both ends of either interval."""
        value = increasing(self.value)

        def moved(error: np.ndarray) -> np.ndarray:
            return np.maximum(increasing(self.value + error) - value, value - increasing(self.value - error))

        return Approx(value, moved(self.worst), moved(self.typical))

    def maximum(self, other: "Approx") -> "Approx":
        """The larger of two."""
        value = np.maximum(self.value, other.value)

        def moved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            highest, lowest = np.maximum(self.value + a, other.value + b), np.maximum(self.value - a, other.value - b)
            return np.maximum(highest - value, value - lowest)

        return Approx(value, moved(self.worst, other.worst), moved(self.typical, other.typical))

    def largest(self) -> "Approx":
        """The largest of all elements."""
        value, at = self.value.max(), np.argmax(self.value)
        worst = max((self.value + self.worst).max() - value, value - (self.value - self.worst).max())
        return Approx(value, np.asarray(worst), self.typical.flat[at])

    def __mul__(self, factor: "Approx") -> "Approx":
        a, b = np.abs(self.value), np.abs(factor.value)
        return Approx(
            self.value * factor.value,
            self.worst * b + factor.worst * a + self.worst * factor.worst,
            np.hypot(self.typical * b, factor.typical * a),
        )


def whole(numbers: np.ndarray, roundings: Roundings) -> Approx:
    """Numbers that were divided by a scale as whole ones."""
    off = roundings.whole * np.abs(numbers)
    return Approx(numbers, off, off).whole()


def gamma(n: np.ndarray | int, u: float) -> np.ndarray:
    """γ_n = n u / (1 - n u), what n roundings amount to (Higham, lemma 3.1); infinite where it does not hold any more."""
    nu = np.asarray(n, np.float64) * u
    return np.where(nu < 1, nu / np.where(nu < 1, 1 - nu, 1), np.inf)


def matmul(a: Approx, b: Approx, u: float) -> Approx:
    """`a @ b`, summed in float32 in any order, with or without fused multiply-add.

    Worst: γ_n |a| |b| (Higham, 3.5), where n counts the terms that are not zero, for adding zero is exact.
    Typical: n roundings of partial sums, each u/√3 of the sum so far. Of terms p with sum y, the k-th partial sum has the mean square
    k Σp²/n where signs are mixed and (k y/n)² where they are not; summed over k: u²/3 (n Σp²/2 + n y²/3), and u²/3 Σp² for the products.
    """
    value = a.value @ b.value
    magnitude_a, magnitude_b = np.abs(a.value), np.abs(b.value)
    n = (
        a.value.shape[-1]
        if a.value.all() and b.value.all()
        else (a.value != 0).astype(np.float64) @ (b.value != 0).astype(np.float64)
    )
    inherited = _product(a.worst, magnitude_b + b.worst) + _product(magnitude_a, b.worst)
    total = magnitude_a @ magnitude_b
    worst = inherited + gamma(n, u) * (total + inherited) + n * SINGLE_TINY
    squares = (a.value**2) @ (b.value**2)
    own = u / np.sqrt(3) * np.sqrt(squares * (1 + n / 2) + n * value**2 / 3)
    handed_down = _product(a.typical**2, b.value**2) + _product(a.value**2, b.typical**2)
    return Approx(value, worst, np.sqrt(own**2 + handed_down) + np.sqrt(n) * SINGLE_TINY)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    """`a @ b`, for free where one of them is nothing but zeros: errors of inputs that are exact, as most are."""
    return a @ b if a.any() and b.any() else 0.0


def affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, u: float) -> Approx:
    """`x @ weight + bias` of inputs, its terms, the bias among them, added in any order.

    x [..., n, k]; weight [k, m]; bias [m].
    """
    terms = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
    factors = np.concatenate([weight, bias[None]], axis=0)
    return matmul(Approx.given(terms), Approx.given(factors), u)


def exp_of_difference(x: Approx, top: np.ndarray, roundings: Roundings) -> Approx:
    """`exp(x - top)` where top >= x is exact: the argument is rounded, and the function has `FUNCTION_ULPS`.

    A shift of the argument by δ is a factor of e^δ, not 1 + δ: large scores in half precision need it.
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
