"""Rows: layer norm, linear layers, GELU, convolution, embedding, residual."""

import functools
from dataclasses import replace
from typing import ClassVar

import numpy as np

from reference.numerics import definitions
from reference.numerics.bounds import ERF_UNITS, SINGLE_TINY, Approx, Roundings, affine, gamma, matmul, quantized
from reference.numerics.dtypes import DTYPES, smallest_subnormal, unit_roundoff
from reference.ops.row import FACTORS, SUMMANDS, Input, Op


class LayerNorm(Op, row="layer_norm"):
    """(x - mean) / sqrt(variance + ε) · weight + bias.

    Mean: a sum of n terms and a division.

    Variance: the two-pass, Welford and pairwise algorithms are all within n u κ of it, with κ² =
    Σx²/Σ(x-mean)² (Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983,
    table 1). Hence |δv| <= γ_{2n+6} (v + rms(x) √v), plus the square of the mean's own error.

    Square root: evaluated at both ends of that interval, which covers rows with a variance near ε.

    After it: the rounding of the root, a division, two products and a sum.
    """

    sensitivity_case = ("weight", {"batch": 1, "n": 2, "n_state": 2}, {"x": "one_hot", "bias": "zeros"})
    inputs = {
        "x": Input("batch n n_state", ("normal", "large", "near_epsilon", "constant", "zeros", "tiny", "one_hot")),
        "weight": Input("n_state"),
        "bias": Input("n_state"),
    }
    build = "ops.layer_norm"
    define = staticmethod(definitions.layer_norm)
    torch = "layer_norm"
    large_shape = {"batch": 1, "n": 5, "n_state": 3000}

    @staticmethod
    def bound(
        roundings: Roundings,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        *,
        epsilon: float | None = None,
    ) -> Approx:
        epsilon = definitions.LAYER_NORM_EPSILON if epsilon is None else epsilon
        u, n = roundings.accumulate, x.shape[-1]
        mean, rms = x.mean(-1, keepdims=True), np.sqrt((x**2).mean(-1, keepdims=True))
        centred, variance = x - mean, x.var(-1, keepdims=True)
        mean_error = gamma(n + 1, u) * np.abs(x).mean(-1, keepdims=True)
        mean_typical = u * np.sqrt(rms**2 * (1 / 2 + 1 / n) + n * mean**2 / 9 / n)
        variance_error = gamma(2 * n + 6, u) * (variance + rms * np.sqrt(variance)) + mean_error**2
        variance_typical = u * (variance + rms * np.sqrt(variance) * np.sqrt(2 / n)) + mean_typical**2
        stable = variance + epsilon

        def inverse_root(error: np.ndarray) -> np.ndarray:
            lowest = np.maximum(variance - error, 0) + epsilon
            return np.maximum(
                1 / np.sqrt(lowest) - 1 / np.sqrt(stable), 1 / np.sqrt(stable) - 1 / np.sqrt(stable + error)
            )

        root = Approx(1 / np.sqrt(stable), inverse_root(variance_error), inverse_root(variance_typical)).rounded(3 * u)
        difference = Approx(centred, mean_error, mean_typical).rounded(u)
        scaled = (difference * root).rounded(u) * Approx.exact(weight)
        return (scaled.rounded(u) + Approx.exact(bias)).rounded(u).rounded(roundings.output, roundings.tiny)


class Linear(Op, row="linear"):
    """x @ weight.T + bias.

    The bound is γ_n |x| |weight| over the terms that are not zero, including the bias (Higham,
    3.5).
    """

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_in": 9, "n_out": 3}, {"x": "one_hot", "bias": "zeros"})
    inputs = {
        "x": Input("batch n n_in", SUMMANDS),
        "weight": Input("n_out n_in", FACTORS),
        "bias": Input("n_out", ("normal", "integers")),
    }
    build = "ops.linear"
    define = staticmethod(definitions.linear)
    torch = "linear"
    exact_sums = True
    large_shape = {"batch": 1, "n": 3, "n_in": 1500, "n_out": 7}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> Approx:
        bias = np.zeros(len(weight)) if bias is None else bias
        return affine(x, weight.T, bias, roundings.accumulate).rounded(roundings.output, roundings.tiny)


class LinearOfHalves(Linear, row="linear_of_halves"):
    """`Linear` with weights in float16, as in the encoder's graph.

    Widening the weights to float32 is exact.
    """

    inputs = {**Linear.inputs, "weight": Input("n_out n_in", FACTORS, dtype="float16")}
    dtypes = ("float32",)


class LmHead(Op, row="lm_head"):
    """x @ weight.T, bounded like `Linear` without a bias."""

    sensitivity_case = ("x", {"n": 2, "n_state": 9, "n_vocab": 3}, {"x": "one_hot"})
    inputs = {"x": Input("n n_state", SUMMANDS), "weight": Input("n_vocab n_state", FACTORS)}
    build = "ops.lm_head"
    define = staticmethod(definitions.linear)
    torch = "linear"
    exact_sums = True
    large_shape = {"n": 1, "n_vocab": 3000, "n_state": 384}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray) -> Approx:
        product = matmul(Approx.from_input(x), Approx.from_input(weight.T), roundings.accumulate)
        return product.rounded(roundings.output, roundings.tiny)


class FewRows(LmHead, row="few_rows"):
    """`LmHead` with weights in float16, as in the decoder's graph.

    Widening the weights to float32 is exact.
    """

    inputs = {**LmHead.inputs, "weight": Input("n_vocab n_state", FACTORS, dtype="float16")}
    build = "ops.lm_head"
    dtypes = ("float32",)


class LinearScaled(Op, row="linear_scaled"):
    """x @ (weight * scale).T + bias, with int8 weights and their dequantization scales.

    The bound is γ_n |x| |weight|, then a product with the scale, and a sum.
    """

    sensitivity_case = ("x", {"n": 2, "n_in": 9, "n_out": 3}, {"x": "one_hot"})
    devices = ("cpu",)
    inputs = {
        "x": Input("n n_in", SUMMANDS),
        "weight": Input("n_out n_in", ("int8",), dtype="int8"),
        "scale": Input("n_out", ("scales",)),
    }
    build = "ops.lm_head"
    define = staticmethod(definitions.linear_scaled)
    torch = "linear_scaled"
    dtypes = ("float32",)
    large_shape = {"n": 1, "n_out": 3000, "n_in": 384}

    @staticmethod
    def bound(
        roundings: Roundings, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> Approx:
        u = roundings.accumulate
        product = matmul(Approx.from_input(x), Approx.exact(weight.T.astype(np.float64)), u) * Approx.exact(scale)
        return (product.rounded(2 * u, SINGLE_TINY) + Approx.exact(np.asarray(bias))).rounded(u)


class LinearInt8(Op, row="linear_int8"):
    """`LinearScaled` with rows of x that are quantized to int8 as well.

    Sums of integers are exact. Near the middle between two integers a number may be quantized to
    either of them (`quantized`). After the exact sum: its rounding to float32, the product of both
    scales, the product with it, and the sum with the bias.
    """

    sensitivity_case = ("bias", {"batch": 1, "n": 2, "n_in": 9, "n_out": 3}, {"x": "zeros"})
    devices = ("cpu",)
    inputs = {
        "x": Input("batch n n_in", ("normal", "sparse", "one_hot", "zeros", "constant", "large")),
        "weight": Input("n_out n_in", ("int8",), dtype="int8"),
        "scale": Input("n_out", ("scales",)),
        "bias": Input("n_out", ("normal", "zeros")),
    }
    build = "ops.linear_int8"
    define = staticmethod(definitions.linear_int8)
    torch = "linear_int8"
    dtypes = ("float32",)
    large_shape = {"batch": 1, "n": 7, "n_in": 1536, "n_out": 200}

    @staticmethod
    def bound(
        roundings: Roundings, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> Approx:
        u = roundings.accumulate
        rows, row_scale = definitions.scaled_rows(x)
        exact = matmul(quantized(rows, roundings), Approx.exact(weight.T.astype(np.float64)), 0.0)
        product = exact.rounded(u) * Approx.exact(row_scale * scale)
        return (product.rounded(3 * u, SINGLE_TINY) + Approx.exact(np.asarray(bias))).rounded(u)


class Gelu(Op, row="gelu"):
    """x Φ(x) = x/2 · (1 + erf(x/√2)).

    The bound is relative to |x|, because 1 + erf cancels if x is negative. The error of erf is
    `ERF_UNITS`. Its argument has two roundings, which change erf by 2/√π · z e^{-z²} · 2u < u. The
    sum and two products add one rounding each. Clamping the argument adds no error that matters.
    """

    sensitivity_case = ("x", {"batch": 1, "n": 5}, {"x": "integers"})
    inputs = {"x": Input("batch n", ("normal", "large", "tiny", "zeros", "integers"))}
    build = "ops.gelu"
    define = staticmethod(definitions.gelu)
    torch = "gelu"
    large_shape = {"batch": 3, "n": 3000}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray) -> Approx:
        u, half = roundings.accumulate, np.abs(x) / 2
        value = definitions.gelu(x)
        error = half * u * (ERF_UNITS + 1 + 1)
        return Approx(value, error, 2 * half * u).rounded(2 * u, SINGLE_TINY).rounded(roundings.output, roundings.tiny)


class Conv1d(Op):
    """A convolution with three taps.

    The bound is γ_n |x| |weight| over all taps, with the bias among the terms.
    """

    inputs = {
        "x": Input("batch n_frames n_in", SUMMANDS),
        "weight": Input("n_out n_in 3", FACTORS),
        "bias": Input("n_out", ("normal", "integers")),
    }
    exact_sums = True
    stride: ClassVar[int]
    large_shape = {"batch": 1, "n_frames": 3000, "n_in": 5, "n_out": 3}

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Approx:
        padded, n = np.pad(x, ((0, 0), (1, 1), (0, 0))), x.shape[1]
        taps = np.concatenate([padded[:, tap : tap + n : cls.stride] for tap in range(3)], axis=-1)
        kernel = np.concatenate([weight[:, :, tap].T for tap in range(3)])
        return affine(taps, kernel, bias, roundings.accumulate).rounded(roundings.output, roundings.tiny)


class Conv1dStride1(Conv1d, row="conv1d_stride1"):
    """`Conv1d` with stride 1."""

    sensitivity_case = ("x", {"batch": 1, "n_frames": 4, "n_in": 3, "n_out": 2}, {"x": "one_hot", "bias": "zeros"})
    stride = 1
    build = "ops.conv1d"
    define = staticmethod(definitions.conv1d)
    torch = "conv1d_stride1"


class Conv1dStride2(Conv1d, row="conv1d_stride2"):
    """`Conv1d` with stride 2."""

    sensitivity_case = (
        "weight",
        {"batch": 1, "n_frames": 4, "n_in": 3, "n_out": 2},
        {"weight": "one_hot", "bias": "zeros"},
    )
    stride = 2
    build = "adapters.conv1d_stride2"
    define = staticmethod(functools.partial(definitions.conv1d, stride=2))
    torch = "conv1d_stride2"


class TokenEmbedding(Op, row="token_embedding"):
    """The rows of the embedding for the tokens, which are exact.

    With int8 weights and their scale, there is one product.
    """

    sensitivity_case = ("weight", {"batch": 1, "n": 5, "n_vocab": 3, "n_state": 2}, {})
    inputs = {
        "tokens": Input("batch n", ("index",), dtype="int64", below="n_vocab"),
        "weight": Input("n_vocab n_state", ("normal", "tiny")),
    }
    build = "ops.token_embedding"
    define = staticmethod(
        lambda tokens, weight, scale=1.0: weight[tokens] * np.broadcast_to(scale, len(weight))[tokens][..., None]
    )
    torch = "token_embedding"

    @classmethod
    def bound(
        cls, roundings: Roundings, tokens: np.ndarray, weight: np.ndarray, scale: np.ndarray | None = None
    ) -> Approx:
        if scale is None:
            return Approx.exact(weight[tokens])
        return Approx.exact(cls.define(tokens, weight, scale)).rounded(roundings.accumulate)


class Residual(Op, row="residual"):
    """x + y, the sum with positions or with a residual. There is one rounding."""

    sensitivity_case = ("x", {"batch": 1, "n": 2, "n_state": 3}, {"y": "zeros"})
    inputs = {
        "x": Input("batch n n_state", ("normal", "large", "tiny")),
        "y": Input("n n_state", ("normal", "integers", "zeros")),
    }
    build = "adapters.residual"
    define = staticmethod(np.add)
    torch = "residual"

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, y: np.ndarray) -> Approx:
        return (Approx.from_input(x) + Approx.from_input(y)).rounded(roundings.output, roundings.tiny)


class Half(Op, row="half"):
    """x rounded to float16 and widened again.

    There is one rounding. Below the smallest normal number, the error is half of the smallest
    subnormal number.
    """

    sensitivity_case = ("x", {"batch": 1, "n": 2}, {})
    inputs = {"x": Input("batch n", ("normal", "big", "tiny"))}
    build = "adapters.half"
    define = staticmethod(lambda x: x)
    torch = "half"
    dtypes = ("float32",)
    result_dtype = "float16"

    @classmethod
    def roundings(cls, dtype: str, device: str = "cpu") -> Roundings:
        half, roundings = DTYPES["float16"], super().roundings(dtype, device)
        if dtype == "float64":
            return roundings
        return replace(roundings, output=unit_roundoff(half), tiny=smallest_subnormal(half) / 2)

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray) -> Approx:
        return Approx.from_input(x).rounded(roundings.output, roundings.tiny)
