"""The kernels as operations of MAX graphs: how each is launched.

The decoder's tokens are rows [n_seq, n, n_state] of float32, of which there are n_rows = n_seq * n.
One row alone is multiplied by itself, others `FEW` at a time.
"""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import ceildiv

from .attention import THREADS as ATTENTION_THREADS
from .attention import cross_attention_kernel, cross_splits_of, self_attention_kernel, self_splits_of
from .embedding import embed_kernel, embed_last_kernel
from .encoder_attention import ROWS, encoder_attention_kernel
from .encoder_attention import THREADS as ENCODER_THREADS
from .encoder_attention_half import ROWS as HALF_ROWS
from .encoder_attention_half import THREADS as HALF_THREADS
from .encoder_attention_half import encoder_attention_half_kernel
from .launch import HEAD_DIM, Cache, Doubles, Floats, Int32s, Int64s, Weights, attributes_of
from .linear import (
    FEW,
    attended_linear_kernel,
    lm_head_kernel,
    normed_linear_kernel,
    project_kernel,
    residual_linear_kernel,
)
from .next_token import SHARES, append_token_kernel, rank_tokens_kernel, survey_kernel
from .next_token import THREADS as SURVEY_THREADS
from .product import BLOCKS, THREADS, outputs_of_block

comptime PDL = DeviceContext.default_device_info.compute >= 9.0  # programmatic dependent launch
comptime F32 = DType.float32
comptime F16 = DType.float16
comptime I64 = DType.int64
comptime EMBED_THREADS = 128
comptime MOST_WARPS = 16  # of the block that appends tokens


@register("maxwhisper.nvidia.encoder_attention")
struct EncoderAttention:
    """Attention of all of the audio to itself."""

    @staticmethod
    def execute(
        context: OutputTensor[dtype=F32, rank=4, ...],  # [batch, n, n_head, head_dim], as query
        query: InputTensor[dtype=F32, rank=4, ...],
        key: InputTensor[dtype=F32, rank=4, ...],  # [batch, n_kv, n_head, head_dim], as value
        value: InputTensor[dtype=F32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        ctx.enqueue_function[encoder_attention_kernel](
            rebind[Floats](context.unsafe_ptr()),
            rebind[Floats](query.unsafe_ptr()),
            rebind[Floats](key.unsafe_ptr()),
            rebind[Floats](value.unsafe_ptr()),
            Int32(query.dim_size(1)),
            Int32(key.dim_size(1)),
            grid_dim=(ceildiv(query.dim_size(1), ROWS), query.dim_size(2), query.dim_size(0)),
            block_dim=ENCODER_THREADS,
        )


@register("maxwhisper.nvidia.encoder_attention_half")
struct EncoderAttentionHalf:
    """Attention of all of the audio to itself, in float16."""

    @staticmethod
    def execute(
        context: OutputTensor[dtype=F16, rank=4, ...],  # as in `EncoderAttention`
        query: InputTensor[dtype=F16, rank=4, ...],
        key: InputTensor[dtype=F16, rank=4, ...],
        value: InputTensor[dtype=F16, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        ctx.enqueue_function[encoder_attention_half_kernel](
            rebind[Cache[F16]](context.unsafe_ptr()),
            rebind[Cache[F16]](query.unsafe_ptr()),
            rebind[Cache[F16]](key.unsafe_ptr()),
            rebind[Cache[F16]](value.unsafe_ptr()),
            Int32(query.dim_size(1)),
            Int32(key.dim_size(1)),
            grid_dim=(ceildiv(query.dim_size(1), HALF_ROWS), query.dim_size(2), query.dim_size(0)),
            block_dim=HALF_THREADS,
        )


@register("maxwhisper.nvidia.embed")
struct Embed:
    """Embed tokens at their positions."""

    @staticmethod
    def execute[
        dtype: DType, //
    ](
        embedding: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_state], as x
        x: OutputTensor[dtype=F32, rank=3, ...],
        tokens: InputTensor[dtype=I64, rank=3, ...],  # [n_audio, n_group, n]
        positions: InputTensor[dtype=I64, rank=1, ...],  # [n]
        weight: InputTensor[dtype=dtype, rank=2, ...],  # [n_vocab, n_state]
        positional: InputTensor[dtype=F32, rank=2, ...],  # [n_ctx, n_state]
        ctx: DeviceContext,
    ) raises:
        ctx.enqueue_function[embed_kernel[dtype, PDL]](
            rebind[Floats](embedding.unsafe_ptr()),
            rebind[Floats](x.unsafe_ptr()),
            rebind[Int64s](tokens.unsafe_ptr()),
            rebind[Int64s](positions.unsafe_ptr()),
            rebind[Weights[dtype]](weight.unsafe_ptr()),
            rebind[Weights[F32]](positional.unsafe_ptr()),
            Int32(x.dim_size(1)),
            Int32(x.dim_size(2)),
            grid_dim=x.dim_size(0) * x.dim_size(1),
            block_dim=EMBED_THREADS,
            attributes=attributes_of[PDL](),
        )


@register("maxwhisper.nvidia.embed_last")
struct EmbedLast:
    """Embed the last token of each sequence."""

    @staticmethod
    def execute[
        dtype: DType, //
    ](
        embedding: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, 1, n_state], as x
        x: OutputTensor[dtype=F32, rank=3, ...],
        position: OutputTensor[dtype=I64, rank=1, ...],  # [1]
        tokens: MutableInputTensor[dtype=I64, rank=3, ...],  # [n_audio, n_group, n_ctx + 1]; only read
        n_tokens: MutableInputTensor[dtype=I64, rank=1, ...],  # [1]; only read
        weight: InputTensor[dtype=dtype, rank=2, ...],
        positional: InputTensor[dtype=F32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        ctx.enqueue_function[embed_last_kernel[dtype, PDL]](
            rebind[Floats](embedding.unsafe_ptr()),
            rebind[Floats](x.unsafe_ptr()),
            rebind[Int64s](position.unsafe_ptr()),
            rebind[Int64s](tokens.unsafe_ptr()),
            rebind[Int64s](n_tokens.unsafe_ptr()),
            rebind[Weights[dtype]](weight.unsafe_ptr()),
            rebind[Weights[F32]](positional.unsafe_ptr()),
            Int32(tokens.dim_size(2)),
            Int32(x.dim_size(2)),
            grid_dim=x.dim_size(0),
            block_dim=EMBED_THREADS,
            attributes=attributes_of[PDL](),
        )


@register("maxwhisper.nvidia.project")
struct Project:
    """Layer norm, queries, keys and values, the latter two also into the cache."""

    @staticmethod
    def execute[
        dtype: DType, cache_dtype: DType, //, n_state: Int
    ](
        normed: OutputTensor[dtype=F32, rank=3, ...],  # as x, also query, key and value
        query: OutputTensor[dtype=F32, rank=3, ...],
        key: OutputTensor[dtype=F32, rank=3, ...],
        value: OutputTensor[dtype=F32, rank=3, ...],
        k_cache: MutableInputTensor[dtype=cache_dtype, rank=4, ...],  # [n_pages, n_head, n_ctx, head_dim]
        v_cache: MutableInputTensor[dtype=cache_dtype, rank=4, ...],
        x: InputTensor[dtype=F32, rank=3, ...],
        ln_weight: InputTensor[dtype=F32, rank=1, ...],
        ln_bias: InputTensor[dtype=F32, rank=1, ...],
        w_query: InputTensor[dtype=dtype, rank=2, ...],  # [n_state, n_state]
        w_key: InputTensor[dtype=dtype, rank=2, ...],
        w_value: InputTensor[dtype=dtype, rank=2, ...],
        b_query: InputTensor[dtype=F32, rank=1, ...],
        b_value: InputTensor[dtype=F32, rank=1, ...],
        page_table: InputTensor[dtype=I64, rank=3, ...],  # [n_audio, n_group, n_ctx]
        positions: InputTensor[dtype=I64, rank=1, ...],  # [n]
        ctx: DeviceContext,
    ) raises:
        var n_rows = x.dim_size(0) * x.dim_size(1)

        comptime for i in range(2):
            comptime together = FEW if i == 1 else 1
            if (n_rows == 1) == (together == 1):
                ctx.enqueue_function[project_kernel[dtype, cache_dtype, n_state, together, PDL]](
                    rebind[Floats](normed.unsafe_ptr()),
                    rebind[Floats](query.unsafe_ptr()),
                    rebind[Floats](key.unsafe_ptr()),
                    rebind[Floats](value.unsafe_ptr()),
                    rebind[Cache[cache_dtype]](k_cache.unsafe_ptr()),
                    rebind[Cache[cache_dtype]](v_cache.unsafe_ptr()),
                    rebind[Floats](x.unsafe_ptr()),
                    rebind[Weights[F32]](ln_weight.unsafe_ptr()),
                    rebind[Weights[F32]](ln_bias.unsafe_ptr()),
                    rebind[Weights[dtype]](w_query.unsafe_ptr()),
                    rebind[Weights[dtype]](w_key.unsafe_ptr()),
                    rebind[Weights[dtype]](w_value.unsafe_ptr()),
                    rebind[Weights[F32]](b_query.unsafe_ptr()),
                    rebind[Weights[F32]](b_value.unsafe_ptr()),
                    rebind[Int64s](page_table.unsafe_ptr()),
                    rebind[Int64s](positions.unsafe_ptr()),
                    Int32(n_rows),
                    Int32(x.dim_size(1)),
                    Int32(k_cache.dim_size(2)),
                    grid_dim=(
                        ceildiv(n_rows, together),
                        ceildiv(3 * n_state, outputs_of_block[dtype, n_state, 3 * n_state, together]()),
                    ),
                    block_dim=THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.self_attention")
struct SelfAttention:
    """Attention of tokens to themselves and to those before them, in parts."""

    @staticmethod
    def execute[
        dtype: DType, //, n_head: Int
    ](
        parts: OutputTensor[dtype=F32, rank=4, ...],  # room for [n_rows, n_head, n_splits, head_dim]
        scales: OutputTensor[dtype=F32, rank=4, ...],  # room for [n_rows, n_head, n_splits, 2]
        query: InputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_state]
        k_cache: MutableInputTensor[dtype=dtype, rank=4, ...],  # only read, as v_cache
        v_cache: MutableInputTensor[dtype=dtype, rank=4, ...],
        page_table: InputTensor[dtype=I64, rank=3, ...],
        positions: InputTensor[dtype=I64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_rows = query.dim_size(0) * query.dim_size(1)

        comptime for i in range(2):
            comptime together = FEW if i == 1 else 1
            comptime n_splits = self_splits_of(n_head, together)
            if (n_rows == 1) == (together == 1):
                ctx.enqueue_function[self_attention_kernel[dtype, n_head, n_splits, PDL]](
                    rebind[Floats](parts.unsafe_ptr()),
                    rebind[Floats](scales.unsafe_ptr()),
                    rebind[Floats](query.unsafe_ptr()),
                    rebind[Cache[dtype]](k_cache.unsafe_ptr()),
                    rebind[Cache[dtype]](v_cache.unsafe_ptr()),
                    rebind[Int64s](page_table.unsafe_ptr()),
                    rebind[Int64s](positions.unsafe_ptr()),
                    Int32(query.dim_size(1)),
                    Int32(k_cache.dim_size(2)),
                    grid_dim=(n_splits, n_head, n_rows),
                    block_dim=ATTENTION_THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.cross_attention")
struct CrossAttention:
    """Attention of tokens to the audio, in parts."""

    @staticmethod
    def execute[
        dtype: DType, //, n_head: Int
    ](
        parts: OutputTensor[dtype=F32, rank=4, ...],  # as in `SelfAttention`
        scales: OutputTensor[dtype=F32, rank=4, ...],
        query: InputTensor[dtype=F32, rank=3, ...],
        k: InputTensor[dtype=dtype, rank=4, ...],  # [n_audio, n_head, n_keys, head_dim], as v
        v: InputTensor[dtype=dtype, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var n_rows = query.dim_size(0) * query.dim_size(1)
        var n_audio = k.dim_size(0)
        var n = n_rows // n_audio

        comptime for i in range(3):
            comptime together = FEW if i == 2 else 1  # rows that share the audio
            comptime n_splits = cross_splits_of(n_head, 1 if i == 0 else FEW)
            if i == (0 if n_rows == 1 else (1 if n == 1 else 2)):
                ctx.enqueue_function[cross_attention_kernel[dtype, n_head, n_splits, together, PDL]](
                    rebind[Floats](parts.unsafe_ptr()),
                    rebind[Floats](scales.unsafe_ptr()),
                    rebind[Floats](query.unsafe_ptr()),
                    rebind[Cache[dtype]](k.unsafe_ptr()),
                    rebind[Cache[dtype]](v.unsafe_ptr()),
                    Int32(n),
                    Int32(k.dim_size(2)),
                    grid_dim=(n_splits, n_head, n_audio * ceildiv(n, together)),
                    block_dim=ATTENTION_THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.attended_linear")
struct AttendedLinear:
    """Attention's result from its parts, the linear layer behind it, and the residual."""

    @staticmethod
    def execute[
        dtype: DType, //, n_state: Int, is_cross: Bool
    ](
        context: OutputTensor[dtype=F32, rank=3, ...],  # as residual, also y and its sum with that
        y: OutputTensor[dtype=F32, rank=3, ...],
        sum_with_residual: OutputTensor[dtype=F32, rank=3, ...],
        parts: InputTensor[dtype=F32, rank=4, ...],
        scales: InputTensor[dtype=F32, rank=4, ...],
        residual: InputTensor[dtype=F32, rank=3, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],  # [n_state, n_state]
        bias: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_rows = residual.dim_size(0) * residual.dim_size(1)

        comptime for i in range(2):
            comptime together = FEW if i == 1 else 1
            comptime n_head = n_state // HEAD_DIM
            comptime n_splits = cross_splits_of(n_head, together) if is_cross else self_splits_of(n_head, together)
            if (n_rows == 1) == (together == 1):
                ctx.enqueue_function[attended_linear_kernel[dtype, n_state, n_splits, together, PDL]](
                    rebind[Floats](context.unsafe_ptr()),
                    rebind[Floats](y.unsafe_ptr()),
                    rebind[Floats](sum_with_residual.unsafe_ptr()),
                    rebind[Floats](parts.unsafe_ptr()),
                    rebind[Floats](scales.unsafe_ptr()),
                    rebind[Floats](residual.unsafe_ptr()),
                    rebind[Weights[dtype]](weight.unsafe_ptr()),
                    rebind[Weights[F32]](bias.unsafe_ptr()),
                    Int32(n_rows),
                    grid_dim=(
                        ceildiv(n_rows, together),
                        ceildiv(n_state, outputs_of_block[dtype, n_state, n_state, together]()),
                    ),
                    block_dim=THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.normed_linear")
struct NormedLinear:
    """Layer norm and a linear layer, and its GELU if it `activates`."""

    @staticmethod
    def execute[
        dtype: DType, //, n_in: Int, n_out: Int, activates: Bool
    ](
        normed: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_in], as x
        y: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_out]
        activated: OutputTensor[dtype=F32, rank=3, ...],  # as y, if it activates
        x: InputTensor[dtype=F32, rank=3, ...],
        ln_weight: InputTensor[dtype=F32, rank=1, ...],
        ln_bias: InputTensor[dtype=F32, rank=1, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],  # [n_out, n_in]
        bias: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_rows = x.dim_size(0) * x.dim_size(1)

        comptime for i in range(2):
            comptime together = FEW if i == 1 else 1
            if (n_rows == 1) == (together == 1):
                ctx.enqueue_function[normed_linear_kernel[dtype, n_in, n_out, activates, together, PDL]](
                    rebind[Floats](normed.unsafe_ptr()),
                    rebind[Floats](y.unsafe_ptr()),
                    rebind[Floats](activated.unsafe_ptr()),
                    rebind[Floats](x.unsafe_ptr()),
                    rebind[Weights[F32]](ln_weight.unsafe_ptr()),
                    rebind[Weights[F32]](ln_bias.unsafe_ptr()),
                    rebind[Weights[dtype]](weight.unsafe_ptr()),
                    rebind[Weights[F32]](bias.unsafe_ptr()),
                    Int32(n_rows),
                    grid_dim=(
                        ceildiv(n_rows, together), ceildiv(n_out, outputs_of_block[dtype, n_in, n_out, together]())
                    ),
                    block_dim=THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.residual_linear")
struct ResidualLinear:
    """A linear layer and the residual."""

    @staticmethod
    def execute[
        dtype: DType, //, n_in: Int, n_out: Int
    ](
        y: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_out], as the sum and residual
        sum_with_residual: OutputTensor[dtype=F32, rank=3, ...],
        x: InputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_in]
        residual: InputTensor[dtype=F32, rank=3, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],  # [n_out, n_in]
        bias: InputTensor[dtype=F32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_rows = x.dim_size(0) * x.dim_size(1)

        comptime for i in range(2):
            comptime together = FEW if i == 1 else 1
            if (n_rows == 1) == (together == 1):
                ctx.enqueue_function[residual_linear_kernel[dtype, n_in, n_out, together, PDL]](
                    rebind[Floats](y.unsafe_ptr()),
                    rebind[Floats](sum_with_residual.unsafe_ptr()),
                    rebind[Floats](x.unsafe_ptr()),
                    rebind[Floats](residual.unsafe_ptr()),
                    rebind[Weights[dtype]](weight.unsafe_ptr()),
                    rebind[Weights[F32]](bias.unsafe_ptr()),
                    Int32(n_rows),
                    grid_dim=(
                        ceildiv(n_rows, together), ceildiv(n_out, outputs_of_block[dtype, n_in, n_out, together]())
                    ),
                    block_dim=THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.lm_head")
struct LmHead:
    """Layer norm and the LM head, of some tokens of each sequence."""

    @staticmethod
    def execute[
        dtype: DType, //, n_state: Int, n_vocab: Int
    ](
        normed: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, n_wanted, n_state]
        logits: OutputTensor[dtype=F32, rank=3, ...],  # [n_seq, n_wanted, n_vocab]
        x: InputTensor[dtype=F32, rank=3, ...],  # [n_seq, n, n_state]
        wanted: InputTensor[dtype=I64, rank=1, ...],  # [n_wanted], less than n
        ln_weight: InputTensor[dtype=F32, rank=1, ...],
        ln_bias: InputTensor[dtype=F32, rank=1, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],  # [n_vocab, n_state]
        ctx: DeviceContext,
    ) raises:
        var n_rows = logits.dim_size(0) * logits.dim_size(1)

        comptime for i in range(2):
            comptime together = FEW if i == 1 else 1
            if (n_rows == 1) == (together == 1):
                ctx.enqueue_function[lm_head_kernel[dtype, n_state, n_vocab, together, PDL]](
                    rebind[Floats](normed.unsafe_ptr()),
                    rebind[Floats](logits.unsafe_ptr()),
                    rebind[Floats](x.unsafe_ptr()),
                    rebind[Weights[F32]](ln_weight.unsafe_ptr()),
                    rebind[Weights[F32]](ln_bias.unsafe_ptr()),
                    rebind[Weights[dtype]](weight.unsafe_ptr()),
                    rebind[Int64s](wanted.unsafe_ptr()),
                    Int32(n_rows),
                    Int32(wanted.dim_size(0)),
                    Int32(x.dim_size(1)),
                    grid_dim=(
                        ceildiv(n_rows, together),
                        min(BLOCKS, ceildiv(n_vocab, outputs_of_block[dtype, n_state, n_vocab, together]())),
                    ),
                    block_dim=THREADS,
                    attributes=attributes_of[PDL](),
                )


@register("maxwhisper.nvidia.append_token")
struct AppendToken:
    """Append the likeliest allowed token to each sequence."""

    @staticmethod
    def execute[
        n_vocab: Int
    ](
        n_unfinished: OutputTensor[dtype=I64, rank=1, ...],  # [1]
        found: OutputTensor[dtype=F32, rank=2, ...],  # room, [n_seq, SHARES]
        found_tokens: OutputTensor[dtype=DType.int32, rank=2, ...],  # room, as found and totals
        totals: OutputTensor[dtype=F32, rank=2, ...],
        tokens: MutableInputTensor[dtype=I64, rank=3, ...],  # [n_audio, n_group, n_ctx + 1]
        sum_logprobs: MutableInputTensor[dtype=DType.float64, rank=2, ...],  # [n_audio, n_group]
        n_tokens: MutableInputTensor[dtype=I64, rank=1, ...],  # [1]
        logits: InputTensor[dtype=F32, rank=2, ...],  # [n_seq, n_vocab]
        mask: InputTensor[dtype=F32, rank=1, ...],  # [n_vocab]
        rules: InputTensor[dtype=I64, rank=1, ...],  # [3]
        ctx: DeviceContext,
    ) raises:
        var n_seq = logits.dim_size(0)
        ctx.enqueue_function[survey_kernel[n_vocab, PDL]](
            rebind[Floats](found.unsafe_ptr()),
            rebind[Int32s](found_tokens.unsafe_ptr()),
            rebind[Floats](totals.unsafe_ptr()),
            rebind[Floats](logits.unsafe_ptr()),
            rebind[Int64s](tokens.unsafe_ptr()),
            rebind[Int64s](n_tokens.unsafe_ptr()),
            rebind[Weights[F32]](mask.unsafe_ptr()),
            rebind[Int64s](rules.unsafe_ptr()),
            Int32(tokens.dim_size(2)),
            Int32(1),
            grid_dim=(SHARES, n_seq),
            block_dim=SURVEY_THREADS,
            attributes=attributes_of[PDL](),
        )
        ctx.enqueue_function[append_token_kernel[PDL]](
            rebind[Int64s](n_unfinished.unsafe_ptr()),
            rebind[Int64s](tokens.unsafe_ptr()),
            rebind[Doubles](sum_logprobs.unsafe_ptr()),
            rebind[Int64s](n_tokens.unsafe_ptr()),
            rebind[Floats](found.unsafe_ptr()),
            rebind[Int32s](found_tokens.unsafe_ptr()),
            rebind[Floats](totals.unsafe_ptr()),
            rebind[Int64s](rules.unsafe_ptr()),
            Int32(tokens.dim_size(2)),
            Int32(n_seq),
            grid_dim=1,
            block_dim=32 * min(n_seq, MOST_WARPS),
            attributes=attributes_of[PDL](),
        )


@register("maxwhisper.nvidia.rank_tokens")
struct RankTokens:
    """Find the k likeliest allowed tokens of each sequence."""

    @staticmethod
    def execute[
        n_vocab: Int
    ](
        ranked: OutputTensor[dtype=I64, rank=2, ...],  # [n_seq, k], as logprobs
        logprobs: OutputTensor[dtype=F32, rank=2, ...],
        found: OutputTensor[dtype=F32, rank=3, ...],  # room, [n_seq, SHARES, k], as found_tokens
        found_tokens: OutputTensor[dtype=DType.int32, rank=3, ...],
        totals: OutputTensor[dtype=F32, rank=2, ...],  # room, [n_seq, SHARES]
        logits: InputTensor[dtype=F32, rank=2, ...],  # [n_seq, n_vocab]
        tokens: InputTensor[dtype=I64, rank=3, ...],  # [n_audio, n_group, n]
        n_tokens: InputTensor[dtype=I64, rank=1, ...],  # [1], n
        mask: InputTensor[dtype=F32, rank=1, ...],
        rules: InputTensor[dtype=I64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_seq = logits.dim_size(0)
        var k = ranked.dim_size(1)
        ctx.enqueue_function[survey_kernel[n_vocab, PDL]](
            rebind[Floats](found.unsafe_ptr()),
            rebind[Int32s](found_tokens.unsafe_ptr()),
            rebind[Floats](totals.unsafe_ptr()),
            rebind[Floats](logits.unsafe_ptr()),
            rebind[Int64s](tokens.unsafe_ptr()),
            rebind[Int64s](n_tokens.unsafe_ptr()),
            rebind[Weights[F32]](mask.unsafe_ptr()),
            rebind[Int64s](rules.unsafe_ptr()),
            Int32(tokens.dim_size(2)),
            Int32(k),
            grid_dim=(SHARES, n_seq),
            block_dim=SURVEY_THREADS,
            attributes=attributes_of[PDL](),
        )
        ctx.enqueue_function[rank_tokens_kernel[PDL]](
            rebind[Int64s](ranked.unsafe_ptr()),
            rebind[Floats](logprobs.unsafe_ptr()),
            rebind[Floats](found.unsafe_ptr()),
            rebind[Int32s](found_tokens.unsafe_ptr()),
            rebind[Floats](totals.unsafe_ptr()),
            Int32(k),
            grid_dim=n_seq,
            block_dim=32,
            attributes=attributes_of[PDL](),
        )
