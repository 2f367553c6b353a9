"""Rows of ops that other transformers have: judged wherever a port has them, and not built here.

Fused multiply-add, another order of summation and a GPU's approximate functions are inside the
bounds, as in the other rows.
"""

from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from reference.numerics import definitions
from reference.numerics.bounds import (
    FUNCTION_ULPS,
    SINGLE_TINY,
    Approx,
    Roundings,
    exp_of_difference,
    gamma,
)
from reference.numerics.bounds import matmul as matmul_bound
from reference.ops.row import FACTORS, OTHERS, SUMMANDS, Input, Op

VALUES = ("normal", "large", "tiny", "zeros", "integers")


class Elementwise(Op):
    """A function of each element."""

    inputs = {"x": Input("batch n", ("normal", "tiny", "zeros"))}
    function: ClassVar[Any]  # of float64

    @classmethod
    def define(cls, x: np.ndarray) -> np.ndarray:
        """Compute the function."""
        return cls.function(x)

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        """Bound the error of a function of the processor's."""
        value, u = cls.function(x), roundings.accumulate
        error = FUNCTION_ULPS * 2 * u * np.abs(value)
        return (
            Approx(value, error, u * np.abs(value)).rounded(0.0, SINGLE_TINY).rounded(roundings.output, roundings.tiny)
        )


class Exp(Elementwise, row="exp", table=OTHERS):
    """e^x, bounded by `exp_of_difference`."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {})
    function = staticmethod(np.exp)
    torch = staticmethod(lambda x: x.exp())

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        e = exp_of_difference(Approx.from_input(x), np.zeros(()), roundings)
        return e.rounded(roundings.output, roundings.tiny)


class Tanh(Elementwise, row="tanh", table=OTHERS):
    """tanh(x), one function."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {})
    function = staticmethod(np.tanh)
    torch = staticmethod(lambda x: x.tanh())


class Sqrt(Elementwise, row="sqrt", table=OTHERS):
    """√x, one function."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {"x": "scales"})
    inputs = {"x": Input("batch n", ("scales",))}
    function = staticmethod(np.sqrt)
    torch = staticmethod(lambda x: x.sqrt())


class Rsqrt(Elementwise, row="rsqrt", table=OTHERS):
    """1 / √x, one function."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {"x": "scales"})
    inputs = {"x": Input("batch n", ("scales",))}
    function = staticmethod(lambda x: 1 / np.sqrt(x))
    torch = staticmethod(lambda x: x.rsqrt())


class Wave(Elementwise):
    """Sine or cosine: the error is relative to 1, because a processor reduces the argument."""

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        value, u = cls.function(x), roundings.accumulate
        ones = np.ones_like(value)
        return Approx(value, FUNCTION_ULPS * 2 * u * ones, u * ones).rounded(roundings.output, roundings.tiny)


class Cos(Wave, row="cos", table=OTHERS):
    """cos(x)."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {})
    function = staticmethod(np.cos)
    torch = staticmethod(lambda x: x.cos())


class Sin(Wave, row="sin", table=OTHERS):
    """sin(x)."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {})
    function = staticmethod(np.sin)
    torch = staticmethod(lambda x: x.sin())


class Relu(Elementwise, row="relu", table=OTHERS):
    """max(x, 0), exact."""

    sensitivity_case = ("x", {"batch": 1, "n": 9}, {})
    function = staticmethod(lambda x: np.maximum(x, 0))
    torch = staticmethod(lambda x: x.relu())

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        return Approx.from_input(np.maximum(x, 0))


def sigmoid_bound(roundings: Roundings, x: np.ndarray) -> Approx:
    """Bound 1 / (1 + e^-x): the exponential's error counts by its share of the sum."""
    value, u = expit(x), roundings.accumulate
    e = exp_of_difference(Approx.exact(-np.abs(x)), np.zeros(()), roundings)
    share = e.worst / (1 + e.value)
    # For x < 0, either e^x / (1 + e^x) or 1 / (1 + e^-x) is computed; the exponential's relative
    # error counts once more.
    relative = np.where(x < 0, e.worst / np.maximum(e.value, SINGLE_TINY), 0.0) + share
    typical = np.where(x < 0, e.typical / np.maximum(e.value, SINGLE_TINY), 0.0) + e.typical / (1 + e.value)
    return Approx(value, value * relative, value * typical).rounded((1 + roundings.functions.quotient) * u, SINGLE_TINY)


class Sigmoid(Elementwise, row="sigmoid", table=OTHERS):
    """1 / (1 + e^-x), bounded by `sigmoid_bound`."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {})
    function = staticmethod(expit)
    torch = staticmethod(lambda x: x.sigmoid())

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        return sigmoid_bound(roundings, x).rounded(roundings.output, roundings.tiny)


class Silu(Elementwise, row="silu", table=OTHERS):
    """x / (1 + e^-x) (Elfwing, Uchibe and Doya, 2017): `sigmoid_bound` and a product."""

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {})
    function = staticmethod(lambda x: x * expit(x))
    torch = "silu"

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        product = Approx.from_input(x) * sigmoid_bound(roundings, x)
        return product.rounded(roundings.accumulate, SINGLE_TINY).rounded(roundings.output, roundings.tiny)


class GeluTanh(Elementwise, row="gelu_tanh", table=OTHERS):
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), GELU's approximation.

    The bound is relative to |x|, because 1 + tanh cancels if x is negative. tanh changes by z
    sech²(z) < 0.45 times the relative error of its argument, which five roundings make. Its own
    error is a function's; the sum and two products add one rounding each.
    """

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {"x": "integers"})
    inputs = {"x": Input("batch n", VALUES)}
    function = staticmethod(definitions.gelu_tanh)
    torch = "gelu_tanh"

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray) -> Approx:
        value, u, half = cls.function(x), roundings.accumulate, np.abs(x) / 2
        error = half * u * (0.45 * 5 + 2 * FUNCTION_ULPS + 1)
        return Approx(value, error, 2 * half * u).rounded(2 * u, SINGLE_TINY).rounded(roundings.output, roundings.tiny)


class Binary(Op):
    """An operation on two arrays, rounded once."""

    inputs = {"x": Input("batch n n_state", ("normal", "large", "tiny")), "y": Input("n n_state", ("normal",))}


class Subtract(Binary, row="subtract", table=OTHERS):
    """x - y."""

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_state": 3}, {})
    define = staticmethod(np.subtract)
    torch = staticmethod(lambda x, y: x - y)

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, y: np.ndarray) -> Approx:
        return (Approx.from_input(x) + Approx.from_input(-y)).rounded(roundings.output, roundings.tiny)


class Multiply(Binary, row="multiply", table=OTHERS):
    """x · y."""

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_state": 3}, {})
    define = staticmethod(np.multiply)
    torch = staticmethod(lambda x, y: x * y)

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, y: np.ndarray) -> Approx:
        product = Approx.from_input(x) * Approx.from_input(y)
        return product.rounded(roundings.accumulate, SINGLE_TINY).rounded(roundings.output, roundings.tiny)


class Divide(Binary, row="divide", table=OTHERS):
    """x / y."""

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_state": 3}, {})
    define = staticmethod(np.divide)
    torch = staticmethod(lambda x, y: x / y)

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, y: np.ndarray) -> Approx:
        quotient = Approx.from_input(x) * Approx.exact(1 / y)
        # Dividing by a constant may be a product with its rounded inverse.
        u = (1 + roundings.functions.quotient) * roundings.accumulate
        return quotient.rounded(u, SINGLE_TINY).rounded(roundings.output, roundings.tiny)


class Matmul(Op, row="matmul", table=OTHERS):
    """x @ y, bounded like `Linear` without a bias."""

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_in": 9, "n_out": 3}, {"x": "one_hot"})
    inputs = {"x": Input("batch n n_in", SUMMANDS), "y": Input("batch n_in n_out", FACTORS)}
    define = staticmethod(np.matmul)
    torch = staticmethod(lambda x, y: x @ y)

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, y: np.ndarray) -> Approx:
        product = matmul_bound(Approx.from_input(x), Approx.from_input(y), roundings.accumulate)
        return product.rounded(roundings.output, roundings.tiny)


class RmsNorm(Op, row="rms_norm", table=OTHERS):
    """x / √(mean(x²) + ε) · weight (Zhang and Sennrich, 2019).

    The mean of squares is within γ_{n+2} of it, its inverse root within half of that and three
    roundings. Then follow two products.
    """

    sensitivity_case = ("weight", {"batch": 1, "n": 2, "n_state": 2}, {"x": "one_hot"})
    inputs = {
        "x": Input("batch n n_state", ("normal", "large", "near_epsilon", "constant", "tiny", "one_hot")),
        "weight": Input("n_state"),
    }
    define = staticmethod(definitions.rms_norm)
    torch = "rms_norm"
    large_shape = {"batch": 1, "n": 5, "n_state": 3000}

    @staticmethod
    def bound(
        roundings: Roundings, x: np.ndarray, weight: np.ndarray, *, epsilon: float = definitions.RMS_NORM_EPSILON
    ) -> Approx:
        u, n = roundings.accumulate, x.shape[-1]
        squares = (x**2).mean(-1, keepdims=True)
        share = squares / (squares + epsilon)
        root = 1 / np.sqrt(squares + epsilon)
        relative = share * gamma(n + 2, u) / 2
        typical = share * u * np.sqrt(1 + n / 12)
        inverse = Approx(root, root * relative, root * typical).rounded(3 * u)
        scaled = (Approx.from_input(x) * inverse).rounded(u, SINGLE_TINY) * Approx.exact(weight)
        return scaled.rounded(u, SINGLE_TINY).rounded(roundings.output, roundings.tiny)


class Sum(Op, row="sum", table=OTHERS):
    """Σ x along some axes, within γ_n Σ|x|."""

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_state": 3}, {"x": "one_hot"})
    inputs = {"x": Input("batch n n_state", SUMMANDS)}
    define = staticmethod(definitions.sum_along)
    torch = staticmethod(lambda x: x.sum(-1))

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, *, axes: tuple[int, ...] = (-1,), keep: bool = False) -> Approx:
        ones = np.ones((int(np.prod([x.shape[axis] for axis in axes])), 1))
        kept = [axis for axis in range(x.ndim) if axis not in {axis % x.ndim for axis in axes}]
        moved = x.transpose(*kept, *(axis % x.ndim for axis in axes)).reshape(*(x.shape[axis] for axis in kept), -1)
        total = matmul_bound(Approx.from_input(moved), Approx.exact(ones), roundings.accumulate)
        shape = definitions.sum_along(x, axes=axes, keep=keep).shape
        sums = Approx(*(array.reshape(shape) for array in (total.value, total.worst, total.typical)))
        return sums.rounded(roundings.output, roundings.tiny)


class Mean(Sum, row="mean", table=OTHERS):
    """The mean along some axes: `Sum`, and a division."""

    define = staticmethod(definitions.mean_along)
    torch = staticmethod(lambda x: x.mean(-1))

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, *, axes: tuple[int, ...] = (-1,), keep: bool = False) -> Approx:
        n = float(np.prod([x.shape[axis] for axis in axes]))
        total = Sum.bound(roundings, x, axes=axes, keep=keep) * Approx.exact(np.asarray(1 / n))
        return total.rounded((1 + roundings.functions.quotient) * roundings.accumulate, roundings.tiny)


class Conv1dOf(Op, row="conv1d", table=OTHERS):
    """A convolution along time with channels first, of any stride, padding, dilation and groups.

    The bound is γ_n |x| |weight| over all taps, with the bias among the terms.
    """

    sensitivity_case = ("x", {"batch": 1, "n_in": 3, "n_frames": 5, "n_out": 2}, {"x": "one_hot"})
    inputs = {
        "x": Input("batch n_in n_frames", SUMMANDS),
        "weight": Input("n_out n_in 3", FACTORS),
        "bias": Input("n_out", ("normal", "integers")),
    }
    define = staticmethod(definitions.conv1d_channels_first)
    torch = "conv1d"

    @staticmethod
    def bound(
        roundings: Roundings,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        *,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> Approx:
        taps = definitions.conv1d_taps(x, weight.shape[-1], stride, padding, dilation)
        batch, _, n, _ = taps.shape
        rows = taps.transpose(0, 2, 1, 3).reshape(batch, n, groups, -1)  # the terms of each group
        kernels = weight.reshape(groups, len(weight) // groups, -1)
        parts = [
            matmul_bound(
                Approx.from_input(np.concatenate([rows[:, :, g], np.ones((batch, n, 1))], axis=-1)),
                Approx.from_input(np.concatenate([kernels[g].T, bias.reshape(groups, -1)[g][None]])),
                roundings.accumulate,
            )
            for g in range(groups)
        ]
        value, worst, typical = (
            np.concatenate([getattr(part, field) for part in parts], axis=-1).swapaxes(1, 2)
            for field in ("value", "worst", "typical")
        )
        return Approx(value, worst, typical).rounded(roundings.output, roundings.tiny)
