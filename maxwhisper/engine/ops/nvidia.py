"""Operations of the decoder, and attention, from this package's kernels for NVIDIA GPUs.

Those of the decoder compute in float32, whatever the dtype of weights and caches. The encoder's
other operations are `portable`'s. Signatures are as there and in `cpu`, which document the
arguments.
"""

import re
from collections.abc import Sequence

from max.dtype import DType
from max.graph import BufferValue, DimLike, TensorType, TensorValue, ops

from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.engine.decoder_block import LINEARS, VECTORS
from maxwhisper.engine.ops.portable import (
    COMPUTE_TYPES,
    alignment_scores,
    append_to_cache,
    apply_mask,
    attention_context,
    attention_scores,
    cached_attention,
    conv1d,
    cross_attention,
    flash_attention,
    gelu,
    in_heads,
    layer_norm,
    linear,
    lm_head,
    matmul,
    merge_heads,
    read_cache,
    softmax,
    split_heads,
    token_embedding,
)

FUSES_DECODER_BLOCK = True
HEAD_DIM = 64
ENCODER_ATTENTION = {"float32": "encoder_attention", "float16": "encoder_attention_half"}  # bfloat16 has MAX's own
SHARES = 48  # of the vocabulary, as in `kernels/nvidia/next_token.mojo`

__all__ = [
    "COMPUTE_TYPES",
    "alignment_scores",
    "append_to_cache",
    "append_token",
    "apply_mask",
    "attention",
    "attention_context",
    "attention_scores",
    "cached_attention",
    "conv1d",
    "cross_attention",
    "decoder_block",
    "embed",
    "embed_last",
    "gelu",
    "in_heads",
    "layer_norm",
    "linear",
    "lm_head",
    "matmul",
    "merge_heads",
    "multiplies_float16",
    "normed_lm_head",
    "rank_tokens",
    "read_cache",
    "softmax",
    "split_heads",
    "token_embedding",
    "top_k_tokens",
]


def supports(dims: ModelDimensions) -> bool:
    """Whether the kernels can have a model's sizes; they can have those of all Whisper models."""
    return dims.n_text_state == dims.n_text_head * HEAD_DIM and dims.n_text_state % 128 == 0


def multiplies_float16(weight: str) -> bool:
    """Whether the weight of this name may be float16: those of the decoder's own kernels."""
    return weight.startswith("decoder.") and not re.search(r"cross_attn\.(key|value)", weight)


def _call(
    name: str, values: Sequence[TensorValue | BufferValue], types: Sequence[TensorType], **parameters: int
) -> list[TensorValue]:
    """Build an operation of `kernels/nvidia/ops.mojo`."""
    build = ops.inplace_custom if any(isinstance(value, BufferValue) for value in values) else ops.custom
    results = build(f"maxwhisper.nvidia.{name}", values[0].device, values, types, parameters=parameters)
    return [result.tensor for result in results]


def _like(x: TensorValue, n: DimLike | None = None) -> TensorType:
    """Return the type of x [n_seq, n_tokens, n_state] in float32, or with another n_state."""
    return TensorType(DType.float32, [*x.shape[:-1], x.shape[-1] if n is None else n], x.device)


def attention(q: TensorValue, k: TensorValue, v: TensorValue) -> TensorValue:
    """Compute scaled dot-product attention without a mask, and without storing scores."""
    if q.dtype.name not in ENCODER_ATTENTION:
        return flash_attention(q, k, v)
    return _call(ENCODER_ATTENTION[q.dtype.name], [q, k, v], [TensorType(q.dtype, q.shape, q.device)])[0]


def embed(
    tokens: TensorValue,
    positions: TensorValue,
    weight: TensorValue,
    positional: TensorValue,
    scale: TensorValue | None = None,
    dtype: DType = DType.float32,
) -> tuple[TensorValue, TensorValue]:
    """Embed tokens at their positions, in float32."""
    assert scale is None
    n_audio, n_group, n = tokens.shape
    result = TensorType(DType.float32, [n_audio * n_group, n, weight.shape[1]], tokens.device)
    embedding, x = _call("embed", [tokens, positions, weight, positional], [result, result])
    return embedding, x


def embed_last(
    tokens: BufferValue, n_tokens: BufferValue, weight: TensorValue, positional: TensorValue, dtype: DType
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """Embed the last token of each sequence, in float32."""
    n_audio, n_group, _ = tokens.shape
    result = TensorType(DType.float32, [n_audio * n_group, 1, weight.shape[1]], tokens.device)
    types = [result, result, TensorType(DType.int64, [1], tokens.device)]
    embedding, x, position = _call("embed_last", [tokens, n_tokens, weight, positional], types)
    return embedding, x, position


def decoder_block(
    x: TensorValue,
    self_kv: Sequence[BufferValue],
    page_table: TensorValue,
    positions: TensorValue,
    cross_kv: Sequence[TensorValue],
    matrices: Sequence[TensorValue],
    vectors: Sequence[TensorValue],
) -> list[TensorValue]:
    """Compute a whole decoder block in eight kernels."""
    n_state = int(x.shape[-1])
    weights = dict(zip((*LINEARS, *VECTORS), (*matrices, *vectors), strict=True))
    n_mlp = int(weights["mlp.0"].shape[0])

    def norm(name: str) -> list[TensorValue]:
        return [weights[f"{name}.weight"], weights[f"{name}.bias"]]

    def layer(name: str) -> list[TensorValue]:
        return [weights[name], weights[f"{name}.bias"]]

    def attended(name: str, parts: list[TensorValue], x: TensorValue, is_cross: bool) -> list[TensorValue]:
        values = [*parts, x, *layer(name)]
        return _call("attended_linear", values, [_like(x)] * 3, n_state=n_state, is_cross=is_cross)

    projections = [weights[f"attn.{name}"] for name in ("query", "key", "value")]
    biases = [weights[f"attn.{name}.bias"] for name in ("query", "value")]
    values = [*self_kv, x, *norm("attn_ln"), *projections, *biases, page_table, positions]
    attn_ln, query, key, value = _call("project", values, [_like(x)] * 4, n_state=n_state)
    n_head = n_state // HEAD_DIM
    parts = _call("self_attention", [query, *self_kv, page_table, positions], _parts(x), n_head=n_head)
    context, out, residual = attended("attn.out", parts, x, is_cross=False)

    values = [residual, *norm("cross_attn_ln"), *layer("cross_attn.query")]
    types = [_like(x), _like(x), _like(x)]
    sizes = {"n_in": n_state, "n_out": n_state, "activates": False}
    cross_ln, cross_query, _ = _call("normed_linear", values, types, **sizes)
    parts = _call("cross_attention", [cross_query, *cross_kv], _parts(x), n_head=n_head)
    cross_context, cross_out, cross_residual = attended("cross_attn.out", parts, residual, is_cross=True)

    values = [cross_residual, *norm("mlp_ln"), *layer("mlp.0")]
    types = [_like(x), _like(x, n_mlp), _like(x, n_mlp)]
    sizes = {"n_in": n_state, "n_out": n_mlp, "activates": True}
    mlp_ln, mlp_0, activated = _call("normed_linear", values, types, **sizes)
    values = [activated, cross_residual, *layer("mlp.2")]
    mlp_2, mlp_residual = _call("residual_linear", values, [_like(x)] * 2, n_in=n_mlp, n_out=n_state)
    return [
        *(attn_ln, query, key, value, context, out, residual),
        *(cross_ln, cross_query, cross_context, cross_out, cross_residual),
        *(mlp_ln, mlp_0, activated, mlp_2, mlp_residual),
    ]


def _parts(x: TensorValue) -> list[TensorType]:
    """Return the types of an attention's parts, as `kernels/nvidia/attention.mojo` leaves them.

    There are at most 4 parts of a head, and at most 16 if there is only one token.
    """
    n_seq, n, n_state = x.shape
    n_rows, n_head = n_seq * n + 3, int(n_state) // HEAD_DIM
    return [TensorType(DType.float32, [n_rows, n_head, 4, width], x.device) for width in (HEAD_DIM, 2)]


def normed_lm_head(
    x: TensorValue,
    rows: TensorValue,
    ln_weight: TensorValue,
    ln_bias: TensorValue,
    weight: TensorValue,
    scale: TensorValue | None = None,
) -> tuple[TensorValue, TensorValue]:
    """Compute the last layer norm and the logits of some tokens of each sequence."""
    assert scale is None
    n_seq, _, n_state = x.shape
    n_vocab = int(weight.shape[0])
    types = [TensorType(DType.float32, [n_seq, rows.shape[0], width], x.device) for width in (int(n_state), n_vocab)]
    values = [x, rows, ln_weight, ln_bias, weight]
    normed, logits = _call("lm_head", values, types, n_state=int(n_state), n_vocab=n_vocab)
    return normed, logits


def append_token(
    logits: TensorValue,
    tokens: BufferValue,
    sum_logprobs: BufferValue,
    n_tokens: BufferValue,
    mask: TensorValue,
    rules: TensorValue,
) -> TensorValue:
    """Append to each sequence the allowed token of the highest logit."""
    found = _found(logits, [])
    types = [TensorType(DType.int64, [1], logits.device), *found]
    values = [tokens, sum_logprobs, n_tokens, logits, mask, rules]
    return _call("append_token", values, types, n_vocab=int(logits.shape[1]))[0]


def top_k_tokens(logits: TensorValue, tokens: TensorValue, mask: TensorValue, rules: TensorValue) -> list[TensorValue]:
    """Find the k = n_group + 1 allowed tokens of the highest logits of each sequence."""
    n_tokens = ops.reshape(ops.cast(TensorValue(tokens.shape[2]), DType.int64), [1]).to(logits.device)
    return rank_tokens(logits, tokens, n_tokens, mask, rules)


def rank_tokens(
    logits: TensorValue, tokens: TensorValue, n_tokens: TensorValue, mask: TensorValue, rules: TensorValue
) -> list[TensorValue]:
    """Compute `top_k_tokens`, given also the number of tokens n, int64 [1]."""
    k = tokens.shape[1] + 1
    types = [TensorType(dtype, [logits.shape[0], k], logits.device) for dtype in (DType.int64, DType.float32)]
    values = [logits, tokens, n_tokens, mask, rules]
    return _call("rank_tokens", values, [*types, *_found(logits, [k])], n_vocab=int(logits.shape[1]))[:2]


def _found(logits: TensorValue, k: Sequence[DimLike]) -> list[TensorType]:
    """Return the types of what is found in each share of the vocabulary: logits, tokens, totals."""
    shape = [logits.shape[0], SHARES]
    found = [TensorType(dtype, [*shape, *k], logits.device) for dtype in (DType.float32, DType.int32)]
    return [*found, TensorType(DType.float32, shape, logits.device)]
