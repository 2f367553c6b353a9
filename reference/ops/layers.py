"""Rows: layer norm, linear layers, GELU, convolution, embedding, residual."""

import functools
from dataclasses import replace
from typing import ClassVar

import numpy as np

from reference.numerics import definitions
from reference.numerics.bounds import ERF_UNITS, SINGLE_TINY, Approx, Roundings, affine, gamma, matmul, whole
from reference.numerics.dtypes import DTYPES, smallest_subnormal, unit_roundoff
from reference.ops.row import FACTORS, SUMMANDS, Input, Op


class LayerNorm(Op, row="layer_norm"):
    """(x - mean) / sqrt(variance + ε) · weight + bias.

    Mean: a sum of n and a division. Variance: two-pass, Welford and pairwise forms all stay within n u κ of it, κ² = Σx²/Σ(x-mean)²
    (Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983, table 1); so |δv| <= γ_{2n+6} (v + rms(x) √v), and
    the mean's own error squared. The root is taken at both ends of that interval, so that rows whose variance is near ε are covered.
    Behind it: a root, a division, two products, a sum.
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
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Approx:
        u, n = roundings.accumulate, x.shape[-1]
        mean, rms = x.mean(-1, keepdims=True), np.sqrt((x**2).mean(-1, keepdims=True))
        centred, variance = x - mean, x.var(-1, keepdims=True)
        mean_error = gamma(n + 1, u) * np.abs(x).mean(-1, keepdims=True)
        mean_typical = u * np.sqrt(rms**2 * (1 / 2 + 1 / n) + n * mean**2 / 9 / n)
        variance_error = gamma(2 * n + 6, u) * (variance + rms * np.sqrt(variance)) + mean_error**2
        variance_typical = u * (variance + rms * np.sqrt(variance) * np.sqrt(2 / n)) + mean_typical**2
        stable = variance + definitions.LAYER_NORM_EPSILON

        def inverse_root(error: np.ndarray) -> np.ndarray:
            lowest = np.maximum(variance - error, 0) + definitions.LAYER_NORM_EPSILON
            return np.maximum(
                1 / np.sqrt(lowest) - 1 / np.sqrt(stable), 1 / np.sqrt(stable) - 1 / np.sqrt(stable + error)
            )

        root = Approx(1 / np.sqrt(stable), inverse_root(variance_error), inverse_root(variance_typical)).rounded(3 * u)
        difference = Approx(centred, mean_error, mean_typical).rounded(u)
        scaled = (difference * root).rounded(u) * Approx.exact(weight)
        return (scaled.rounded(u) + Approx.exact(bias)).rounded(u).rounded(roundings.output, roundings.tiny)


class Linear(Op, row="linear"):
    """x @ weight.T + bias: γ_n |x| |weight| over the terms that are not zero (Higham, 3.5), the bias among them."""

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
    """The same with weights that stay in float16, as the encoder's graph has it: widened, they are exact."""

    inputs = {**Linear.inputs, "weight": Input("n_out n_in", FACTORS, dtype="float16")}
    dtypes = ("float32",)


class LmHead(Op, row="lm_head"):
    """x @ weight.T, as `Linear` without a bias."""

    sensitivity_case = ("x", {"n": 2, "n_state": 9, "n_vocab": 3}, {"x": "one_hot"})
    inputs = {"x": Input("n n_state", SUMMANDS), "weight": Input("n_vocab n_state", FACTORS)}
    build = "ops.lm_head"
    define = staticmethod(definitions.linear)
    torch = "linear"
    exact_sums = True
    large_shape = {"n": 1, "n_vocab": 3000, "n_state": 384}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray) -> Approx:
        product = matmul(Approx.given(x), Approx.given(weight.T), roundings.accumulate)
        return product.rounded(roundings.output, roundings.tiny)


class FewRows(LmHead, row="few_rows"):
    """The same with weights that stay in float16, as the decoder's graph has it: widened, they are exact."""

    inputs = {**LmHead.inputs, "weight": Input("n_vocab n_state", FACTORS, dtype="float16")}
    build = "ops.lm_head"
    dtypes = ("float32",)


class LinearScaled(Op, row="linear_scaled"):
    """x @ (weight * scale).T + bias, of whole numbers up to 127: γ_n |x| |weight|, a product with the scale, and a sum."""

    sensitivity_case = ("x", {"n": 2, "n_in": 9, "n_out": 3}, {"x": "one_hot"})
    devices = ("cpu",)
    inputs = {
        "x": Input("n n_in", SUMMANDS),
        "weight": Input("n_out n_in", ("whole",), dtype="int8"),
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
        product = matmul(Approx.given(x), Approx.exact(weight.T.astype(np.float64)), u) * Approx.exact(scale)
        return (product.rounded(2 * u, SINGLE_TINY) + Approx.exact(np.asarray(bias))).rounded(u)


class LinearInt8(Op, row="linear_int8"):
    """As `LinearScaled`, of rows that are rounded to 8 bits, too, whose sums are exact whole numbers.

    Which whole number a number becomes is not certain near the middle between two (`whole`). Behind it: the sum as float32, a product of
    both scales and one with it, the bias.
    """

    sensitivity_case = ("bias", {"batch": 1, "n": 2, "n_in": 9, "n_out": 3}, {"x": "zeros"})
    devices = ("cpu",)
    inputs = {
        "x": Input("batch n n_in", ("normal", "sparse", "one_hot", "zeros", "constant", "large")),
        "weight": Input("n_out n_in", ("whole",), dtype="int8"),
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
        numbers, unit = definitions.rounded_rows(x)
        exact = matmul(whole(numbers, roundings), Approx.exact(weight.T.astype(np.float64)), 0.0)
        product = exact.rounded(u) * Approx.exact(unit * scale)
        return (product.rounded(3 * u, SINGLE_TINY) + Approx.exact(np.asarray(bias))).rounded(u)


class Gelu(Op, row="gelu"):
    """x Φ(x) = x/2 · (1 + erf(x/√2)).

    The bound stands against |x|, for 1 + erf cancels where x is negative. erf is off by `ERF_UNITS`; its argument by two roundings,
    which move it by 2/√π · z e^{-z²} · 2u < u; the sum and two products round once each. A clamp of the argument adds nothing that counts.
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
    """γ_n |x| |weight| over three taps, the bias among the terms."""

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
    """As `Conv1d`, every frame."""

    sensitivity_case = ("x", {"batch": 1, "n_frames": 4, "n_in": 3, "n_out": 2}, {"x": "one_hot", "bias": "zeros"})
    stride = 1
    build = "ops.conv1d"
    define = staticmethod(definitions.conv1d)
    torch = "conv1d_stride1"


class Conv1dStride2(Conv1d, row="conv1d_stride2"):
    """As `Conv1d`, every second frame."""

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
    """The tokens' rows of the embedding, bit for bit; one product where weights are whole numbers and have a scale."""

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
    """x + y, as positions and residuals are added: one rounding."""

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
        return (Approx.given(x) + Approx.given(y)).rounded(roundings.output, roundings.tiny)


class Half(Op, row="half"):
    """x as float16, widened again: one rounding; what is below the smallest normal number is off by half of the smallest of all."""

    sensitivity_case = ("x", {"batch": 1, "n": 2}, {})
    inputs = {"x": Input("batch n", ("normal", "big", "tiny"))}
    build = "adapters.half"
    define = staticmethod(lambda x: x)
    torch = "half"
    dtypes = ("float32",)
    result_dtype = "float16"

    @classmethod
    def roundings(cls, dtype: str, device: str = "cpu") -> Roundings:
        half, given = DTYPES["float16"], super().roundings(dtype, device)
        return (
            given
            if dtype == "float64"
            else replace(given, output=unit_roundoff(half), tiny=smallest_subnormal(half) / 2)
        )

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray) -> Approx:
        return Approx.given(x).rounded(roundings.output, roundings.tiny)
