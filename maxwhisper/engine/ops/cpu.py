"""Operations from the CPU kernels in `maxwhisper/engine/kernels`.

Signatures are as in `portable`, which documents the arguments.
"""

from collections.abc import Sequence

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, TensorType, TensorValue, ops

from maxwhisper.engine.decoder_block import ACTIVATIONS, LINEARS
from maxwhisper.engine.ops.portable import (
    append_to_cache,
    apply_mask,
    as_matrix,
    attention_context,
    attention_scores,
    cached_attention,
    cross_attention,
    in_heads,
    matmul,
    merge_heads,
    read_cache,
    reshape_like,
    softmax,
    split_heads,
    token_embedding,
)

COMPUTE_TYPES = ("float32", "int8")
FUSES_DECODER_BLOCK = True

__all__ = [
    "alignment_scores",
    "append_to_cache",
    "apply_mask",
    "attention",
    "attention_context",
    "attention_int8",
    "attention_scores",
    "cached_attention",
    "conv1d",
    "cross_attention",
    "decoder_block",
    "embed",
    "gelu",
    "in_heads",
    "layer_norm",
    "linear",
    "linear_int8",
    "lm_head",
    "matmul",
    "merge_heads",
    "multiplies_float16",
    "next_token",
    "normed_lm_head",
    "read_cache",
    "softmax",
    "split_heads",
    "token_embedding",
    "top_k_tokens",
]


def multiplies_float16(weight: str) -> bool:
    """Whether the weight of this name may be float16 if activations are float32."""
    return True


def layer_norm(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Normalize the last dimension, in float32."""
    matrix = as_matrix(x)
    n, n_state = matrix.shape
    y = _layer_norm(ops.reshape(matrix, [1, n, n_state]), None, weight, bias)
    return reshape_like(x, ops.reshape(y, [n, n_state]))


def _layer_norm(x: TensorValue, rows: TensorValue | None, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Normalize rows of x [n_seq, n, n_state], all by default, in float32."""
    n_seq, n, n_state = x.shape
    result = TensorType(DType.float32, [n_seq, n if rows is None else rows.shape[0], n_state], x.device)
    wanted = ops.constant(np.zeros(0, np.int64), device=x.device) if rows is None else rows
    wide, *vectors = (ops.cast(value, DType.float32) for value in (x, weight, bias))
    return ops.custom("maxwhisper.layer_norm", x.device, [wide, wanted, *vectors], [result])[0].tensor


def gelu(x: TensorValue) -> TensorValue:
    """Compute the exact GELU, in float32."""
    rows = ops.cast(as_matrix(x), DType.float32)
    (y,) = ops.custom("maxwhisper.gelu", x.device, [rows], [rows.type])
    return reshape_like(x, y.tensor)


def linear(x: TensorValue, weight: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """Compute `x @ weight.T + bias`, summed in float32, block by block in registers."""
    bias = _zeros(x, weight) if bias is None else ops.cast(bias, DType.float32)
    return _rows("maxwhisper.linear", x, weight, bias)


def linear_int8(
    x: TensorValue, weight: TensorValue, scale: TensorValue, bias: TensorValue | None = None
) -> TensorValue:
    """Compute an int8 linear layer, with exact int32 sums.

    Activations are quantized per row, with scale max|row| / 127; weights per output channel.

    Args:
        x: float32 [..., n_in].
        weight: int8 [n_out, n_in].
        scale: the weight's dequantization scales, float32 [n_out].
        bias: float32 [n_out], or None for no bias.

    Returns:
        float32 [..., n_out].
    """
    return _rows("maxwhisper.linear_int8", x, weight, scale, _zeros(x, weight) if bias is None else bias)


def lm_head(x: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
    """Compute `x @ weight.T` for few rows of x, when reading the weight takes most of the time.

    Args:
        x: [n, n_state].
        weight: [n_vocab, n_state] of any dtype, widened in registers.
        scale: dequantization scales of an int8 weight, float32 [n_vocab].

    Returns:
        [n, n_vocab] of x's dtype, summed in float32.
    """
    if scale is None:
        return _rows("maxwhisper.skinny_linear", x, weight)
    return _rows("maxwhisper.skinny_linear_int8", x, weight, scale)


def normed_lm_head(
    x: TensorValue,
    rows: TensorValue,
    ln_weight: TensorValue,
    ln_bias: TensorValue,
    weight: TensorValue,
    scale: TensorValue | None = None,
) -> tuple[TensorValue, TensorValue]:
    """Compute the last layer norm and the logits of some tokens of each sequence."""
    normed = _layer_norm(x, rows, ln_weight, ln_bias)
    return normed, reshape_like(normed, lm_head(as_matrix(normed), weight, scale))


def _rows(kernel: str, x: TensorValue, weight: TensorValue, *others: TensorValue) -> TensorValue:
    """Call a kernel that takes x as float32 [n, n_in] and returns float32 [n, n_out]."""
    rows = ops.cast(as_matrix(x), DType.float32)
    result = TensorType(DType.float32, [rows.shape[0], weight.shape[0]], x.device)
    (y,) = ops.custom(kernel, x.device, [rows, weight, *others], [result])
    return reshape_like(x, y.tensor)


def _zeros(x: TensorValue, weight: TensorValue) -> TensorValue:
    """Return a bias of zeros."""
    return ops.broadcast_to(ops.constant(0, DType.float32, device=x.device), [weight.shape[0]])


def conv1d(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
    """Cross-correlate along time with one zero of padding at each end."""
    batch, n_frames, _ = x.shape
    result = TensorType(DType.float32, [batch, (n_frames + (stride - 1)) // stride, weight.shape[0]], x.device)
    values = [ops.cast(value, DType.float32) for value in (x, weight, bias)]
    (y,) = ops.custom("maxwhisper.conv1d", x.device, values, [result], parameters={"stride": stride})
    return ops.cast(y.tensor, x.dtype)


def attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Compute scaled dot-product attention without a mask, in float32."""
    (context,) = ops.custom("maxwhisper.attention", q.device, [q, k, v], [q.type])
    return context.tensor


def alignment_scores(queries: Sequence[TensorValue], keys: Sequence[TensorValue], heads: TensorValue) -> TensorValue:
    """Compute the scores of some cross-attention heads, without a copy of the keys."""
    n_audio, _, n_audio_ctx, _ = keys[0].shape
    result = TensorType(DType.float32, [n_audio, heads.shape[0], queries[0].shape[1], n_audio_ctx], heads.device)
    values = [ops.concat(list(queries), axis=2), heads, *keys]
    return ops.custom("maxwhisper.alignment_scores", heads.device, values, [result])[0].tensor


def attention_int8(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Compute `attention` of quantized inputs, with exact integer sums.

    Queries and keys are quantized to 8 bits per row, values to 8 bits per column, and the
    exponentials of the softmax to 16 bits.
    """
    (context,) = ops.custom("maxwhisper.attention_int8", q.device, [q, k, v], [q.type])
    return context.tensor


def embed(
    tokens: TensorValue,
    positions: TensorValue,
    weight: TensorValue,
    positional: TensorValue,
    scale: TensorValue | None = None,
    dtype: DType = DType.float32,
) -> tuple[TensorValue, TensorValue]:
    """Embed tokens at their positions, in one kernel; dtype must be float32."""
    n_audio, n_group, n = tokens.shape
    result = TensorType(dtype, [n_audio * n_group, n, weight.shape[1]], tokens.device)
    rows = ops.reshape(tokens, [n_audio * n_group, n])
    no_scale = ops.constant(np.zeros(0, np.float32), device=tokens.device)
    values = [rows, positions, weight, positional, no_scale if scale is None else scale]
    embedding, x = ops.custom("maxwhisper.embed", tokens.device, values, [result, result])
    return embedding.tensor, x.tensor


def decoder_block(
    x: TensorValue,
    self_kv: Sequence[BufferValue],
    page_table: TensorValue,
    positions: TensorValue,
    cross_kv: Sequence[TensorValue],
    matrices: Sequence[TensorValue],
    vectors: Sequence[TensorValue],
) -> list[TensorValue]:
    """Compute a whole decoder block in one kernel.

    Args:
        x: float32 [n_audio * n_group, n, n_state].
        self_kv: the caches of keys and of values, as in `portable.cached_attention`.
        page_table: as in `portable.cached_attention`.
        positions: as in `portable.cached_attention`.
        cross_kv: keys and values of the audio, as in `portable.cross_attention`.
        matrices: [n_out, n_in] of one dtype, in the order of `decoder_block.LINEARS`.
        vectors: float32, in the order of `decoder_block.VECTORS`. If the matrices are int8, their
            dequantization scales [n_out] follow.

    Returns:
        The block's activations, in the order of `decoder_block.ACTIVATIONS`.
    """
    n_out = {"n_state": x.shape[2], "n_mlp": matrices[list(LINEARS).index("mlp.0")].shape[0]}
    types = [TensorType(x.dtype, [*x.shape[:-1], n_out[width]], x.device) for width in ACTIVATIONS.values()]
    values = [x, *self_kv, page_table, positions, *cross_kv, *matrices, *vectors]
    return [value.tensor for value in ops.inplace_custom("maxwhisper.decoder_block", x.device, values, types)]


def next_token(
    logits: TensorValue,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
    n_tokens: TensorValue,
) -> tuple[TensorValue, TensorValue]:
    """Append to each sequence the allowed token of the highest logit, in one kernel."""
    types = [TensorType(DType.int64, [n], logits.device) for n in (logits.shape[0], 1)]
    values = [logits, tokens, sum_logprobs, mask, rules, n_tokens]
    chosen, n_unfinished = ops.inplace_custom("maxwhisper.next_token", logits.device, values, types)
    return chosen.tensor, n_unfinished.tensor


def top_k_tokens(logits: TensorValue, tokens: TensorValue, mask: TensorValue, rules: TensorValue) -> list[TensorValue]:
    """Find the k = n_group + 1 allowed tokens of the highest logits of each sequence.

    Args:
        logits: as in `portable.next_token`.
        tokens: all so far, int64 [n_audio, n_group, n].
        mask: as in `portable.next_token`.
        rules: as in `portable.next_token`.

    Returns:
        The tokens, int64 [n_seq, k], the highest logit first, and their log-probabilities, float32
        [n_seq, k]. If fewer tokens are allowed, forbidden ones follow, with -inf.
    """
    shape = [logits.shape[0], tokens.shape[1] + 1]
    types = [TensorType(dtype, shape, logits.device) for dtype in (DType.int64, DType.float32)]
    values = [logits, tokens, mask, rules]
    return [value.tensor for value in ops.custom("maxwhisper.top_k_tokens", logits.device, values, types)]
