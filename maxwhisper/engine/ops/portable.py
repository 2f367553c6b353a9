"""Operations from MAX's own operations and from small kernels that run on any device.

Each function builds one operation from graph values, independently of any model and its weights'
names. Shapes may be symbolic. In shapes, `...` stands for any leading dimensions.
"""

import math
from collections.abc import Sequence

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, StaticDim, TensorType, TensorValue, ops

LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which OpenAI Whisper uses
COMPUTE_TYPES = ("float32", "float16", "bfloat16")
FUSES_DECODER_BLOCK = False


def multiplies_float16(weight: str) -> bool:
    """Whether the weight of this name may be float16 if activations are float32.

    `linear` would widen it at each call.
    """
    return False


def layer_norm(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Normalize the last dimension: `(x - mean) / sqrt(variance + 1e-5) * weight + bias`.

    Layer normalization of Ba et al. (2016). The variance is biased, as in
    `torch.nn.functional.layer_norm`. Half precision is widened to float32, because MAX 26.7 rounds
    epsilon to x's dtype: `tests/test_max_defects.py`, `layer_norm_rounds_epsilon`.

    Args:
        x: [..., n_state].
        weight: [n_state].
        bias: [n_state].
    """
    wide = (ops.cast(value, DType.float32) for value in (x, weight, bias))
    return ops.cast(ops.layer_norm(*wide, LAYER_NORM_EPSILON), x.dtype)


def linear(x: TensorValue, weight: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """Compute `x @ weight.T + bias`, as `torch.nn.functional.linear`, summed in float32.

    Args:
        x: [..., n_in].
        weight: [n_out, n_in] of any dtype.
        bias: [n_out] of any dtype.

    Returns:
        [..., n_out] of x's dtype.
    """
    y = matmul(as_matrix(x), ops.cast(weight, x.dtype), transposed=True)
    return reshape_like(x, y if bias is None else y + ops.cast(bias, DType.float32))


def matmul(x: TensorValue, y: TensorValue, transposed: bool = False) -> TensorValue:
    """Compute `x @ y`, or `x @ y.T`, in float32.

    On a GPU, MAX 26.7's own products round float32 to TF32 (`tests/test_max_defects.py`,
    `float32_stays_float32`), so a custom kernel is used. On the CPU MAX sums half precision in half
    precision (`batched_matmul_of_halves`), so the inputs are widened.

    Args:
        x: [..., n, n_in].
        y: [..., n_in, n_out], or [..., n_out, n_in] if transposed.
        transposed: whether to transpose y.

    Returns:
        float32 [..., n, n_out].
    """
    if x.device.is_cpu():
        x, y = ops.cast(x, DType.float32), ops.cast(y, DType.float32)
        return ops.matmul(x, ops.transpose(y, -2, -1) if transposed else y)
    *leading, n, _ = x.shape
    n_out = y.shape[-2] if transposed else y.shape[-1]
    batch = math.prod(leading, start=Dim(1))
    values = [ops.reshape(value, [batch, *value.shape[-2:]]) for value in (x, y)]
    result = TensorType(DType.float32, [batch, n, n_out], x.device)
    (product,) = ops.custom("maxwhisper.matmul", x.device, values, [result], parameters={"transposed": transposed})
    return ops.reshape(product.tensor, [*leading, n, n_out])


def as_matrix(x: TensorValue) -> TensorValue:
    """Reshape [..., n_in] to [n, n_in]."""
    *leading, n_in = x.shape
    return ops.reshape(x, [math.prod(leading, start=Dim(1)), n_in])


def reshape_like(x: TensorValue, y: TensorValue) -> TensorValue:
    """Give y [n, n_out] the leading dimensions and the dtype of x [..., n_in]."""
    return ops.reshape(ops.cast(y, x.dtype), [*x.shape[:-1], y.shape[1]])


def gelu(x: TensorValue) -> TensorValue:
    """Compute the exact GELU, `x * Phi(x)` (Hendrycks and Gimpel, 2016), in float32.

    This is not the tanh approximation.
    """
    return ops.cast(ops.gelu(ops.cast(x, DType.float32)), x.dtype)


def conv1d(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
    """Cross-correlate along time with one zero of padding at each end.

    As `torch.nn.functional.conv1d(padding=1)`. All arguments have one dtype.

    Args:
        x: [batch, n_frames, n_in], channels last, unlike in torch.
        weight: [n_out, n_in, 3], as stored.
        bias: [n_out].
        stride: in frames.

    Returns:
        [batch, ceil(n_frames / stride), n_out] of the same dtype, summed in float32.
    """
    n_frames, n_in = x.shape[1:]
    n = (n_frames + (stride - 1)) // stride
    padded = ops.pad(x, [0, 0, 1, 1, 0, 0])

    def frames_of(tap: int) -> TensorValue:
        frames = slice(TensorValue(Dim(tap)), TensorValue(n_frames + tap), stride)
        return padded[:, (frames, n), :]

    taps = ops.concat([frames_of(tap) for tap in range(3)], axis=-1)
    return linear(taps, ops.reshape(ops.permute(weight, [0, 2, 1]), [weight.shape[0], 3 * n_in]), bias)


def token_embedding(tokens: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
    """Look up the embedding of each token.

    Args:
        tokens: int64 [...].
        weight: [n_vocab, n_state].
        scale: dequantization scales of an int8 weight, float32 [n_vocab].

    Returns:
        [..., n_state] of the weight's dtype, or float32 if the weight is int8.
    """
    rows = ops.gather(weight, tokens, axis=0)
    return rows if scale is None else ops.cast(rows, scale.dtype) * ops.unsqueeze(ops.gather(scale, tokens, axis=0), -1)


def lm_head(x: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
    """Compute `x @ weight.T`, the logits of the vocabulary.

    Args:
        x: [n, n_state].
        weight: [n_vocab, n_state].
        scale: must be None; only the CPU backend has int8 weights.

    Returns:
        [n, n_vocab] of x's dtype, summed in float32.
    """
    assert scale is None
    return linear(x, weight)


def embed(
    tokens: TensorValue,
    positions: TensorValue,
    weight: TensorValue,
    positional: TensorValue,
    scale: TensorValue | None = None,
    dtype: DType = DType.float32,
) -> tuple[TensorValue, TensorValue]:
    """Embed tokens at their positions.

    Args:
        tokens: int64 [n_audio, n_group, n].
        positions: int64 [n].
        weight: the token embedding, [n_vocab, n_state].
        positional: [n_ctx, n_state].
        scale: dequantization scales of an int8 weight, float32 [n_vocab].
        dtype: of the results; `nvidia`'s are float32.

    Returns:
        The embedding of the tokens, and its sum with that of the positions, [n_audio * n_group, n,
        n_state].
    """
    n_audio, n_group, n = tokens.shape
    embedding = ops.cast(token_embedding(ops.reshape(tokens, [n_audio * n_group, n]), weight, scale), dtype)
    return embedding, embedding + ops.cast(token_embedding(positions, positional), dtype)


def embed_last(
    tokens: BufferValue, n_tokens: BufferValue, weight: TensorValue, positional: TensorValue, dtype: DType
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """Embed the last token of each sequence.

    Args:
        tokens: int64 [n_audio, n_group, n_ctx + 1], of which n_tokens are used.
        n_tokens: int64 [1].
        weight: as in `embed`.
        positional: as in `embed`.
        dtype: as in `embed`.

    Returns:
        What `embed` returns, for one token, and the token's position, int64 [1].
    """
    position = ops.buffer_load(n_tokens) - 1
    last = ops.gather(ops.buffer_load(tokens), position, axis=2)
    return *embed(last, position, weight, positional, dtype=dtype), position


def normed_lm_head(
    x: TensorValue,
    rows: TensorValue,
    ln_weight: TensorValue,
    ln_bias: TensorValue,
    weight: TensorValue,
    scale: TensorValue | None = None,
) -> tuple[TensorValue, TensorValue]:
    """Compute the last layer norm and the logits of some tokens of each sequence.

    Args:
        x: [n_seq, n, n_state].
        rows: int64 [n_rows], less than n: the tokens whose logits are wanted.
        ln_weight: float32 [n_state].
        ln_bias: float32 [n_state].
        weight: [n_vocab, n_state].
        scale: dequantization scales of an int8 weight, float32 [n_vocab].

    Returns:
        The normalized activations [n_seq, n_rows, n_state] and the logits [n_seq, n_rows, n_vocab],
        both of x's dtype.
    """
    normed = layer_norm(pick_rows(x, rows), ln_weight, ln_bias)
    return normed, reshape_like(normed, lm_head(as_matrix(normed), weight, scale))


def pick_rows(x: TensorValue, rows: TensorValue) -> TensorValue:
    """Pick some tokens of each sequence: rows [n_rows] of x [n_seq, n, n_state]."""
    return ops.permute(token_embedding(rows, ops.permute(x, [1, 0, 2])), [1, 0, 2])


def in_heads(x: TensorValue, n_head: int) -> TensorValue:
    """Reshape [batch, n, n_state] to [batch, n, n_head, head_dim]."""
    batch, n, n_state = x.shape
    return ops.reshape(x, [batch, n, n_head, int(n_state) // n_head])


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """Permute [batch, n, n_state] to [batch, n_head, n, head_dim]."""
    return ops.permute(in_heads(x, n_head), [0, 2, 1, 3])


def merge_heads(x: TensorValue) -> TensorValue:
    """Permute [batch, n_head, n, head_dim] to [batch, n, n_state]; the inverse of `split_heads`."""
    batch, n_head, n, head_dim = x.shape
    return ops.reshape(ops.permute(x, [0, 2, 1, 3]), [batch, n, n_head * head_dim])


def attention_scores(q: TensorValue, k: TensorValue) -> TensorValue:
    """Compute `q @ k.T / sqrt(head_dim)` in float32.

    Equation 1 of Vaswani et al. (2017), before the softmax.

    Args:
        q: [batch, n_head, n, head_dim].
        k: [batch, n_head, n_kv, head_dim], converted to q's dtype.

    Returns:
        float32 [batch, n_head, n, n_kv].
    """
    return matmul(q, ops.cast(k, q.dtype), transposed=True) * _inverse_sqrt(q.shape[-1], q.device)


def alignment_scores(queries: Sequence[TensorValue], keys: Sequence[TensorValue], heads: TensorValue) -> TensorValue:
    """Compute the scores of some cross-attention heads, before the softmax.

    Args:
        queries: of each layer, [n_audio, n, n_state].
        keys: of each layer, [n_audio, n_head, n_audio_ctx, head_dim].
        heads: int64 [n_heads], layer * n_head + head for each.

    Returns:
        float32 [n_audio, n_heads, n, n_audio_ctx].
    """
    n_audio, n_head, *_ = keys[0].shape
    q = ops.concat([split_heads(query, int(n_head)) for query in queries], axis=1)
    q, k = (ops.gather(x, heads, axis=1) for x in (q, ops.concat(list(keys), axis=1)))
    return attention_scores(ops.rebind(q, [n_audio, *q.shape[1:]]), k)


def _inverse_sqrt(dim: Dim, device: DeviceRef) -> TensorValue:
    if isinstance(dim, StaticDim):
        return ops.constant(1 / math.sqrt(int(dim)), DType.float32, device=device)
    return ops.rsqrt(ops.cast(TensorValue(dim), DType.float32)).to(device)


def apply_mask(scores: TensorValue, mask: TensorValue) -> TensorValue:
    """Compute `scores + mask`.

    The mask is an argument, because MAX 26.7 miscomputes it in the graph:
    `tests/test_max_defects.py`, `where_broadcasts_a_comparison`.

    Args:
        scores: float32 [batch, n_head, n, n_kv].
        mask: float32 [n, n_kv], 0 if a query may attend to a key, otherwise -inf.
    """
    return scores + mask


def softmax(scores: TensorValue) -> TensorValue:
    """Compute `exp(x - max) / sum(exp(x - max))` over the last dimension."""
    return ops.softmax(scores)


def attention_context(weights: TensorValue, v: TensorValue) -> TensorValue:
    """Compute `weights @ v`, with the weights rounded to v's dtype.

    Args:
        weights: float32 [batch, n_head, n, n_kv].
        v: [batch, n_head, n_kv, head_dim].

    Returns:
        [batch, n_head, n, head_dim] of v's dtype, summed in float32.
    """
    return ops.cast(matmul(ops.cast(weights, v.dtype), v), v.dtype)


def attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Compute scaled dot-product attention without a mask (Vaswani et al., 2017, equation 1).

    On a GPU, bfloat16 uses flash attention. MAX 26.7 has none for float16:
    `tests/test_max_defects.py`, `flash_attention_of_float16`. All arguments have one dtype, float32
    or half precision.

    Args:
        q: [batch, n, n_head, head_dim].
        k: [batch, n_kv, n_head, head_dim].
        v: [batch, n_kv, n_head, head_dim].

    Returns:
        [batch, n, n_head, head_dim] of the same dtype.
    """
    flash = q.dtype == DType.bfloat16 and not q.device.is_cpu()
    return flash_attention(q, k, v) if flash else attention_by_steps(q, k, v)


def flash_attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Compute `attention` of bfloat16 with MAX's GPU kernel (Dao et al., 2022).

    n_head and head_dim must be static.
    """
    from max.nn.attention import MHAMaskVariant  # imported here, because max.nn takes 0.3 s to import
    from max.nn.kernels import flash_attention_gpu

    return flash_attention_gpu(q, k, v, MHAMaskVariant.NULL_MASK, 1 / math.sqrt(int(q.shape[-1])))


def attention_by_steps(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Compute `attention` as scores, softmax and context; MAX's compiler may fuse these."""
    q, k, v = (ops.permute(x, [0, 2, 1, 3]) for x in (q, k, v))
    return ops.permute(attention_context(softmax(attention_scores(q, k)), v), [0, 2, 1, 3])


def cached_attention(
    q: TensorValue,
    k: TensorValue,
    v: TensorValue,
    k_cache: BufferValue,
    v_cache: BufferValue,
    page_table: TensorValue,
    positions: TensorValue,
) -> TensorValue:
    """Append new keys and values to the cache in place, and attend causally to all cached ones.

    All arrays but the page table and positions have one dtype. n_seq is n_audio * n_group.

    Args:
        q: of the new tokens, [n_seq, n, n_state].
        k: of the new tokens, [n_seq, n, n_state].
        v: of the new tokens, [n_seq, n, n_state].
        k_cache: [n_pages, n_head, n_ctx, head_dim]. Positions that are not cached yet are masked,
            but their values must be finite.
        v_cache: as k_cache.
        page_table: the page of each position of a sequence, int64 [n_audio, n_group, n_ctx].
            Sequences with a common prefix share its pages.
        positions: of the new tokens, int64 [n], consecutive, less than n_ctx.

    Returns:
        [n_seq, n, n_state].
    """
    _, n_head, n_ctx, head_dim = k_cache.shape

    def split(x: TensorValue) -> TensorValue:
        return _split_symbolic_heads(x, n_head, head_dim)

    causal = np.triu(np.full((int(n_ctx), int(n_ctx)), -np.inf, np.float32), 1)
    mask = ops.gather(ops.constant(causal, device=q.device), positions, axis=0)
    weights = softmax(
        apply_mask(attention_scores(split(q), append_to_cache(k_cache, split(k), page_table, positions)), mask)
    )
    return merge_heads(attention_context(weights, append_to_cache(v_cache, split(v), page_table, positions)))


def append_to_cache(
    cache: BufferValue, new: TensorValue, page_table: TensorValue, positions: TensorValue
) -> TensorValue:
    """Write new keys, or values, at their positions in place, and return those of all positions.

    Args:
        cache: as in `cached_attention`.
        new: [n_seq, n_head, n, head_dim].
        page_table: as in `cached_attention`.
        positions: as in `cached_attention`.

    Returns:
        [n_seq, n_head, n_ctx, head_dim].
    """
    ops.inplace_custom("maxwhisper.append_to_cache", cache.device, [cache, new, positions, page_table])
    return read_cache(cache, page_table)


def read_cache(cache: BufferValue, page_table: TensorValue) -> TensorValue:
    """Gather the keys, or values, of all positions as [n_seq, n_head, n_ctx, head_dim]."""
    n_audio, n_group, n_ctx = page_table.shape
    all_positions = TensorType(cache.dtype, [n_audio * n_group, cache.shape[1], n_ctx, cache.shape[3]], cache.device)
    values = [ops.buffer_load(cache), page_table]
    return ops.custom("maxwhisper.read_cache", cache.device, values, [all_positions])[0].tensor


def cross_attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Attend to all of the audio: `attention_context(softmax(attention_scores(q, k)), v)`.

    All arguments have one dtype.

    Args:
        q: [n_audio, n, n_state].
        k: [n_audio, n_head, n_kv, head_dim].
        v: [n_audio, n_head, n_kv, head_dim].

    Returns:
        [n_audio, n, n_state], with heads merged.
    """
    _, n_head, _, head_dim = k.shape
    return merge_heads(attention_context(softmax(attention_scores(_split_symbolic_heads(q, n_head, head_dim), k)), v))


def _split_symbolic_heads(x: TensorValue, n_head: Dim, head_dim: Dim) -> TensorValue:
    """Do what `split_heads` does, for sizes that may be symbolic."""
    batch, n, _ = x.shape
    return ops.permute(ops.reshape(x, [batch, n, n_head, head_dim]), [0, 2, 1, 3])


def next_token(
    logits: TensorValue,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
    n_tokens: TensorValue,
) -> tuple[TensorValue, TensorValue]:
    """Append to each sequence the token of the highest logit that the rules allow.

    The rules are the filters of `maxwhisper.decoding.rules` after the first sampled token. The
    choice is that of `GreedyDecoder` at temperature 0.

    Args:
        logits: float32 [n_seq, n_vocab].
        tokens: int64 [n_audio, n_group, n_ctx + 1], written in place at index n_tokens.
        sum_logprobs: float64 [n_audio, n_group]; log-probabilities are added in place.
        mask: float32 [n_vocab], -inf for tokens that are never allowed, otherwise 0.
        rules: int64 [3]: the number of tokens that were not sampled, the end token, and the first
            timestamp token (n_vocab if there are none).
        n_tokens: the number of tokens so far, int64 [1].

    Returns:
        The tokens, int64 [n_seq], and the number of those that are not the end token, int64 [1].
    """
    device, (n_seq, n_vocab) = logits.device, logits.shape
    # The lowest allowed text token, and the lowest allowed timestamp token.
    first_type = TensorType(DType.int64, [2, n_seq], device)
    (first,) = ops.custom(
        "maxwhisper.first_allowed", device, [logits, ops.buffer_load(tokens), rules, n_tokens], [first_type]
    )
    # Logits of text and of timestamps; the lowest finite float for tokens that are not allowed.
    kinds_type = TensorType(DType.float32, [2, n_seq, n_vocab], device)
    (kinds,) = ops.custom("maxwhisper.allowed_logits", device, [logits, mask, rules, first.tensor], [kinds_type])
    best = ops.argmax(kinds.tensor)
    top = ops.max(kinds.tensor)
    total = ops.sum(ops.exp(kinds.tensor - top))
    types = [TensorType(DType.int64, [n_seq], device), TensorType(DType.int64, [1], device)]
    values = [logits, tokens, sum_logprobs, rules, n_tokens, best, top, total]
    chosen, n_unfinished = ops.inplace_custom("maxwhisper.choose_token", device, values, types)
    return chosen.tensor, n_unfinished.tensor


def append_token(
    logits: TensorValue,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    n_tokens: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
) -> TensorValue:
    """Append to each sequence the token of the highest logit, as `next_token`, and count it.

    Args:
        logits: as in `next_token`, and so all others but n_tokens.
        tokens: written in place.
        sum_logprobs: written in place.
        n_tokens: the number of tokens so far, int64 [1], incremented in place.
        mask: which tokens are never allowed.
        rules: the special tokens.

    Returns:
        The number of sequences that have not ended, int64 [1].
    """
    n = ops.buffer_load(n_tokens)
    _, n_unfinished = next_token(logits, tokens, sum_logprobs, mask, rules, n)
    ops.buffer_store(n_tokens, n + 1)
    return n_unfinished
