"""The operations Whisper is made of, on MAX Graph.

Each function builds one operation from graph values and knows nothing of weights' names or of the model around it.
Shapes may be symbolic; `...` stands for any leading dimensions.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, KernelLibrary, StaticDim, TensorType, TensorValue, ops

LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which OpenAI Whisper uses


@functools.cache
def kernels() -> list[Path]:
    """Our kernels, in Mojo, which whoever builds or loads a graph gives as its `custom_extensions`. Made ready once: it takes seconds."""
    library = KernelLibrary()
    library.load_paths([Path(__file__).parent / "kernels"])
    return library.library_paths()


def has_kernels(device: DeviceRef) -> bool:
    """Whether kernels of ours do whole layers there; elsewhere MAX's operations do, and few small kernels that run anywhere."""
    return device.is_cpu()


def layer_norm(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Normalise the last dimension: `(x - mean) / sqrt(variance + 1e-5) * weight + bias` (Ba et al., 2016).

    x [..., n_state]; weight, bias [n_state]. The variance is the biased one, as in `torch.nn.functional.layer_norm`.
    Halves are widened because MAX 26.7 rounds epsilon to their dtype: `tests/test_max_defects.py`, `layer_norm_rounds_epsilon`.
    """
    wide = (ops.cast(value, DType.float32) for value in (x, weight, bias))
    return ops.cast(ops.layer_norm(*wide, LAYER_NORM_EPSILON), x.dtype)


def linear(x: TensorValue, weight: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """`x @ weight.T + bias`, as `torch.nn.functional.linear`, summed in float32.

    x [..., n_in]; weight [n_out, n_in] and bias [n_out] of any dtype; returns [..., n_out] in x's.
    """
    if not has_kernels(x.device):
        y = matmul(_flat(x), ops.cast(weight, x.dtype), transposed=True)
        return _as_before(y if bias is None else y + ops.cast(bias, DType.float32), x)
    if bias is None:
        bias = _zeros(x, weight)
    (y,) = ops.custom("maxwhisper.linear", x.device, [_rows(x), weight, ops.cast(bias, DType.float32)], _row_types(x, weight))
    return _as_before(y.tensor, x)


def matmul(x: TensorValue, y: TensorValue, transposed: bool = False) -> TensorValue:
    """`x @ y`, or `x @ y.T`, summed in float32, which is the result's dtype. x [..., n, n_in]; y [..., n_in, n_out] or [..., n_out, n_in].

    On a GPU MAX 26.7's own products, and what it fuses around them, round float32 to TF32: `tests/test_max_defects.py`,
    `float32_stays_float32`. On the CPU it adds halves up in half precision, `batched_matmul_of_halves`, so they are widened.
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


def linear_int8(x: TensorValue, weight: TensorValue, scale: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """`linear` of rounded numbers, for the CPU: each row of x is divided by its largest number's 127th part and rounded to 8 bits, as the
    weights have been; products are added up exactly.

    x float32 [..., n_in]; weight int8 [n_out, n_in]; scale float32 [n_out], what each weight counts; bias float32 [n_out].
    """
    values = [_rows(x), weight, scale, _zeros(x, weight) if bias is None else bias]
    (y,) = ops.custom("maxwhisper.linear_int8", x.device, values, _row_types(x, weight))
    return _as_before(y.tensor, x)


def few_rows(x: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
    """`linear` without a bias for few rows, where reading the weights takes most of the time: they are widened in registers.

    x [..., n_in]; weight [n_out, n_in] of any dtype; scale float32 [n_out], what each weight counts where they are whole numbers. Summed in
    float32; returns [..., n_out] in x's dtype.
    """
    if not has_kernels(x.device):
        return linear(x, weight)
    if scale is None:
        (y,) = ops.custom("maxwhisper.few_rows", x.device, [_rows(x), weight], _row_types(x, weight))
    else:
        (y,) = ops.custom("maxwhisper.few_rows_scaled", x.device, [_rows(x), weight, scale], _row_types(x, weight))
    return _as_before(y.tensor, x)


def _zeros(x: TensorValue, weight: TensorValue) -> TensorValue:
    """In place of a bias."""
    return ops.broadcast_to(ops.constant(0, DType.float32, device=x.device), [weight.shape[0]])


def _rows(x: TensorValue) -> TensorValue:
    """As our kernels take it: [..., n_in] to float32 [n, n_in]."""
    return ops.cast(_flat(x), DType.float32)


def _flat(x: TensorValue) -> TensorValue:
    """[..., n_in] to [n, n_in]."""
    *leading, n_in = x.shape
    return ops.reshape(x, [math.prod(leading, start=Dim(1)), n_in])


def _row_types(x: TensorValue, *weights: TensorValue) -> list[TensorType]:
    n = math.prod(x.shape[:-1], start=Dim(1))
    return [TensorType(DType.float32, [n, weight.shape[0]], x.device) for weight in weights]


def _as_before(y: TensorValue, x: TensorValue) -> TensorValue:
    """y [n, n_out] with x's leading dimensions and dtype."""
    return ops.reshape(ops.cast(y, x.dtype), [*x.shape[:-1], y.shape[1]])


def gelu(x: TensorValue) -> TensorValue:
    """The exact GELU, `x * Phi(x)` with the normal distribution's Phi (Hendrycks and Gimpel, 2016), in float32; not the tanh form."""
    return ops.cast(ops.gelu(ops.cast(x, DType.float32)), x.dtype)


def conv1d(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
    """Cross-correlate along time with one zero of padding on either side, as `torch.nn.functional.conv1d(padding=1)`.

    x [batch, n_frames, n_in] (channels last, unlike torch); weight [n_out, n_in, 3] as stored; bias [n_out]; all of one dtype, which is
    also the result's. Returns [batch, ceil(n_frames / stride), n_out], summed in float32.
    """
    batch, n_frames, n_in = x.shape
    n = (n_frames + (stride - 1)) // stride
    if has_kernels(x.device):
        y_type = TensorType(DType.float32, [batch, n, weight.shape[0]], x.device)
        values = [ops.cast(value, DType.float32) for value in (x, weight, bias)]
        (y,) = ops.custom("maxwhisper.conv1d", x.device, values, [y_type], parameters={"stride": stride})
        return ops.cast(y.tensor, x.dtype)
    padded = ops.pad(x, [0, 0, 1, 1, 0, 0])

    def seen_by(tap: int) -> TensorValue:
        frames = slice(TensorValue(Dim(tap)), TensorValue(n_frames + tap), stride)
        return padded[:, (frames, n), :]

    taps = ops.concat([seen_by(tap) for tap in range(3)], axis=-1)
    return linear(taps, ops.reshape(ops.permute(weight, [0, 2, 1]), [weight.shape[0], 3 * n_in]), bias)


def token_embedding(tokens: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
    """Look up each token's row. tokens int64 [...]; weight [n_vocab, n_state]. Returns [..., n_state].

    scale float32 [n_vocab]: what each weight counts where they are whole numbers; the result is float32 then.
    """
    rows = ops.gather(weight, tokens, axis=0)
    return rows if scale is None else ops.cast(rows, scale.dtype) * ops.unsqueeze(ops.gather(scale, tokens, axis=0), -1)


def lm_head(x: TensorValue, weight: TensorValue, scale: TensorValue | None = None) -> TensorValue:
    """`x @ weight.T`: how well each token of the vocabulary fits. x [n, n_state]; weight [n_vocab, n_state]. Returns [n, n_vocab].

    The step's dearest operation, for a row reads the whole embedding. scale as in `few_rows`.
    """
    return few_rows(x, weight, scale)


def in_heads(x: TensorValue, n_head: int) -> TensorValue:
    """[batch, n, n_state] to [batch, n, n_head, head_dim]."""
    batch, n, n_state = x.shape
    return ops.reshape(x, [batch, n, n_head, int(n_state) // n_head])


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """[batch, n, n_state] to [batch, n_head, n, head_dim]."""
    return ops.permute(in_heads(x, n_head), [0, 2, 1, 3])


def merge_heads(x: TensorValue) -> TensorValue:
    """[batch, n_head, n, head_dim] to [batch, n, n_state]; the inverse of `split_heads`."""
    batch, n_head, n, head_dim = x.shape
    return ops.reshape(ops.permute(x, [0, 2, 1, 3]), [batch, n, n_head * head_dim])


def attention_scores(q: TensorValue, k: TensorValue) -> TensorValue:
    """`q @ k.T / sqrt(head_dim)` (Vaswani et al., 2017, equation 1), in float32.

    q [batch, n_head, n, head_dim]; k [batch, n_head, n_kv, head_dim]. Returns [batch, n_head, n, n_kv].
    """
    return matmul(q, k, transposed=True) * _inverse_sqrt(q.shape[-1], q.device)


def _inverse_sqrt(dim: Dim, device: DeviceRef) -> TensorValue:
    if isinstance(dim, StaticDim):
        return ops.constant(1 / math.sqrt(int(dim)), DType.float32, device=device)
    return ops.rsqrt(ops.cast(TensorValue(dim), DType.float32)).to(device)


def apply_mask(scores: TensorValue, mask: TensorValue) -> TensorValue:
    """`scores + mask`: 0 where a query may see a key, -inf where not. scores [batch, n_head, n, n_kv]; mask [n, n_kv]; both float32.

    The mask comes from outside because MAX 26.7 gets it wrong inside: `tests/test_max_defects.py`, `where_broadcasts_a_comparison`.
    """
    return scores + mask


def softmax(scores: TensorValue) -> TensorValue:
    """`exp(x - max) / sum(exp(x - max))` over the last dimension."""
    return ops.softmax(scores)


def attention_context(weights: TensorValue, v: TensorValue) -> TensorValue:
    """`weights @ v`, of weights rounded to v's dtype. weights float32 [batch, n_head, n, n_kv]; v [batch, n_head, n_kv, head_dim].

    Returns [batch, n_head, n, head_dim].
    """
    return ops.cast(matmul(ops.cast(weights, v.dtype), v), v.dtype)


def attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Scaled dot-product attention of all to all. q [batch, n, n_head, head_dim]; k, v [batch, n_kv, n_head, head_dim]; all of one dtype:
    float32, or halves. Of bfloat16 a GPU makes one flash attention (Dao et al., 2022); of float16 MAX 26.7 can't:
    `tests/test_max_defects.py`, `flash_attention_of_float16`.

    Returns [batch, n, n_head, head_dim].
    """
    if not has_kernels(q.device):
        flash = q.dtype == DType.bfloat16 and not q.device.is_cpu()
        return flash_attention(q, k, v) if flash else attention_by_steps(q, k, v)
    (context,) = ops.custom("maxwhisper.attention", q.device, [q, k, v], [q.type])
    return context.tensor


def attention_int8(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """`attention` of rounded numbers, for the CPU: queries and keys to 8 bits, each by a scale of its own, and values to 8, each column by
    one; exponentials to 16; products are added up exactly.
    """
    (context,) = ops.custom("maxwhisper.attention_int8", q.device, [q, k, v], [q.type])
    return context.tensor


def flash_attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """`attention` of bfloat16 by MAX's kernel for GPUs; n_head and head_dim must be numbers."""
    from max.nn.attention import MHAMaskVariant  # only here: all of max.nn takes 0.3 s
    from max.nn.kernels import flash_attention_gpu

    return flash_attention_gpu(q, k, v, MHAMaskVariant.NULL_MASK, 1 / math.sqrt(int(q.shape[-1])))


def attention_by_steps(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """`attention` of MAX's operations."""
    q, k, v = (ops.permute(x, [0, 2, 1, 3]) for x in (q, k, v))
    return ops.permute(attention_context(softmax(attention_scores(q, k)), v), [0, 2, 1, 3])


def cached_attention(
    q: TensorValue,
    k: TensorValue,
    v: TensorValue,
    k_cache: BufferValue,
    v_cache: BufferValue,
    slots: TensorValue,
    positions: TensorValue,
) -> TensorValue:
    """Self-attention of the tokens at `positions`: their keys and values are written, in place, behind those of the tokens before, and each
    token sees all up to itself. What is not in the cache yet is masked: it must be finite.

    q, k, v [n_seq, n, n_state], of n_audio * n_group sequences; caches [n_slots, n_head, n_ctx, head_dim]; all of one dtype. slots int64
    [n_audio, n_group, n_ctx]: in which slot a sequence's keys and values of each position lie, or are to be written, so that sequences may
    share what they have in common. positions int64 [n], in order and without gaps, below n_ctx. Returns [n_seq, n, n_state].
    """
    _, n_head, n_ctx, head_dim = k_cache.shape

    def split(x: TensorValue) -> TensorValue:
        return _in_such_heads(x, n_head, head_dim)

    causal = np.triu(np.full((int(n_ctx), int(n_ctx)), -np.inf, np.float32), 1)
    mask = ops.gather(ops.constant(causal, device=q.device), positions, axis=0)
    weights = softmax(apply_mask(attention_scores(split(q), append_to_cache(k_cache, split(k), slots, positions)), mask))
    return merge_heads(attention_context(weights, append_to_cache(v_cache, split(v), slots, positions)))


def append_to_cache(cache: BufferValue, new: TensorValue, slots: TensorValue, positions: TensorValue) -> TensorValue:
    """Write the keys or values of the tokens at `positions`, in place, and return those of all positions.

    cache, slots, positions as in `cached_attention`; new [n_seq, n_head, n, head_dim]. Returns [n_seq, n_head, n_ctx, head_dim].
    """
    ops.inplace_custom("maxwhisper.append_to_cache", cache.device, [cache, new, positions, slots])
    return read_cache(cache, slots)


def read_cache(cache: BufferValue, slots: TensorValue) -> TensorValue:
    """The keys or values of all positions of each sequence, [n_seq, n_head, n_ctx, head_dim]; cache and slots as in `cached_attention`."""
    n_audio, n_group, n_ctx = slots.shape
    of_all = TensorType(cache.dtype, [n_audio * n_group, cache.shape[1], n_ctx, cache.shape[3]], cache.device)
    return ops.custom("maxwhisper.read_cache", cache.device, [ops.buffer_load(cache), slots], [of_all])[0].tensor


def cross_attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Attention of queries to all of their audio: `attention_context(softmax(attention_scores(q, k)), v)`, heads side by side.

    q [n_audio, n, n_state]; k, v [n_audio, n_head, n_kv, head_dim]; all of one dtype. Returns [n_audio, n, n_state].
    """
    _, n_head, _, head_dim = k.shape
    return merge_heads(attention_context(softmax(attention_scores(_in_such_heads(q, n_head, head_dim), k)), v))


def _in_such_heads(x: TensorValue, n_head: Dim, head_dim: Dim) -> TensorValue:
    """`split_heads` where sizes may be symbolic."""
    batch, n, _ = x.shape
    return ops.permute(ops.reshape(x, [batch, n, n_head, head_dim]), [0, 2, 1, 3])


def decoder_block(
    x: TensorValue,
    self_kv: Sequence[BufferValue],
    slots: TensorValue,
    positions: TensorValue,
    cross_kv: Sequence[TensorValue],
    matrices: Sequence[TensorValue],
    vectors: Sequence[TensorValue],
) -> list[TensorValue]:
    """A whole block of the decoder, for the CPU: `maxwhisper.engine.graphs` says which weights these are, and which activations come back.

    x [n_audio * n_group, n, n_state]; self_kv, slots, positions as in `cached_attention`; cross_kv as in `cross_attention`; matrices
    [n_out, n_in] of one dtype, all else float32. Where that is int8, their scales [n_out] stand behind the other vectors.
    """
    wide = TensorType(x.dtype, [*x.shape[:-1], matrices[6].shape[0]], x.device)
    types = [wide if i in (13, 14) else x.type for i in range(17)]
    values = [x, *self_kv, slots, positions, *cross_kv, *matrices, *vectors]
    return [value.tensor for value in ops.inplace_custom("maxwhisper.decoder_block", x.device, values, types)]


def next_token(
    logits: TensorValue, tokens: BufferValue, sum_logprobs: BufferValue, mask: TensorValue, rules: TensorValue, n_tokens: TensorValue
) -> tuple[TensorValue, TensorValue]:
    """Append the likeliest token that may follow to each sequence: as the filters of `maxwhisper.decoding` behind the first sampled token,
    and its `GreedyDecoder` at temperature 0.

    logits float32 [n_seq, n_vocab]; tokens int64 [n_audio, n_group, n_ctx + 1], written at n_tokens int64 [1]; sum_logprobs float64
    [n_audio, n_group], added to; mask float32 [n_vocab], -inf where a token is never allowed; rules int64 [3]: how many tokens were not
    sampled, the end's token, and the first timestamp's (n_vocab where there are no timestamps). Returns the tokens, int64 [n_seq], and how
    many are not the end's, [1].
    """
    if not has_kernels(logits.device):
        return next_token_by_steps(logits, tokens, sum_logprobs, mask, rules, n_tokens)
    types = [TensorType(DType.int64, [logits.shape[0]], logits.device), TensorType(DType.int64, [1], logits.device)]
    values = [logits, tokens, sum_logprobs, mask, rules, n_tokens]
    chosen, n_unfinished = ops.inplace_custom("maxwhisper.next_token", logits.device, values, types)
    return chosen.tensor, n_unfinished.tensor


def likeliest_tokens(logits: TensorValue, tokens: TensorValue, mask: TensorValue, rules: TensorValue) -> list[TensorValue]:
    """Of each sequence the likeliest tokens that may follow, one more than a group has sequences, and their log-probabilities; for the CPU.

    logits, mask, rules as in `next_token`; tokens int64 [n_audio, n_group, n], all so far. Returns int64 and float32 [n_seq, n_group + 1],
    the likeliest first; where fewer are allowed, others stand in at -inf.
    """
    shape = [logits.shape[0], tokens.shape[1] + 1]
    types = [TensorType(dtype, shape, logits.device) for dtype in (DType.int64, DType.float32)]
    return [value.tensor for value in ops.custom("maxwhisper.likeliest_tokens", logits.device, [logits, tokens, mask, rules], types)]


def next_token_by_steps(
    logits: TensorValue, tokens: BufferValue, sum_logprobs: BufferValue, mask: TensorValue, rules: TensorValue, n_tokens: TensorValue
) -> tuple[TensorValue, TensorValue]:
    """`next_token` of MAX's reductions and small kernels that run anywhere."""
    device, (n_seq, n_vocab) = logits.device, logits.shape
    first_type = TensorType(DType.int64, [2, n_seq], device)  # of what is allowed: the first text, and the first timestamp
    (first,) = ops.custom("maxwhisper.first_allowed", device, [logits, ops.buffer_load(tokens), rules, n_tokens], [first_type])
    kinds_type = TensorType(DType.float32, [2, n_seq, n_vocab], device)  # of either kind: what is not allowed is the lowest number
    (kinds,) = ops.custom("maxwhisper.allowed_logits", device, [logits, mask, rules, first.tensor], [kinds_type])
    likeliest = ops.argmax(kinds.tensor)
    top = ops.max(kinds.tensor)
    total = ops.sum(ops.exp(kinds.tensor - top))
    types = [TensorType(DType.int64, [n_seq], device), TensorType(DType.int64, [1], device)]
    values = [logits, tokens, sum_logprobs, rules, n_tokens, likeliest, top, total]
    chosen, n_unfinished = ops.inplace_custom("maxwhisper.choose_token", device, values, types)
    return chosen.tensor, n_unfinished.tensor
