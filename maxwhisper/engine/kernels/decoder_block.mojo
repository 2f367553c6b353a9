"""A decoder block in one kernel: cached self-attention, cross-attention and the MLP.

One parallel call computes the whole block. The activations of all layers are outputs, under the
names of the layers in the model, so that tests can judge each of them.
"""

from extensibility import InputTensor, InputVariadicTensors, OutputVariadicTensors, register
from extensibility import _MutableInputTensor as MutableInputTensor
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext

from .phases import Counters, Phases
from .few_queries import QUERIES, Numbers, attend, attend_to_pages, copy
from .layer_norm import gelu, normalise
from .skinny_linear import multiply
from .parallel import n_workers
from .tile import WIDTH, Floats

comptime N_PHASES = 11

# Indices of activations, weights and vectors among the kernel's arguments, in the order of
# `maxwhisper/engine/decoder_block.py`.
comptime ATTN_LN = 0
comptime ATTN_QUERY = 1
comptime ATTN_KEY = 2
comptime ATTN_VALUE = 3
comptime ATTN_CONTEXT = 4
comptime ATTN_OUT = 5
comptime ATTN_RESIDUAL = 6
comptime CROSS_ATTN_LN = 7
comptime CROSS_ATTN_QUERY = 8
comptime CROSS_ATTN_CONTEXT = 9
comptime CROSS_ATTN_OUT = 10
comptime CROSS_ATTN_RESIDUAL = 11
comptime MLP_LN = 12
comptime MLP_0 = 13
comptime MLP_GELU = 14
comptime MLP_2 = 15
comptime MLP_RESIDUAL = 16

comptime ATTN_QUERY_WEIGHT = 0
comptime ATTN_KEY_WEIGHT = 1
comptime ATTN_VALUE_WEIGHT = 2
comptime ATTN_OUT_WEIGHT = 3
comptime CROSS_ATTN_QUERY_WEIGHT = 4
comptime CROSS_ATTN_OUT_WEIGHT = 5
comptime MLP_0_WEIGHT = 6
comptime MLP_2_WEIGHT = 7
comptime N_MATRICES = 8

comptime ATTN_LN_WEIGHT = 0
comptime ATTN_LN_BIAS = 1
comptime CROSS_ATTN_LN_WEIGHT = 2
comptime CROSS_ATTN_LN_BIAS = 3
comptime MLP_LN_WEIGHT = 4
comptime MLP_LN_BIAS = 5
comptime ATTN_QUERY_BIAS = 6
comptime ATTN_VALUE_BIAS = 7
comptime ATTN_OUT_BIAS = 8
comptime CROSS_ATTN_QUERY_BIAS = 9
comptime CROSS_ATTN_OUT_BIAS = 10
comptime MLP_0_BIAS = 11
comptime MLP_2_BIAS = 12
comptime N_VECTORS = 13


@always_inline
def add(y: Floats, a: Floats, b: Floats, n: Int):
    """Add n elements."""
    var i = 0
    while i + WIDTH <= n:
        y.unsafe_store(i, a.unsafe_load[width=WIDTH](i) + b.unsafe_load[width=WIDTH](i))
        i += WIDTH
    while i < n:
        y.unsafe_store(i, a.unsafe_load(i) + b.unsafe_load(i))
        i += 1


def layer_norm(mut phases: Phases, n_parts: Int, y: Floats, x: Floats, weight: Floats, bias: Floats, n_rows: Int, n: Int):
    """Compute the layer norm of x [n_rows, n], as one phase."""
    var part = phases.first(n_parts)
    while part >= 0:
        for i in range(part * n_rows // n_parts, (part + 1) * n_rows // n_parts):
            normalise(y.unsafe_offset(i * n), x.unsafe_offset(i * n), weight, bias, n)
        part = phases.next()


def linear_layer[
    dtype: DType, activated: Bool
](
    mut phases: Phases,
    n_parts: Int,
    gelu_of_y: Floats,
    y: Floats,
    x: Floats,
    weight: Numbers[dtype],
    scale: Floats,
    bias: Floats,
    n_rows: Int,
    n_in: Int,
    n_out: Int,
):
    """Compute y = x @ weight.T + bias [n_rows, n_out], and if activated its GELU, as one phase."""
    var part = phases.first(n_parts)
    while part >= 0:
        var start = part * n_out // n_parts
        var end = (part + 1) * n_out // n_parts
        multiply[True](y, x, weight, scale, bias, n_rows, n_in, n_out, start, end)
        comptime if activated:
            for i in range(n_rows):
                gelu(gelu_of_y.unsafe_offset(i * n_out + start), y.unsafe_offset(i * n_out + start), end - start)
        part = phases.next()


def residual_layer[
    dtype: DType
](
    mut phases: Phases,
    n_parts: Int,
    sum: Floats,
    y: Floats,
    before: Floats,
    x: Floats,
    weight: Numbers[dtype],
    scale: Floats,
    bias: Floats,
    n_rows: Int,
    n_in: Int,
    n_out: Int,
):
    """Compute y = x @ weight.T + bias and sum = before + y [n_rows, n_out], as one phase."""
    var part = phases.first(n_parts)
    while part >= 0:
        var start = part * n_out // n_parts
        var end = (part + 1) * n_out // n_parts
        multiply[True](y, x, weight, scale, bias, n_rows, n_in, n_out, start, end)
        for i in range(n_rows):
            var at = i * n_out + start
            add(sum.unsafe_offset(at), before.unsafe_offset(at), y.unsafe_offset(at), end - start)
        part = phases.next()


def attend_to_cache(
    mut phases: Phases,
    context: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    keys: Floats,
    values: Floats,
    page_table: Pointer[Int64, MutAnyOrigin],
    weights: Floats,
    n_heads: Int,
    n: Int,
    n_past: Int,
    n_head: Int,
    n_ctx: Int,
    head_dim: Int,
):
    """Append new keys and values to the cache, and attend causally, as one phase.

    The phase has a part for each head of each sequence.
    """
    var n_state = n_head * head_dim
    var page_size = n_state * n_ctx
    var part = phases.first(n_heads)
    while part >= 0:
        var sequence, head = divmod(part, n_head)
        var own = page_table.unsafe_offset(sequence * n_ctx)
        var head_keys = keys.unsafe_offset(head * n_ctx * head_dim)
        var head_values = values.unsafe_offset(head * n_ctx * head_dim)
        for i in range(n):
            var at = (sequence * n + i) * n_state + head * head_dim
            var position = n_past + i
            var to = Int(own.unsafe_load(position)) * page_size + position * head_dim
            copy(head_keys.unsafe_offset(to), k.unsafe_offset(at), head_dim)
            copy(head_values.unsafe_offset(to), v.unsafe_offset(at), head_dim)
            attend_to_pages(
                context.unsafe_offset(at), q.unsafe_offset(at), head_keys, head_values, own, page_size, position + 1, head_dim, weights
            )
        part = phases.next()


def attend_to_audio[
    kv_dtype: DType
](
    mut phases: Phases,
    context: Floats,
    q: Floats,
    keys: Numbers[kv_dtype],
    values: Numbers[kv_dtype],
    weights: Floats,
    n_audio_heads: Int,
    n_queries: Int,
    n_kv: Int,
    n_head: Int,
    head_dim: Int,
):
    """Attend to all of the audio, a few queries at a time, as one phase.

    The phase has a part for each head of each window.
    """
    var n_state = n_head * head_dim
    var part = phases.first(n_audio_heads)
    while part >= 0:
        var audio, head = divmod(part, n_head)
        var own_keys = keys.unsafe_offset(part * n_kv * head_dim)
        var own_values = values.unsafe_offset(part * n_kv * head_dim)
        var at = audio * n_queries * n_state + head * head_dim
        var i = 0
        while i + QUERIES <= n_queries:
            attend[QUERIES](context.unsafe_offset(at), q.unsafe_offset(at), n_state, own_keys, own_values, n_kv, head_dim, weights)
            at += QUERIES * n_state
            i += QUERIES
        while i < n_queries:
            attend[1](context.unsafe_offset(at), q.unsafe_offset(at), n_state, own_keys, own_values, n_kv, head_dim, weights)
            at += n_state
            i += 1
        part = phases.next()


@register("maxwhisper.decoder_block")
struct DecoderBlock:
    """A whole decoder block."""

    @staticmethod
    def execute[
        dtype: DType, kv_dtype: DType, n_outputs: Int, n_vectors: Int
    ](
        # outputs, matrices and vectors are in the order of the constants above
        outputs: OutputVariadicTensors[dtype=DType.float32, rank=3, size=n_outputs, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],  # [n_seq, n, n_state]
        k_cache: MutableInputTensor[dtype=DType.float32, rank=4, ...],  # [n_pages, n_head, n_ctx, head_dim]
        v_cache: MutableInputTensor[dtype=DType.float32, rank=4, ...],
        page_table: InputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n_ctx]
        positions: InputTensor[dtype=DType.int64, rank=1, ...],
        cross_k: InputTensor[dtype=kv_dtype, rank=4, ...],  # [n_audio, n_head, n_kv, head_dim]
        cross_v: InputTensor[dtype=kv_dtype, rank=4, ...],
        query: InputTensor[dtype=dtype, rank=2, ...],  # matrices [n_out, n_in]
        key: InputTensor[dtype=dtype, rank=2, ...],
        value: InputTensor[dtype=dtype, rank=2, ...],
        attn_out: InputTensor[dtype=dtype, rank=2, ...],
        cross_query: InputTensor[dtype=dtype, rank=2, ...],
        cross_out: InputTensor[dtype=dtype, rank=2, ...],
        mlp_0: InputTensor[dtype=dtype, rank=2, ...],
        mlp_2: InputTensor[dtype=dtype, rank=2, ...],
        vectors: InputVariadicTensors[dtype=DType.float32, rank=1, size=n_vectors, ...],
        ctx: DeviceContext,
    ) raises:
        var n = x.dim_size(1)
        var n_state = x.dim_size(2)
        var n_rows = x.dim_size(0) * n
        var n_head = k_cache.dim_size(1)
        var n_ctx = k_cache.dim_size(2)
        var head_dim = k_cache.dim_size(3)
        var n_heads = x.dim_size(0) * n_head  # number of heads of all sequences
        var n_audio_heads = cross_k.dim_size(0) * n_head
        var n_kv = cross_k.dim_size(2)
        var n_queries = n_rows // cross_k.dim_size(0)  # number of queries per window
        var n_mlp = mlp_0.dim_size(0)
        var n_past = Int(positions.unsafe_ptr().unsafe_load(0))
        var keys = rebind[Floats](k_cache.unsafe_ptr())
        var values = rebind[Floats](v_cache.unsafe_ptr())
        var table = rebind[Pointer[Int64, MutAnyOrigin]](page_table.unsafe_ptr())
        var audio_keys = rebind[Numbers[kv_dtype]](cross_k.unsafe_ptr())
        var audio_values = rebind[Numbers[kv_dtype]](cross_v.unsafe_ptr())
        var inputs = x.unsafe_ptr()
        var n_tasks = n_workers(n_rows * n_state * n_state * 14, n_state)
        var counters_memory = Phases.memory(N_PHASES)
        var counters = counters_memory.unsafe_ptr()

        var o = Array[Floats, n_outputs](uninitialized=True)
        comptime for i in range(n_outputs):
            o[i] = rebind[Floats](outputs[i].unsafe_ptr())
        var b = Array[Floats, n_vectors](uninitialized=True)
        comptime for i in range(n_vectors):
            b[i] = rebind[Floats](vectors[i].unsafe_ptr())
        # Scales follow the other vectors if the matrices are quantized; otherwise no scale is read.
        var s = Array[Floats, N_MATRICES](uninitialized=True)
        comptime for i in range(N_MATRICES):
            comptime if n_vectors > N_VECTORS:
                s[i] = b[N_VECTORS + i]
            else:
                s[i] = b[0]
        var w = Array[Numbers[dtype], N_MATRICES](uninitialized=True)
        w[ATTN_QUERY_WEIGHT] = rebind[Numbers[dtype]](query.unsafe_ptr())
        w[ATTN_KEY_WEIGHT] = rebind[Numbers[dtype]](key.unsafe_ptr())
        w[ATTN_VALUE_WEIGHT] = rebind[Numbers[dtype]](value.unsafe_ptr())
        w[ATTN_OUT_WEIGHT] = rebind[Numbers[dtype]](attn_out.unsafe_ptr())
        w[CROSS_ATTN_QUERY_WEIGHT] = rebind[Numbers[dtype]](cross_query.unsafe_ptr())
        w[CROSS_ATTN_OUT_WEIGHT] = rebind[Numbers[dtype]](cross_out.unsafe_ptr())
        w[MLP_0_WEIGHT] = rebind[Numbers[dtype]](mlp_0.unsafe_ptr())
        w[MLP_2_WEIGHT] = rebind[Numbers[dtype]](mlp_2.unsafe_ptr())

        def work(core: Int) {
            imm n, imm n_state, imm n_rows, imm n_head, imm n_ctx, imm head_dim, imm n_heads, imm n_audio_heads, imm n_kv, imm n_queries,
            imm n_mlp, imm n_past, imm keys, imm values, imm table, imm audio_keys, imm audio_values, imm inputs, imm n_tasks, imm counters,
            imm o, imm b, imm s, imm w
        }:
            var phases = Phases(rebind[Counters](counters))
            var memory = List[Float32](unsafe_uninit_length=max(n_past + n, QUERIES * n_kv))
            var weights = rebind[Floats](memory.unsafe_ptr())

            layer_norm(phases, n_tasks, o[ATTN_LN], inputs, b[ATTN_LN_WEIGHT], b[ATTN_LN_BIAS], n_rows, n_state)
            var part = phases.first(n_tasks)  # query, key and value are computed in one phase
            while part >= 0:
                var start = part * n_state // n_tasks
                var end = (part + 1) * n_state // n_tasks
                var x = o[ATTN_LN]
                multiply[True](
                    o[ATTN_QUERY], x, w[ATTN_QUERY_WEIGHT], s[ATTN_QUERY_WEIGHT], b[ATTN_QUERY_BIAS], n_rows, n_state, n_state, start, end
                )
                multiply[False](
                    o[ATTN_KEY], x, w[ATTN_KEY_WEIGHT], s[ATTN_KEY_WEIGHT], b[ATTN_QUERY_BIAS], n_rows, n_state, n_state, start, end
                )
                multiply[True](
                    o[ATTN_VALUE], x, w[ATTN_VALUE_WEIGHT], s[ATTN_VALUE_WEIGHT], b[ATTN_VALUE_BIAS], n_rows, n_state, n_state, start, end
                )
                part = phases.next()
            attend_to_cache(
                phases, o[ATTN_CONTEXT], o[ATTN_QUERY], o[ATTN_KEY], o[ATTN_VALUE], keys, values, table, weights,
                n_heads, n, n_past, n_head, n_ctx, head_dim
            )
            residual_layer[dtype](
                phases, n_tasks, o[ATTN_RESIDUAL], o[ATTN_OUT], inputs, o[ATTN_CONTEXT],
                w[ATTN_OUT_WEIGHT], s[ATTN_OUT_WEIGHT], b[ATTN_OUT_BIAS], n_rows, n_state, n_state
            )

            layer_norm(
                phases, n_tasks, o[CROSS_ATTN_LN], o[ATTN_RESIDUAL], b[CROSS_ATTN_LN_WEIGHT], b[CROSS_ATTN_LN_BIAS], n_rows, n_state
            )
            linear_layer[dtype, False](
                phases, n_tasks, o[CROSS_ATTN_QUERY], o[CROSS_ATTN_QUERY], o[CROSS_ATTN_LN],
                w[CROSS_ATTN_QUERY_WEIGHT], s[CROSS_ATTN_QUERY_WEIGHT], b[CROSS_ATTN_QUERY_BIAS], n_rows, n_state, n_state
            )
            attend_to_audio[kv_dtype](
                phases, o[CROSS_ATTN_CONTEXT], o[CROSS_ATTN_QUERY], audio_keys, audio_values, weights,
                n_audio_heads, n_queries, n_kv, n_head, head_dim
            )
            residual_layer[dtype](
                phases, n_tasks, o[CROSS_ATTN_RESIDUAL], o[CROSS_ATTN_OUT], o[ATTN_RESIDUAL], o[CROSS_ATTN_CONTEXT],
                w[CROSS_ATTN_OUT_WEIGHT], s[CROSS_ATTN_OUT_WEIGHT], b[CROSS_ATTN_OUT_BIAS], n_rows, n_state, n_state
            )

            layer_norm(phases, n_tasks, o[MLP_LN], o[CROSS_ATTN_RESIDUAL], b[MLP_LN_WEIGHT], b[MLP_LN_BIAS], n_rows, n_state)
            linear_layer[dtype, True](
                phases, n_tasks, o[MLP_GELU], o[MLP_0], o[MLP_LN],
                w[MLP_0_WEIGHT], s[MLP_0_WEIGHT], b[MLP_0_BIAS], n_rows, n_state, n_mlp
            )
            residual_layer[dtype](
                phases, n_tasks, o[MLP_RESIDUAL], o[MLP_2], o[CROSS_ATTN_RESIDUAL], o[MLP_GELU],
                w[MLP_2_WEIGHT], s[MLP_2_WEIGHT], b[MLP_2_BIAS], n_rows, n_mlp, n_state
            )
            _ = memory^

        sync_parallelize(work, n_tasks)
        _ = counters_memory^
