"""The operations Whisper is made of, on MAX Graph.

Each function builds one operation from graph values and knows nothing of weights' names or of the model around it.
Shapes may be symbolic; `...` stands for any leading dimensions.
"""

import functools
import math

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, Dim, StaticDim, TensorType, TensorValue, ops

LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which OpenAI Whisper uses


def layer_norm(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Normalise the last dimension: `(x - mean) / sqrt(variance + 1e-5) * weight + bias` (Ba et al., 2016).

    x [..., n_state]; weight, bias [n_state]. The variance is the biased one, as in `torch.nn.functional.layer_norm`.
    Halves are widened because MAX 26.7 rounds epsilon to their dtype: `tests/test_max_defects.py`, `layer_norm_rounds_epsilon`.
    """
    wide = (ops.cast(value, DType.float32) for value in (x, weight, bias))
    return ops.cast(ops.layer_norm(*wide, LAYER_NORM_EPSILON), x.dtype)


def linear(x: TensorValue, weight: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """`x @ weight.T + bias`, as `torch.nn.functional.linear`. x [..., n_in]; weight [n_out, n_in]; bias [n_out]."""
    y = ops.matmul(x, ops.transpose(weight, 0, 1))
    return y if bias is None else y + bias


def gelu(x: TensorValue) -> TensorValue:
    """The exact GELU, `x * Phi(x)` with the normal distribution's Phi (Hendrycks and Gimpel, 2016); not the tanh form."""
    return ops.gelu(x)


def conv1d(x: TensorValue, weight: TensorValue, bias: TensorValue, stride: int = 1) -> TensorValue:
    """Cross-correlate along time with one zero of padding on either side, as `torch.nn.functional.conv1d(padding=1)`.

    x [batch, n_frames, n_in] (channels last, unlike torch); weight [n_out, n_in, 3] as stored; bias [n_out].
    Returns [batch, ceil(n_frames / stride), n_out]. A matrix product for each of the three taps: faster than MAX's convolution on the
    CPU, more exact (each sums over n_in alone), and compiled already for the linear layers.
    """
    n_frames = x.shape[1]
    padded = ops.pad(x, [0, 0, 1, 1, 0, 0])

    def seen_by(tap: int) -> TensorValue:
        frames = slice(TensorValue(Dim(tap)), TensorValue(n_frames + tap), stride)
        return padded[:, (frames, (n_frames + (stride - 1)) // stride), :]

    taps = (linear(seen_by(tap), weight[:, :, tap]) for tap in range(3))
    return functools.reduce(ops.add, taps) + bias


def token_embedding(tokens: TensorValue, weight: TensorValue) -> TensorValue:
    """Look up each token's row. tokens int64 [...]; weight [n_vocab, n_state]. Returns [..., n_state]."""
    return ops.gather(weight, tokens, axis=0)


def lm_head(x: TensorValue, weight: TensorValue) -> TensorValue:
    """`x @ weight.T`: how well each token of the vocabulary fits. x [n, n_state]; weight [n_vocab, n_state]. Returns [n, n_vocab].

    The step's dearest operation: a row reads the whole embedding. For a single one MAX's matrix product on the CPU reads 8 GB/s where a
    product and a sum, which the compiler fuses, read 22; several share what they read in a matrix product.
    """
    n, n_vocab = x.shape[0], weight.shape[0]

    def one_row() -> TensorValue:
        products = ops.cast(ops.unsqueeze(weight, 0), DType.float32) * ops.cast(ops.unsqueeze(x, 1), DType.float32)
        return ops.cast(ops.squeeze(ops.sum(products, axis=-1), -1), x.dtype)

    is_one = ops.equal(TensorValue(n), 1)
    (logits,) = ops.cond(is_one, [TensorType(x.dtype, [n, n_vocab], x.device)], one_row, lambda: linear(x, weight))
    return logits


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """[batch, n, n_state] to [batch, n_head, n, head_dim]."""
    batch, n, n_state = x.shape
    return ops.permute(ops.reshape(x, [batch, n, n_head, int(n_state) // n_head]), [0, 2, 1, 3])


def merge_heads(x: TensorValue) -> TensorValue:
    """[batch, n_head, n, head_dim] to [batch, n, n_state]; the inverse of `split_heads`."""
    batch, n_head, n, head_dim = x.shape
    return ops.reshape(ops.permute(x, [0, 2, 1, 3]), [batch, n, n_head * head_dim])


def attention_scores(q: TensorValue, k: TensorValue) -> TensorValue:
    """`q @ k.T / sqrt(head_dim)` (Vaswani et al., 2017, equation 1), in float32.

    q [batch, n_head, n, head_dim]; k [batch, n_head, n_kv, head_dim]. Returns [batch, n_head, n, n_kv].
    Halves are widened because MAX 26.7 adds them up in half precision: `tests/test_max_defects.py`, `batched_matmul_of_halves`.
    """
    q, k = ops.cast(q, DType.float32), ops.cast(k, DType.float32)
    return ops.matmul(q * _inverse_sqrt(q.shape[-1], q.device), ops.transpose(k, -2, -1))


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
    """`weights @ v`. weights float32 [batch, n_head, n, n_kv]; v [batch, n_head, n_kv, head_dim]. Returns [batch, n_head, n, head_dim].

    Where neither scores nor weights are asked for, MAX's compiler makes one flash attention of the three steps.
    """
    return ops.cast(ops.matmul(weights, ops.cast(v, DType.float32)), v.dtype)


def append_to_cache(cache: BufferValue, new: TensorValue, n_kv: Dim) -> TensorValue:
    """Write new keys or values, in place, behind those that are there, and return all `n_kv` of them.

    cache [n_audio, n_group, n_head, n_ctx, head_dim]; new [n_audio * n_group, n_head, n, head_dim].
    Returns [n_audio * n_group, n_head, n_kv, head_dim], of which new are the last n.
    """
    n_audio, n_group = cache.shape[:2]
    batch, n_head, n, head_dim = new.shape
    here = (slice(TensorValue(n_kv - n), TensorValue(n_kv)), n)
    cache[:, :, :, here, :] = ops.reshape(new, [n_audio, n_group, n_head, n, head_dim])
    valid = ops.buffer_load(cache)[:, :, :, :n_kv, :]
    return ops.reshape(valid, [batch, n_head, n_kv, head_dim])
