"""Rows: attention, fused and by steps, the causal mask, and the KV cache."""

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
    quantized,
)
from reference.numerics.dtypes import DTYPES
from reference.ops.row import FACTORS, SUMMANDS, Input, Op


def softmax_bound(scores: Approx, roundings: Roundings) -> Approx:
    """Bound exp(s - max) / Σ exp(s - max).

    The argument has the rounding u |s - max|, the exponential the function's own. Then follow a sum
    of n terms and a division.
    """
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
    nan = np.full_like(value, np.nan)
    return Approx(np.where(has_any, result.value, nan), np.minimum(result.worst, 1.0), np.minimum(result.typical, 1.0))


class Softmax(Op, row="softmax"):
    """exp(x - max) / Σ exp(x - max), bounded by `softmax_bound`.

    A row that contains only -inf gives NaN, as in PyTorch.
    """

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
    """Bound q @ k.T / √head_dim.

    The scale is the result of a function. Its product with q is rounded, and the sum is within γ_n.
    """
    scale = 1 / np.sqrt(q.shape[-1])
    scaled = (
        Approx.from_input(q)
        * Approx(np.asarray(scale), np.asarray(2 * FUNCTION_ULPS * u * scale), np.asarray(u * scale))
    ).rounded(u, SINGLE_TINY)
    return matmul(scaled, Approx.from_input(k.swapaxes(-1, -2)), u)


class AttentionScores(Op, row="attention_scores"):
    """q @ k.T / √head_dim in float32, bounded by `scores_bound`."""

    sensitivity_case = ("q", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "head_dim": 4}, {"q": "one_hot"})
    inputs = {"q": Input(HEADS, SUMMANDS), "k": Input(KEYS, FACTORS)}
    build = "ops.attention_scores"
    define = staticmethod(definitions.attention_scores)
    torch = "attention_scores"
    # Scores alone are computed only on request, by graphs in float32. `Attention` tests half
    # precision.
    dtypes = ("float32",)
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, q: np.ndarray, k: np.ndarray, mask: np.ndarray | float = 0.0) -> Approx:
        scores = scores_bound(q, k, roundings.accumulate)
        return Approx(scores.value + mask, scores.worst, scores.typical)


class CausalMask(Op, row="causal_mask"):
    """scores + mask, with a mask of 0 and -inf. Nothing is rounded."""

    sensitivity_case = ("scores", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3}, {})
    inputs = {"scores": Input("batch n_head n n_kv", ("normal", "large", "tiny")), "mask": Input("n n_kv", ("causal",))}
    build = "ops.apply_mask"
    define = staticmethod(lambda scores, mask: scores + mask)
    torch = "causal_mask"
    dtypes = ("float32",)  # scores are float32 in every precision

    @staticmethod
    def bound(roundings: Roundings, scores: np.ndarray, mask: np.ndarray) -> Approx:
        return Approx.from_input(scores + mask)


class AttentionContext(Op, row="attention_context"):
    """weights @ v, summed in float32. The bound is γ_n |weights| |v|."""

    sensitivity_case = ("v", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 1, "head_dim": 3}, {"weights": "one_hot"})
    inputs = {"weights": Input("batch n_head n n_kv", ("weights", "one_hot", "integers")), "v": Input(KEYS, FACTORS)}
    build = "ops.attention_context"
    define = staticmethod(np.matmul)
    torch = "attention_context"
    dtypes = ("float32",)  # see `AttentionScores`
    exact_sums = True
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}

    @staticmethod
    def bound(roundings: Roundings, weights: np.ndarray, v: np.ndarray) -> Approx:
        product = matmul(Approx.from_input(weights), Approx.from_input(v), roundings.accumulate)
        return product.rounded(roundings.output, roundings.tiny)


def attention_bound(
    roundings: Roundings, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0
) -> Approx:
    """Bound softmax(scores) @ v, computed at once or by blocks.

    By blocks (Dao et al., *FlashAttention*, 2022), the weights of earlier blocks are rescaled by
    exp(m - m') whenever a later block raises the maximum. The arguments of these factors add up to
    at most the range of the row's scores, so their roundings add u (range) to the exponent. Each
    factor also adds `FUNCTION_ULPS` and a product. There is one factor for each block of 8 or more
    keys, or for each key if there are few.

    A mean lies between the values that it averages, which caps the bound. The cap is the hull of v,
    plus the roundings of both sums (of weights and of weighted values) and of the factors.

    Weights are rounded to v's dtype either after the division by their sum or before, as e^(s - m).
    The relative error is the same.
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
    context = matmul(weights, Approx.from_input(v), u)
    sums = gamma(2 * v.shape[-2] + (2 * FUNCTION_ULPS + 1) * blocks + 4, u)
    hull = np.ptp(v, axis=-2, keepdims=True) * (1 + sums) + np.abs(v).max(-2, keepdims=True) * sums
    capped = Approx(context.value, np.minimum(context.worst, hull), np.minimum(context.typical, hull))
    return capped.rounded(roundings.output, roundings.tiny)


class Attention(Op, row="attention"):
    """Scaled dot-product attention without a mask, as in the encoder.

    It is bounded by `attention_bound`.
    """

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
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)  # the dtype of graphs
    intermediates_in_dtype = True
    define = staticmethod(definitions.attention)
    torch = "attention"
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 1500, "head_dim": 64}
    bound = staticmethod(attention_bound)


class AttentionInt8(Op, row="attention_int8"):
    """`Attention` with quantized operands.

    Near the middle between two integers a number may be quantized to either of them (`quantized`).
    This applies to queries, keys and values, and to exponentials, whose own error is
    `exp_of_difference`'s. Sums of integers are exact. After them: the sum of the two digits of
    16-bit exponentials, two products and a division.

    A mean lies between the values that it averages, which caps the bound.
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
        (q, q_scale), (k, k_scale), (v, v_scale) = map(definitions.scaled_rows, (q, k, v.swapaxes(-1, -2)))
        products = matmul(quantized(q, roundings), quantized(k, roundings).transposed(), 0.0)
        scales = q_scale * k_scale.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores = (products * Approx.exact(scales)).rounded(5 * u)
        # The largest score has an error, too, and all exponentials depend on it.
        index = scores.value.argmax(-1, keepdims=True)
        top, error, typical = (
            np.take_along_axis(array, index, -1) for array in (scores.value, scores.worst, scores.typical)
        )
        below = Approx(scores.value, scores.worst + error, np.hypot(scores.typical, typical))
        shares = exp_of_difference(below, top, roundings) * Approx.exact(np.asarray(65535.0))
        weights, values = shares.rounded(u).rounded_to_integers(), quantized(v, roundings).transposed()
        sums, total = matmul(weights, values, 0.0), weights.value.sum(-1, keepdims=True)
        error = weights.worst.sum(-1, keepdims=True)
        typical = np.sqrt((weights.typical**2).sum(-1, keepdims=True))
        mean = sums.value / total
        worst = (np.abs(sums.value) + sums.worst) / np.maximum(total - error, 1) - np.abs(mean)
        averaged = Approx(mean, worst, np.hypot(sums.typical, mean * typical) / total) * Approx.exact(
            v_scale.swapaxes(-1, -2)
        )
        rounded = values.value * v_scale.swapaxes(-1, -2)
        hull = np.ptp(rounded, axis=-2, keepdims=True) + np.abs(rounded).max(-2, keepdims=True) / 127
        capped = Approx(averaged.value, np.minimum(averaged.worst, hull), np.minimum(averaged.typical, hull))
        return capped.rounded(5 * u, SINGLE_TINY)


class AttentionBySteps(Attention, row="attention_by_steps"):
    """`Attention` built from MAX's own operations, which its compiler fuses.

    See `portable.attention_by_steps`.
    """

    build = "adapters.attention_by_steps"
    dtypes = tuple(DTYPES)


class FlashAttention(Attention, row="flash_attention"):
    """`Attention` in bfloat16 by MAX's GPU kernel, with the heads of tiny.en.

    See `portable.flash_attention`.
    """

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
    """Self-attention under a causal mask, bounded by `attention_bound`.

    It is a prefill. If there are fewer queries than keys, the new tokens follow earlier ones.
    """

    sensitivity_case = (
        "v",
        {"batch": 1, "n_head": 1, "n": 5, "n_kv": 5, "head_dim": 3},
        {"q": "zeros", "v": "one_hot"},
    )
    inputs = {**Attention.inputs, "mask": Input("n n_kv", ("causal",), dtype="float32")}
    build = "adapters.masked_attention"
    intermediates_in_dtype = True
    define = staticmethod(definitions.attention)
    torch = "attention"
    large_shape = {"batch": 1, "n_head": 1, "n": 3, "n_kv": 448, "head_dim": 64}
    bound = staticmethod(attention_bound)


class CrossAttention(Attention, row="cross_attention"):
    """`Attention` with few queries, `maxwhisper.engine.ops.cross_attention`."""

    build = "adapters.cross_attention"


class Cached(Op, row="cached"):
    """The result of `maxwhisper.engine.ops.append_to_cache`, bit for bit.

    Of its first n_kv rows, the last ones are the new ones.
    """

    sensitivity_case = ("new", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "n_ctx": 5, "head_dim": 3}, {})
    inputs = {
        "cache": Input("batch n_head n_ctx head_dim", in_place=True),
        "new": Input("batch n_head n head_dim"),
        "slots": Input("batch 1 n_ctx", ("slots",), dtype="int64"),  # the page table
        "mask": Input("n n_kv", ("causal",), dtype="float32"),
    }
    build = "adapters.cached"
    define = staticmethod(definitions.append_to_cache)
    torch = "cached"

    @staticmethod
    def bound(
        roundings: Roundings, cache: np.ndarray, new: np.ndarray, page_table: np.ndarray, mask: np.ndarray
    ) -> Approx:
        return Approx.exact(definitions.append_to_cache(cache, new, page_table, mask))
