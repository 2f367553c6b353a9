"""A block of the decoder: self-attention to what is cached, cross-attention, and the MLP, for which the cores meet once.

What each of its layers computes is written out, under the names that these have in the model, so that all of it can be judged.
"""

from extensibility import InputTensor, InputVariadicTensors, OutputVariadicTensors, register
from extensibility import _MutableInputTensor as MutableInputTensor
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import erf, sqrt

from .crew import Counters, Crew
from .few_queries import QUERIES, Numbers, attend, attend_in_slots, copy
from .few_rows import multiply
from .parallel import n_workers
from .tile import WIDTH, Floats

comptime EPSILON = Float32(1e-5)
comptime N_PHASES = 11


@always_inline
def normalise(y: Floats, x: Floats, weight: Floats, bias: Floats, n: Int):
    """Layer norm of one row of n."""
    var whole = n // WIDTH * WIDTH
    var sums = SIMD[DType.float32, WIDTH](0)
    for i in range(0, whole, WIDTH):
        sums += x.unsafe_load[width=WIDTH](i)
    var sum = sums.reduce_add()
    for i in range(whole, n):
        sum += x.unsafe_load(i)
    var mean = sum / Float32(n)
    sums = SIMD[DType.float32, WIDTH](0)
    for i in range(0, whole, WIDTH):
        var centred = x.unsafe_load[width=WIDTH](i) - mean
        sums = centred.fma(centred, sums)
    var squares = sums.reduce_add()
    for i in range(whole, n):
        squares += (x.unsafe_load(i) - mean) ** 2
    var factor = 1 / sqrt(squares / Float32(n) + EPSILON)
    for i in range(0, whole, WIDTH):
        var normal = (x.unsafe_load[width=WIDTH](i) - mean) * factor
        y.unsafe_store(i, normal.fma(weight.unsafe_load[width=WIDTH](i), bias.unsafe_load[width=WIDTH](i)))
    for i in range(whole, n):
        y.unsafe_store(i, (x.unsafe_load(i) - mean) * factor * weight.unsafe_load(i) + bias.unsafe_load(i))


@always_inline
def gelu(y: Floats, x: Floats, n: Int):
    """The exact one, of n numbers."""
    comptime ROOT = Float32(0.70710678118654752440)
    var i = 0
    while i + WIDTH <= n:
        var here = x.unsafe_load[width=WIDTH](i)
        y.unsafe_store(i, 0.5 * here * (1 + erf(here * ROOT)))
        i += WIDTH
    while i < n:
        var here = x.unsafe_load(i)
        y.unsafe_store(i, 0.5 * here * (1 + erf(here * ROOT)))
        i += 1


@always_inline
def add(y: Floats, a: Floats, b: Floats, n: Int):
    """Of n numbers."""
    var i = 0
    while i + WIDTH <= n:
        y.unsafe_store(i, a.unsafe_load[width=WIDTH](i) + b.unsafe_load[width=WIDTH](i))
        i += WIDTH
    while i < n:
        y.unsafe_store(i, a.unsafe_load(i) + b.unsafe_load(i))
        i += 1


def layer_norm(mut crew: Crew, n_parts: Int, y: Floats, x: Floats, weight: Floats, bias: Floats, n_rows: Int, n: Int):
    """Layer norm of x [n_rows, n], a phase."""
    var part = crew.first(n_parts)
    while part >= 0:
        for i in range(part * n_rows // n_parts, (part + 1) * n_rows // n_parts):
            normalise(y.unsafe_offset(i * n), x.unsafe_offset(i * n), weight, bias, n)
        part = crew.next()


def add_layer[
    dtype: DType
](
    mut crew: Crew,
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
    """A linear layer of x and the residual around it, a phase: y = x @ weight.T + bias, sum = before + y, of [n_rows, n_out]."""
    var part = crew.first(n_parts)
    while part >= 0:
        var start = part * n_out // n_parts
        var end = (part + 1) * n_out // n_parts
        multiply[True](y, x, weight, scale, bias, n_rows, n_in, n_out, start, end)
        for i in range(n_rows):
            var at = i * n_out + start
            add(sum.unsafe_offset(at), before.unsafe_offset(at), y.unsafe_offset(at), end - start)
        part = crew.next()


@register("maxwhisper.decoder_block")
struct DecoderBlock:
    """All of a block."""

    @staticmethod
    def execute[
        dtype: DType, kv_dtype: DType, n_outputs: Int, n_vectors: Int
    ](
        # attn_ln, query, key, value, context, out, residual; cross_attn_ln, query, context, out, residual; mlp_ln, 0, gelu, 2, residual
        outputs: OutputVariadicTensors[dtype=DType.float32, rank=3, size=n_outputs, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],  # [n_seq, n, n_state]
        k_cache: MutableInputTensor[dtype=DType.float32, rank=4, ...],  # [n_slots, n_head, n_ctx, head_dim]
        v_cache: MutableInputTensor[dtype=DType.float32, rank=4, ...],
        slots: InputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n_ctx]
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
        # weight and bias of attn_ln, cross_attn_ln and mlp_ln; biases of query, value, out, query, out, 0, 2
        vectors: InputVariadicTensors[dtype=DType.float32, rank=1, size=n_vectors, ...],
        ctx: DeviceContext,
    ) raises:
        var n = x.dim_size(1)
        var n_state = x.dim_size(2)
        var n_rows = x.dim_size(0) * n
        var n_head = k_cache.dim_size(1)
        var n_ctx = k_cache.dim_size(2)
        var head_dim = k_cache.dim_size(3)
        var n_heads = x.dim_size(0) * n_head  # of all sequences
        var n_audio_heads = cross_k.dim_size(0) * n_head
        var n_kv = cross_k.dim_size(2)
        var n_queries = n_rows // cross_k.dim_size(0)  # of an audio
        var n_mlp = mlp_0.dim_size(0)
        var n_past = Int(positions.unsafe_ptr().unsafe_load(0))
        var keys = rebind[Floats](k_cache.unsafe_ptr())
        var values = rebind[Floats](v_cache.unsafe_ptr())
        var places = rebind[Pointer[Int64, MutAnyOrigin]](slots.unsafe_ptr())
        var audio_keys = rebind[Numbers[kv_dtype]](cross_k.unsafe_ptr())
        var audio_values = rebind[Numbers[kv_dtype]](cross_v.unsafe_ptr())
        var inputs = x.unsafe_ptr()
        var n_tasks = n_workers(n_rows * n_state * n_state * 14, n_state)
        var counters_memory = Crew.memory(N_PHASES)
        var counters = counters_memory.unsafe_ptr()

        var o = Array[Floats, n_outputs](uninitialized=True)
        comptime for i in range(n_outputs):
            o[i] = rebind[Floats](outputs[i].unsafe_ptr())
        var b = Array[Floats, n_vectors](uninitialized=True)
        comptime for i in range(n_vectors):
            b[i] = rebind[Floats](vectors[i].unsafe_ptr())
        comptime N_MATRICES = 8
        var s = Array[Floats, N_MATRICES](uninitialized=True)  # the scales lie behind the other vectors, if there are any
        comptime for i in range(N_MATRICES):
            s[i] = b[n_vectors - N_MATRICES + i]
        var w = Array[Numbers[dtype], N_MATRICES](uninitialized=True)
        w[0] = rebind[Numbers[dtype]](query.unsafe_ptr())
        w[1] = rebind[Numbers[dtype]](key.unsafe_ptr())
        w[2] = rebind[Numbers[dtype]](value.unsafe_ptr())
        w[3] = rebind[Numbers[dtype]](attn_out.unsafe_ptr())
        w[4] = rebind[Numbers[dtype]](cross_query.unsafe_ptr())
        w[5] = rebind[Numbers[dtype]](cross_out.unsafe_ptr())
        w[6] = rebind[Numbers[dtype]](mlp_0.unsafe_ptr())
        w[7] = rebind[Numbers[dtype]](mlp_2.unsafe_ptr())

        def work(core: Int) {
            imm n, imm n_state, imm n_rows, imm n_head, imm n_ctx, imm head_dim, imm n_heads, imm n_audio_heads, imm n_kv, imm n_queries,
            imm n_mlp, imm n_past, imm keys, imm values, imm places, imm audio_keys, imm audio_values, imm inputs, imm n_tasks, imm counters,
            imm o, imm b, imm s, imm w
        }:
            var crew = Crew(rebind[Counters](counters))
            var memory = List[Float32](unsafe_uninit_length=max(n_past + n, QUERIES * n_kv))
            var weights = rebind[Floats](memory.unsafe_ptr())

            # attn_ln; query, key and value
            layer_norm(crew, n_tasks, o[0], inputs, b[0], b[1], n_rows, n_state)

            var part = crew.first(n_tasks)
            while part >= 0:
                var start = part * n_state // n_tasks
                var end = (part + 1) * n_state // n_tasks
                multiply[True](o[1], o[0], w[0], s[0], b[6], n_rows, n_state, n_state, start, end)
                multiply[False](o[2], o[0], w[1], s[1], b[6], n_rows, n_state, n_state, start, end)
                multiply[True](o[3], o[0], w[2], s[2], b[7], n_rows, n_state, n_state, start, end)
                part = crew.next()

            # The new tokens' keys and values into the cache, and what each of them sees: context
            part = crew.first(n_heads)
            while part >= 0:
                var sequence, head = divmod(part, n_head)
                var own = places.unsafe_offset(sequence * n_ctx)
                var head_keys = keys.unsafe_offset(head * n_ctx * head_dim)
                var head_values = values.unsafe_offset(head * n_ctx * head_dim)
                var slot_size = n_state * n_ctx
                for i in range(n):
                    var at = (sequence * n + i) * n_state + head * head_dim
                    var position = n_past + i
                    var to = Int(own.unsafe_load(position)) * slot_size + position * head_dim
                    copy(head_keys.unsafe_offset(to), o[2].unsafe_offset(at), head_dim)
                    copy(head_values.unsafe_offset(to), o[3].unsafe_offset(at), head_dim)
                    attend_in_slots(
                        o[4].unsafe_offset(at),
                        o[1].unsafe_offset(at),
                        head_keys,
                        head_values,
                        own,
                        slot_size,
                        position + 1,
                        head_dim,
                        weights,
                    )
                part = crew.next()

            # out and residual; cross_attn_ln; query
            add_layer[dtype](crew, n_tasks, o[6], o[5], inputs, o[4], w[3], s[3], b[8], n_rows, n_state, n_state)
            layer_norm(crew, n_tasks, o[7], o[6], b[2], b[3], n_rows, n_state)

            part = crew.first(n_tasks)
            while part >= 0:
                var start = part * n_state // n_tasks
                var end = (part + 1) * n_state // n_tasks
                multiply[True](o[8], o[7], w[4], s[4], b[9], n_rows, n_state, n_state, start, end)
                part = crew.next()

            # All of the audio, by a few queries at a time: context
            part = crew.first(n_audio_heads)
            while part >= 0:
                var audio, head = divmod(part, n_head)
                var own_keys = audio_keys.unsafe_offset(part * n_kv * head_dim)
                var own_values = audio_values.unsafe_offset(part * n_kv * head_dim)
                var at = audio * n_queries * n_state + head * head_dim
                var i = 0
                while i + QUERIES <= n_queries:
                    attend[QUERIES](
                        o[9].unsafe_offset(at), o[8].unsafe_offset(at), n_state, own_keys, own_values, n_kv, head_dim, weights
                    )
                    at += QUERIES * n_state
                    i += QUERIES
                while i < n_queries:
                    attend[1](o[9].unsafe_offset(at), o[8].unsafe_offset(at), n_state, own_keys, own_values, n_kv, head_dim, weights)
                    at += n_state
                    i += 1
                part = crew.next()

            # out and residual; mlp_ln; 0 and gelu; 2 and residual
            add_layer[dtype](crew, n_tasks, o[11], o[10], o[6], o[9], w[5], s[5], b[10], n_rows, n_state, n_state)
            layer_norm(crew, n_tasks, o[12], o[11], b[4], b[5], n_rows, n_state)

            part = crew.first(n_tasks)
            while part >= 0:
                var start = part * n_mlp // n_tasks
                var end = (part + 1) * n_mlp // n_tasks
                multiply[True](o[13], o[12], w[6], s[6], b[11], n_rows, n_state, n_mlp, start, end)
                for i in range(n_rows):
                    gelu(o[14].unsafe_offset(i * n_mlp + start), o[13].unsafe_offset(i * n_mlp + start), end - start)
                part = crew.next()

            add_layer[dtype](crew, n_tasks, o[16], o[15], o[11], o[14], w[7], s[7], b[12], n_rows, n_mlp, n_state)
            _ = memory^

        sync_parallelize(work, n_tasks)
        _ = counters_memory^
