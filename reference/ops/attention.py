"""Rows: attention whole and in its steps, the causal mask, and the cache of keys and values."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from reference.numerics import definitions
from reference.numerics.bounds import (
    FUNCTION_ULPS,
    SINGLE_TINY,
    Approx,
    Roundings,
    exp_of_difference,
    gamma,
    matmul,
    whole,
)
from reference.numerics.dtypes import DTYPES
from reference.ops.row import FACTORS, SUMMANDS, Input, Op


def softmax_bound(scores: Approx, roundings: Roundings) -> Approx:
    """exp(s - max) / Σ exp(s - max): the argument's rounding u |s - max| and the function's, a sum of n, a division."""
    u = roundings.accumulate
    top = scores.value.max(-1, keepdims=True)
    has_any = np.isfinite(top)
    with np.errstate(invalid="ignore"):
        e = exp_of_difference(scores, np.where(has_any, top, 0.0), roundings)
        total = e.value.sum(-1, keepdims=True)
        n = (e.value != 0).sum(-1, keepdims=True)
        total_error = e.worst.sum(-1, keepdims=True) * (1 + gamma(n, u)) + gamma(n, u) * total
        total_typical = np.sqrt((e.typical**2).sum(-1, keepdims=True)) + u * np.sqrt(n) * total / 3
        value = e.value / np.where(has_any, total, 1)
        low = np.maximum(total - total_error, 0)
        worst = np.where(low > 0, (e.value + e.worst) / np.where(low > 0, low, 1) - value, np.inf)
        result = Approx(value, worst, np.hypot(e.typical, value * total_typical) / np.where(has_any, total, 1))
        result = result.rounded(roundings.functions.quotient * u)
    nothing = np.full_like(value, np.nan)
    return Approx(
        np.where(has_any, result.value, nothing), np.minimum(result.worst, 1.0), np.minimum(result.typical, 1.0)
    )


class Softmax(Op, row="softmax"):
    """exp(x - max) / Σ exp(x - max). A row of nothing but -inf gives NaN, as in PyTorch; the bound is `softmax_bound`'s."""

    sensitivity_case = ("x", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 5}, {"x": "integers"})
    inputs = {
        "x": Input("batch n_head n n_kv", ("normal", "large", "tiny", "zeros", "integers", "constant", "some_infinite"))
    }
    build = "ops.softmax"
    define = staticmethod(definitions.softmax)
    torch = "softmax"
    large_shape = {"batch": 1, "n_head": 2, "n": 3, "n_kv": 1500}

    @staticmethod
    def bound(roundings: Roundings, x: np.ndarray) -> Approx:
        return softmax_bound(Approx.exact(x), roundings).rounded(roundings.output, roundings.tiny)


HEADS = "batch n_head n head_dim"
KEYS = "batch n_head n_kv head_dim"


def scores_bound(q: np.ndarray, k: np.ndarray, u: float) -> Approx:
    """q @ k.T / √head_dim: the scale is a function's result, its product with q rounded, the sum γ_n."""
    scale = 1 / np.sqrt(q.shape[-1])
    scaled = (
        Approx.given(q) * Approx(np.asarray(scale), np.asarray(2 * FUNCTION_ULPS * u * scale), np.asarray(u * scale))
    ).rounded(u, SINGLE_TINY)
    return matmul(scaled, Approx.given(k.swapaxes(-1, -2)), u)


class AttentionScores(Op, row="attention_scores"):
    """q @ k.T / √head_dim, in float32: `scores_bound`."""

    sensitivity_case = ("q", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "head_dim": 4}, {"q": "one_hot"})
    inputs = {"q": Input(HEADS, SUMMANDS), "k": Input(KEYS, FACTORS)}
    build = "ops.attention_scores"
    define = staticmethod(definitions.attention_scores)
    torch = "attention_scores"
    dtypes = (
        "float32",
    )  # alone only where it is asked for, and graphs are built in float32; halves are proven in `Attention`
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, q: np.ndarray, k: np.ndarray, mask: np.ndarray | float = 0.0) -> Approx:
        scores = scores_bound(q, k, roundings.accumulate)
        return Approx(scores.value + mask, scores.worst, scores.typical)


class CausalMask(Op, row="causal_mask"):
    """scores + mask, where the mask is 0 or -inf: nothing is rounded."""

    sensitivity_case = ("scores", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3}, {})
    inputs = {"scores": Input("batch n_head n n_kv", ("normal", "large", "tiny")), "mask": Input("n n_kv", ("causal",))}
    build = "ops.apply_mask"
    define = staticmethod(lambda scores, mask: scores + mask)
    torch = "causal_mask"
    dtypes = ("float32",)  # scores are float32 in every precision

    @staticmethod
    def bound(roundings: Roundings, scores: np.ndarray, mask: np.ndarray) -> Approx:
        return Approx.given(scores + mask)


class AttentionContext(Op, row="attention_context"):
    """weights @ v, summed in float32: γ_n |weights| |v|."""

    sensitivity_case = ("v", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 1, "head_dim": 3}, {"weights": "one_hot"})
    inputs = {"weights": Input("batch n_head n n_kv", ("weights", "one_hot", "integers")), "v": Input(KEYS, FACTORS)}
    build = "ops.attention_context"
    define = staticmethod(np.matmul)
    torch = "attention_context"
    dtypes = ("float32",)  # as `AttentionScores`
    exact_sums = True
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, weights: np.ndarray, v: np.ndarray) -> Approx:
        product = matmul(Approx.given(weights), Approx.given(v), roundings.accumulate)
        return product.rounded(roundings.output, roundings.tiny)


def attention_bound(
    roundings: Roundings, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0
) -> Approx:
    """softmax(scores) @ v, whole or block by block (Dao et al., *FlashAttention*, 2022).

    A block's weights are rescaled by exp(m - m') whenever a later block raises the maximum. The arguments of these factors add up to the
    range of the row's scores, so their roundings add u (range) to the exponent, and each factor `FUNCTION_ULPS` and a product; there is
    one for each block of 8 keys or more, or for each key where these are few. A mean lies among what it averages, which caps the bound:
    the hull of v, and the roundings of both sums, of weights and of weighted values, and of the factors. Weights are rounded to v's dtype,
    whether they have been divided by their sum, or are e^(s - m) still: of the same relative error.
    """
    u = roundings.accumulate
    scores = scores_bound(q, k, u)
    masked = scores.value + mask
    finite = np.isfinite(masked)
    highest = np.where(finite, masked, -np.inf).max(-1, keepdims=True)
    lowest = np.where(finite, masked, np.inf).min(-1, keepdims=True)
    span = np.where(np.isfinite(highest), highest - lowest, 0.0)
    blocks = np.minimum(finite.sum(-1, keepdims=True), 8 + finite.sum(-1, keepdims=True) / 8)
    rescaled = Approx(
        masked,
        scores.worst + roundings.functions.exp_argument * u * span + blocks * (2 * FUNCTION_ULPS + 1) * u,
        scores.typical + u * span / 3,
    )
    weights = softmax_bound(rescaled, roundings)
    if roundings.store > u:
        weights = weights.rounded(roundings.store, roundings.tiny)
    context = matmul(weights, Approx.given(v), u)
    sums = gamma(2 * v.shape[-2] + (2 * FUNCTION_ULPS + 1) * blocks + 4, u)
    hull = np.ptp(v, axis=-2, keepdims=True) * (1 + sums) + np.abs(v).max(-2, keepdims=True) * sums
    capped = Approx(context.value, np.minimum(context.worst, hull), np.minimum(context.typical, hull))
    return capped.rounded(roundings.output, roundings.tiny)


class Attention(Op, row="attention"):
    """Scaled dot-product attention without a mask, as the encoder uses it: `attention_bound`."""

    sensitivity_case = (
        "v",
        {"batch": 1, "n_head": 1, "n": 2, "n_kv": 5, "head_dim": 3},
        {"q": "zeros", "v": "one_hot"},
    )
    inputs = {
        "q": Input(HEADS, ("normal", "sparse", "zeros", "big")),
        "k": Input(KEYS),
        "v": Input(KEYS, ("normal", "one_hot", "constant")),
    }
    build = "adapters.attention"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)  # which graphs are built in
    intermediates_in_dtype = True
    define = staticmethod(definitions.attention)
    torch = "attention"
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}
    bound = staticmethod(attention_bound)


class AttentionInt8(Op, row="attention_int8"):
    """`Attention` of rounded numbers. Which whole number one becomes is not certain near the middle between two (`whole`), of queries, keys
    and values as of exponentials, whose own error is `exp_of_difference`'s. Sums of whole numbers are exact; behind them a sum of two
    digits, two products and a division. A mean lies among what it averages, which caps the bound.
    """

    sensitivity_case = (
        "v",
        {"batch": 1, "n_head": 1, "n": 2, "n_kv": 5, "head_dim": 3},
        {"q": "zeros", "v": "one_hot"},
    )
    devices = ("cpu",)
    inputs = {
        "q": Input(HEADS, ("normal", "sparse", "zeros")),
        "k": Input(KEYS),
        "v": Input(KEYS, ("normal", "one_hot", "constant")),
    }
    build = "adapters.attention_int8"
    dtypes = ("float32",)
    define = staticmethod(definitions.attention_int8)
    torch = "attention_int8"
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Approx:
        u = roundings.accumulate
        (q, q_unit), (k, k_unit), (v, v_unit) = map(definitions.rounded_rows, (q, k, v.swapaxes(-1, -2)))
        products = matmul(whole(q, roundings), whole(k, roundings).transposed(), 0.0)
        units = q_unit * k_unit.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores = (products * Approx.exact(units)).rounded(5 * u)
        at = scores.value.argmax(
            -1, keepdims=True
        )  # the largest is off as well, and where others round to depends on it
        top, off, typical = (
            np.take_along_axis(array, at, -1) for array in (scores.value, scores.worst, scores.typical)
        )
        below = Approx(scores.value, scores.worst + off, np.hypot(scores.typical, typical))
        shares = exp_of_difference(below, top, roundings) * Approx.exact(np.asarray(65535.0))
        weights, values = shares.rounded(u).whole(), whole(v, roundings).transposed()
        sums, total = matmul(weights, values, 0.0), weights.value.sum(-1, keepdims=True)
        off = weights.worst.sum(-1, keepdims=True)
        typical = np.sqrt((weights.typical**2).sum(-1, keepdims=True))
        mean = sums.value / total
        worst = (np.abs(sums.value) + sums.worst) / np.maximum(total - off, 1) - np.abs(mean)
        averaged = Approx(mean, worst, np.hypot(sums.typical, mean * typical) / total) * Approx.exact(
            v_unit.swapaxes(-1, -2)
        )
        rounded = values.value * v_unit.swapaxes(-1, -2)
        hull = np.ptp(rounded, axis=-2, keepdims=True) + np.abs(rounded).max(-2, keepdims=True) / 127
        capped = Approx(averaged.value, np.minimum(averaged.worst, hull), np.minimum(averaged.typical, hull))
        return capped.rounded(5 * u, SINGLE_TINY)


class AttentionBySteps(Attention, row="attention_by_steps"):
    """The same of MAX's own operations, which its compiler fuses: `portable.attention_by_steps`."""

    build = "adapters.attention_by_steps"
    dtypes = tuple(DTYPES)


class FlashAttention(Attention, row="flash_attention"):
    """The same of bfloat16 by MAX's kernel for GPUs, `portable.flash_attention`, in the heads of tiny.en."""

    inputs = {
        name: replace(spec, shape=spec.shape.replace("n_head", "6").replace("head_dim", "64"))
        for name, spec in Attention.inputs.items()
    }
    build = "adapters.flash_attention"
    dtypes = ("bfloat16",)
    devices = ("gpu",)
    sensitivity_case = ("v", {"batch": 1, "n": 2, "n_kv": 5}, {"q": "zeros", "v": "one_hot"})
    large_shape = {"batch": 1, "n": 3, "n_kv": 1500}


class MaskedAttention(Op, row="masked_attention"):
    """Self-attention under a causal mask: a prefill, or, with fewer queries than keys, tokens that follow others: `attention_bound`."""

    sensitivity_case = (
        "v",
        {"batch": 1, "n_head": 1, "n": 5, "n_kv": 5, "head_dim": 3},
        {"q": "zeros", "v": "one_hot"},
    )
    inputs = {
        "q": Input(HEADS, ("normal", "sparse", "zeros", "big")),
        "k": Input(KEYS),
        "v": Input(KEYS, ("normal", "one_hot", "constant")),
        "mask": Input("n n_kv", ("causal",), dtype="float32"),
    }
    build = "adapters.masked_attention"
    intermediates_in_dtype = True
    define = staticmethod(definitions.attention)
    torch = "attention"
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 448, "head_dim": 64}
    bound = staticmethod(attention_bound)


class CrossAttention(Attention, row="cross_attention"):
    """`Attention` of few queries: `maxwhisper.engine.ops.cross_attention`."""

    build = "adapters.cross_attention"


class Cached(Op, row="cached"):
    """What `maxwhisper.engine.ops.append_to_cache` returns, bit for bit: of its first n_kv rows the new ones are the last."""

    sensitivity_case = ("new", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "n_ctx": 5, "head_dim": 3}, {})
    inputs = {
        "cache": Input("batch n_head n_ctx head_dim", in_place=True),
        "new": Input("batch n_head n head_dim"),
        "slots": Input("batch 1 n_ctx", ("slots",), dtype="int64"),
        "mask": Input("n n_kv", ("causal",), dtype="float32"),
    }
    build = "adapters.cached"
    define = staticmethod(definitions.append_to_cache)
    torch = "cached"

    @staticmethod
    def bound(roundings: Roundings, cache: np.ndarray, new: np.ndarray, slots: np.ndarray, mask: np.ndarray) -> Approx:
        return Approx.exact(definitions.append_to_cache(cache, new, slots, mask))
