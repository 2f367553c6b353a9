"""The table of ops: one row for each op of Whisper, with everything that proving it takes.

Parity tests, shape fuzzing, golden vectors and reports iterate over `TABLE`. A new op is a new class here and nothing else:

    @row
    class Twice(Op):
        \"""2 x. One product with a power of two, which is exact: no error at all.\"""

        inputs = {"x": Input("batch n")}
        build = staticmethod(lambda x: x + x)       # on MAX
        define = staticmethod(lambda x: 2 * x)      # in NumPy float64
        torch = staticmethod(lambda x: 2 * x)       # the witness
        @staticmethod
        def bound(roundings, x):
            return Approx.exact(2 * x)

It is then compiled with the others (`reference.suite`), fuzzed, compared and reported.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from maxwhisper import ops
from reference import definitions as define
from reference.bounds import FUNCTION_ULPS, Approx, Roundings, affine, exp_of_difference, gamma, matmul
from reference.dtypes import DTYPES


@dataclass(frozen=True)
class Input:
    """One argument of an op: its shape, as names of dimensions or numbers, the kinds of values it is tried with (`reference.inputs`),
    and its dtype where that is not the one under test. Whole numbers stay below the dimension `below`.
    """

    shape: str
    values: tuple[str, ...] = ("normal",)
    dtype: str | None = None
    below: str | None = None


class Op:
    """A row. Its docstring derives the bound and names its source.

    dtypes: those it is proven in. output: its result's dtype where that is not the one under test. stores: intermediates are kept in
    the dtype under test instead of float32. exact_sums: sums of small integers come out bit for bit. long: a large shape to try as well.
    """

    inputs: ClassVar[Mapping[str, Input]]
    build: ClassVar[Callable[..., Any]]
    define: ClassVar[Callable[..., np.ndarray]]
    torch: ClassVar[Callable[..., torch.Tensor]]
    bound: ClassVar[Callable[..., Approx]]
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)
    output: ClassVar[str | None] = None
    stores: ClassVar[bool] = False
    exact_sums: ClassVar[bool] = False
    long: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def roundings(cls, dtype: str) -> Roundings:
        """The roundings that this op makes in a dtype."""
        return Roundings.of(DTYPES[cls.output or dtype], DTYPES[dtype] if cls.stores else None)


TABLE: dict[str, type[Op]] = {}


def row(op: type[Op]) -> type[Op]:
    """Add a row to the table, under its class's name in lower case."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in op.__name__).lstrip("_")
    TABLE[name] = op
    return op


FACTORS = ("normal", "sparse", "one_hot", "small_integers", "zeros", "tiny")
# Not for both sides of a product: where all terms are equal their roundings are, too, and errors no longer grow like a square root.
SUMMANDS = ("normal", "sparse", "one_hot", "integers", "zeros", "tiny", "constant")


@row
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + ε) · weight + bias.

    Mean: a sum of n and a division. Variance: two-pass, Welford and pairwise forms all stay within n u κ of it, κ² = Σx²/Σ(x-mean)²
    (Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983, table 1); so |δv| <= γ_{2n+6} (v + rms(x) √v), and
    the mean's own error squared. The root is taken at both ends of that interval, so that rows whose variance is near ε are covered.
    Behind it: a root, a division, two products, a sum.
    """

    inputs = {
        "x": Input("batch n n_state", ("normal", "large", "near_epsilon", "constant", "zeros", "tiny", "one_hot")),
        "weight": Input("n_state"),
        "bias": Input("n_state"),
    }
    build = staticmethod(ops.layer_norm)
    define = staticmethod(define.layer_norm)
    torch = staticmethod(lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, define.LAYER_NORM_EPSILON))
    long = {"batch": 1, "n": 5, "n_state": 3000}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Approx:
        u, n = roundings.accumulate, x.shape[-1]
        mean, rms = x.mean(-1, keepdims=True), np.sqrt((x**2).mean(-1, keepdims=True))
        centred, variance = x - mean, x.var(-1, keepdims=True)
        mean_error = gamma(n + 1, u) * np.abs(x).mean(-1, keepdims=True)
        mean_typical = u * np.sqrt(rms**2 * (1 / 2 + 1 / n) + n * mean**2 / 9 / n)
        variance_error = gamma(2 * n + 6, u) * (variance + rms * np.sqrt(variance)) + mean_error**2
        variance_typical = u * (variance + rms * np.sqrt(variance) * np.sqrt(2 / n)) + mean_typical**2
        stable = variance + define.LAYER_NORM_EPSILON

        def inverse_root(error: np.ndarray) -> np.ndarray:
            lowest = np.maximum(variance - error, 0) + define.LAYER_NORM_EPSILON
            return np.maximum(1 / np.sqrt(lowest) - 1 / np.sqrt(stable), 1 / np.sqrt(stable) - 1 / np.sqrt(stable + error))

        root = Approx(1 / np.sqrt(stable), inverse_root(variance_error), inverse_root(variance_typical)).rounded(3 * u)
        difference = Approx(centred, mean_error, mean_typical).rounded(u)
        scaled = (difference * root).rounded(u) * Approx.exact(weight)
        return (scaled.rounded(u) + Approx.exact(bias)).rounded(u).rounded(roundings.output, roundings.tiny)


@row
class Linear(Op):
    """x @ weight.T + bias: γ_n |x| |weight| over the terms that are not zero (Higham, 3.5), the bias among them; the product is stored."""

    inputs = {"x": Input("batch n n_in", SUMMANDS), "weight": Input("n_out n_in", FACTORS), "bias": Input("n_out", ("normal", "integers"))}
    build = staticmethod(ops.linear)
    define = staticmethod(define.linear)
    torch = staticmethod(F.linear)
    stores = True
    exact_sums = True
    long = {"batch": 1, "n": 3, "n_in": 1500, "n_out": 7}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Approx:
        return affine(x, weight.T, bias, roundings, n_stored=1).rounded(roundings.output, roundings.tiny)


@row
class LmHead(Op):
    """x @ weight.T, as `Linear` without a bias; one row and several take different ways."""

    inputs = {"x": Input("n n_state", SUMMANDS), "weight": Input("n_vocab n_state", FACTORS)}
    build = staticmethod(ops.lm_head)
    define = staticmethod(define.linear)
    torch = staticmethod(F.linear)
    exact_sums = True
    long = {"n": 1, "n_vocab": 3000, "n_state": 384}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, weight: np.ndarray) -> Approx:
        product = matmul(Approx.given(x), Approx.given(weight.T), roundings.accumulate, roundings.tiny)
        return product.rounded(roundings.output, roundings.tiny)


@row
class Gelu(Op):
    """x Φ(x) = x/2 · (1 + erf(x/√2)).

    The bound stands against |x|, for 1 + erf cancels where x is negative. erf is off by `FUNCTION_ULPS`; its argument by two roundings,
    which move it by 2/√π · z e^{-z²} · 2u < u; the sum and two products round once each. A clamp of the argument adds nothing that counts.
    """

    inputs = {"x": Input("batch n", ("normal", "large", "tiny", "zeros", "integers"))}
    build = staticmethod(ops.gelu)
    define = staticmethod(define.gelu)
    torch = staticmethod(F.gelu)
    long = {"batch": 3, "n": 3000}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray) -> Approx:
        u, half = roundings.accumulate, np.abs(x) / 2
        value = define.gelu(x)
        error = half * u * (2 * FUNCTION_ULPS + 1 + 1)
        return Approx(value, error, 2 * half * u).rounded(2 * u, roundings.tiny).rounded(roundings.output, roundings.tiny)


class Conv1d(Op):
    """γ_n |x| |weight| over three taps, the bias among the terms; each tap's product and two sums of them are stored."""

    inputs = {
        "x": Input("batch n_frames n_in", SUMMANDS),
        "weight": Input("n_out n_in 3", FACTORS),
        "bias": Input("n_out", ("normal", "integers")),
    }
    stores = True
    exact_sums = True
    stride: ClassVar[int]
    long = {"batch": 1, "n_frames": 3000, "n_in": 5, "n_out": 3}

    @classmethod
    def bound(cls, roundings: Roundings, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Approx:
        padded, n = np.pad(x, ((0, 0), (1, 1), (0, 0))), x.shape[1]
        taps = np.concatenate([padded[:, tap : tap + n : cls.stride] for tap in range(3)], axis=-1)
        kernel = np.concatenate([weight[:, :, tap].T for tap in range(3)])
        return affine(taps, kernel, bias, roundings, n_stored=5).rounded(roundings.output, roundings.tiny)


def _torch_conv1d(stride: int) -> Callable[..., torch.Tensor]:
    return lambda x, weight, bias: F.conv1d(x.mT, weight, bias, stride=stride, padding=1).mT


@row
class Conv1dStride1(Conv1d):
    """As `Conv1d`, every frame."""

    stride = 1
    build = staticmethod(ops.conv1d)
    define = staticmethod(define.conv1d)
    torch = staticmethod(_torch_conv1d(1))


@row
class Conv1dStride2(Conv1d):
    """As `Conv1d`, every second frame."""

    stride = 2
    build = staticmethod(functools.partial(ops.conv1d, stride=2))
    define = staticmethod(functools.partial(define.conv1d, stride=2))
    torch = staticmethod(_torch_conv1d(2))


def softmax_bound(scores: Approx, u: float) -> Approx:
    """exp(s - max) / Σ exp(s - max): the argument's rounding u |s - max| and the function's, a sum of n, a division."""
    top = scores.value.max(-1, keepdims=True)
    has_any = np.isfinite(top)
    with np.errstate(invalid="ignore"):
        e = exp_of_difference(scores, Approx.exact(np.where(has_any, top, 0.0)), u)
        total = e.value.sum(-1, keepdims=True)
        n = (e.value != 0).sum(-1, keepdims=True)
        total_error = e.worst.sum(-1, keepdims=True) * (1 + gamma(n, u)) + gamma(n, u) * total
        total_typical = np.sqrt((e.typical**2).sum(-1, keepdims=True)) + u * np.sqrt(n) * total / 3
        value = e.value / np.where(has_any, total, 1)
        low = np.maximum(total - total_error, 0)
        worst = np.where(low > 0, (e.value + e.worst) / np.where(low > 0, low, 1) - value, np.inf)
        result = Approx(value, worst, np.hypot(e.typical, value * total_typical) / np.where(has_any, total, 1)).rounded(u)
    nothing = np.full_like(value, np.nan)
    return Approx(np.where(has_any, result.value, nothing), np.minimum(result.worst, 1.0), np.minimum(result.typical, 1.0))


@row
class Softmax(Op):
    """exp(x - max) / Σ exp(x - max). A row of nothing but -inf gives NaN, as in PyTorch; the bound is `softmax_bound`'s."""

    inputs = {"x": Input("batch n_head n n_kv", ("normal", "large", "tiny", "zeros", "integers", "constant", "some_infinite"))}
    build = staticmethod(ops.softmax)
    define = staticmethod(define.softmax)
    torch = staticmethod(lambda x: x.softmax(-1))
    long = {"batch": 1, "n_head": 2, "n": 3, "n_kv": 1500}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray) -> Approx:
        return softmax_bound(Approx.exact(x), roundings.accumulate).rounded(roundings.output, roundings.tiny)


HEADS = "batch n_head n head_dim"
KEYS = "batch n_head n_kv head_dim"


def scores_bound(q: np.ndarray, k: np.ndarray, u: float, tiny: float = 0.0) -> Approx:
    """q @ k.T / √head_dim: the scale is a function's result, its product with q rounded, the sum γ_n."""
    scale = 1 / np.sqrt(q.shape[-1])
    scaled = (Approx.given(q) * Approx(np.asarray(scale), np.asarray(2 * FUNCTION_ULPS * u * scale), np.asarray(u * scale))).rounded(
        u, tiny
    )
    return matmul(scaled, Approx.given(k.swapaxes(-1, -2)), u, tiny)


@row
class AttentionScores(Op):
    """q @ k.T / √head_dim, in float32: `scores_bound`."""

    inputs = {"q": Input(HEADS, SUMMANDS), "k": Input(KEYS, FACTORS)}
    build = staticmethod(ops.attention_scores)
    define = staticmethod(define.attention_scores)
    torch = staticmethod(lambda q, k: q.float() @ k.float().mT / np.sqrt(q.shape[-1]))
    output = "float32"
    long = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, q: np.ndarray, k: np.ndarray) -> Approx:
        return scores_bound(q, k, roundings.accumulate, roundings.tiny)


@row
class CausalMask(Op):
    """scores + mask, where the mask is 0 or -inf: nothing is rounded."""

    inputs = {"scores": Input("batch n_head n n_kv", ("normal", "large", "tiny")), "mask": Input("n n_kv", ("causal",))}
    build = staticmethod(ops.apply_mask)
    define = staticmethod(lambda scores, mask: scores + mask)
    torch = staticmethod(lambda scores, mask: scores.masked_fill(mask != 0, -torch.inf))
    dtypes = ("float32",)  # scores are float32 in every precision

    @staticmethod
    def bound(roundings: Roundings, scores: np.ndarray, mask: np.ndarray) -> Approx:
        return Approx.given(scores + mask)


@row
class AttentionContext(Op):
    """weights @ v, summed in float32: γ_n |weights| |v|."""

    inputs = {"weights": Input("batch n_head n n_kv", ("weights", "one_hot", "integers"), dtype="float32"), "v": Input(KEYS, FACTORS)}
    build = staticmethod(ops.attention_context)
    define = staticmethod(np.matmul)
    torch = staticmethod(lambda weights, v: (weights @ v.float()).to(v.dtype))
    exact_sums = True
    long = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, weights: np.ndarray, v: np.ndarray) -> Approx:
        product = matmul(Approx.given(weights), Approx.given(v), roundings.accumulate, roundings.tiny)
        return product.rounded(roundings.output, roundings.tiny)


def attention_bound(roundings: Roundings, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0) -> Approx:
    """softmax(scores) @ v, whole or block by block (Dao et al., *FlashAttention*, 2022).

    A block's weights are rescaled by exp(m - m') whenever a later block raises the maximum. The arguments of these factors add up to the
    range of the row's scores, so their roundings add u (range) to the exponent, and each factor `FUNCTION_ULPS` and a product; at most
    one per key. No context lies outside the values it averages, which caps the bound.
    """
    u = roundings.accumulate
    scores = scores_bound(q, k, u, roundings.tiny)
    masked = scores.value + mask
    finite = np.isfinite(masked)
    highest = np.where(finite, masked, -np.inf).max(-1, keepdims=True)
    lowest = np.where(finite, masked, np.inf).min(-1, keepdims=True)
    span = np.where(np.isfinite(highest), highest - lowest, 0.0)
    blocks = np.minimum(finite.sum(-1, keepdims=True), 8 + finite.sum(-1, keepdims=True) / 8)
    rescaled = Approx(masked, scores.worst + u * span + blocks * (2 * FUNCTION_ULPS + 1) * u, scores.typical + u * span / 3)
    context = matmul(softmax_bound(rescaled, u), Approx.given(v), u, roundings.tiny)
    # A key that no query sees has no part in it, not even in an infinite or undefined one.
    hull = np.ptp(v, axis=-2, keepdims=True) * 1.001 + np.abs(v).max(-2, keepdims=True) * gamma(v.shape[-2] + 2, u)
    capped = Approx(context.value, np.minimum(context.worst, hull), np.minimum(context.typical, hull))
    return capped.rounded(roundings.output, roundings.tiny)


def _torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """In float32 and rounded at the end, as the contract has it; PyTorch's own attention in halves rounds the weights, too."""
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)


@row
class Attention(Op):
    """Scaled dot-product attention without a mask, as the encoder and cross-attention use it: `attention_bound`."""

    inputs = {
        "q": Input(HEADS, ("normal", "sparse", "zeros", "big")),
        "k": Input(KEYS),
        "v": Input(KEYS, ("normal", "one_hot", "constant")),
    }
    build = staticmethod(lambda q, k, v: ops.attention_context(ops.softmax(ops.attention_scores(q, k)), v))
    define = staticmethod(define.attention)
    torch = staticmethod(_torch_attention)
    long = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}
    bound = staticmethod(attention_bound)


@row
class MaskedAttention(Op):
    """Self-attention under a causal mask: a prefill, or, with fewer queries than keys, tokens that follow others: `attention_bound`."""

    inputs = {
        "q": Input(HEADS, ("normal", "sparse", "zeros", "big")),
        "k": Input(KEYS),
        "v": Input(KEYS, ("normal", "one_hot", "constant")),
        "mask": Input("n n_kv", ("causal",), dtype="float32"),
    }
    build = staticmethod(lambda q, k, v, mask: ops.attention_context(ops.softmax(ops.apply_mask(ops.attention_scores(q, k), mask)), v))
    define = staticmethod(define.attention)
    torch = staticmethod(_torch_attention)
    long = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 448, "head_dim": 64}
    bound = staticmethod(attention_bound)


@row
class TokenEmbedding(Op):
    """The tokens' rows of the embedding, bit for bit."""

    inputs = {
        "tokens": Input("batch n", ("index",), dtype="int64", below="n_vocab"),
        "weight": Input("n_vocab n_state", ("normal", "tiny")),
    }
    build = staticmethod(ops.token_embedding)
    define = staticmethod(lambda tokens, weight: weight[tokens])
    torch = staticmethod(F.embedding)

    @staticmethod
    def bound(roundings: Roundings, tokens: np.ndarray, weight: np.ndarray) -> Approx:
        return Approx.exact(weight[tokens])


@row
class Residual(Op):
    """x + y, as positions and residuals are added: one rounding."""

    inputs = {"x": Input("batch n n_state", ("normal", "large", "tiny")), "y": Input("n n_state", ("normal", "integers", "zeros"))}
    build = staticmethod(lambda x, y: x + y)
    define = staticmethod(np.add)
    torch = staticmethod(torch.add)

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray, y: np.ndarray) -> Approx:
        return (Approx.given(x) + Approx.given(y)).rounded(roundings.output, roundings.tiny)
