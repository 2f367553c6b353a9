"""Attention without a mask, and its scores alone.

Some queries at a time: scores with all keys, their exponentials, and the weighted average of the
values.
"""

from extensibility import InputTensor, InputVariadicTensors, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, sqrt
from std.runtime import parallelism_level

from .few_queries import Numbers, exponentials, scores
from .tile import DEPTH, PANEL, ROWS, WIDTH, Floats, copy_rows, multiply, pack, zero

comptime QUERIES = 8 * ROWS  # queries that are processed together; their weights stay in the L2 cache


def attend(
    context: Floats, q: Floats, stride: Int, keys: Floats, values: Floats, n: Int, n_kv: Int, head_dim: Int, weights: Floats, averages: Floats
):
    """Write softmax(q @ k.T / sqrt(head_dim)) @ v to context, for n rows of one head.

    The rows of context and q are `stride` elements apart. keys is k packed into panels; values is v
    in panels of columns. weights [n, n_weights(n_kv)] and averages [n, PANEL] are memory.
    """
    var weights_stride = n_weights(n_kv)
    for key in range(0, n_kv, PANEL):
        var panel = keys.unsafe_offset(key * head_dim)
        var next_panel = panel.unsafe_offset(PANEL * head_dim)
        multiply[False](weights.unsafe_offset(key), weights_stride, q, stride, panel, next_panel, n, head_dim)
    var sums = Array[Float32, QUERIES](uninitialized=True)
    for i in range(n):
        sums[i] = exponentials(weights.unsafe_offset(i * weights_stride), n_kv, head_dim)
    for d in range(0, head_dim, PANEL):
        zero(averages, n * PANEL)
        for key in range(0, n_kv, DEPTH):
            var panel = values.unsafe_offset(d * n_kv + key * PANEL)
            var next_panel = panel.unsafe_offset(DEPTH * PANEL)
            multiply[True](averages, PANEL, weights.unsafe_offset(key), weights_stride, panel, next_panel, n, min(DEPTH, n_kv - key))
        for i in range(n):
            for column in range(min(PANEL, head_dim - d)):
                context.unsafe_store(i * stride + d + column, averages.unsafe_load(i * PANEL + column) / sums[i])


def n_weights(n_kv: Int) -> Int:
    """Return the elements from a query's weights to the next query's, with room for whole panels of keys."""
    return ceildiv(n_kv, PANEL) * PANEL + WIDTH  # no power of two, which would put all into the same cache sets


@register("maxwhisper.attention")
struct Attention:
    """Attention in which each query attends to all keys."""

    @staticmethod
    def execute(
        context: OutputTensor[dtype=DType.float32, rank=4, ...],  # [batch, n, n_head, head_dim], as q
        q: InputTensor[dtype=DType.float32, rank=4, ...],
        k: InputTensor[dtype=DType.float32, rank=4, ...],  # [batch, n_kv, n_head, head_dim], as v
        v: InputTensor[dtype=DType.float32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var n = q.dim_size(1)
        var n_head = q.dim_size(2)
        var head_dim = q.dim_size(3)
        var n_kv = k.dim_size(1)
        var n_state = n_head * head_dim
        var n_heads = q.dim_size(0) * n_head  # number of heads of all sequences
        var n_shares = ceildiv(2 * parallelism_level(), n_heads)  # number of parts of a head's queries
        var share = ceildiv(ceildiv(n, n_shares), ROWS) * ROWS
        var contexts = context.unsafe_ptr()
        var queries = q.unsafe_ptr()
        var all_keys = k.unsafe_ptr()
        var all_values = v.unsafe_ptr()

        def work(task: Int) {
            imm contexts, imm queries, imm all_keys, imm all_values, imm n, imm n_head, imm head_dim, imm n_kv, imm n_state, imm n_shares,
            imm share
        }:
            var head, part = divmod(task, n_shares)
            var sequence, h = divmod(head, n_head)
            var n_panel_keys = ceildiv(n_kv, PANEL) * PANEL
            var n_columns = ceildiv(head_dim, PANEL) * PANEL
            var memory = List[Float32](
                length=n_panel_keys * head_dim + n_columns * n_kv + QUERIES * (n_weights(n_kv) + PANEL), fill=0
            )
            var keys = rebind[Floats](memory.unsafe_ptr())
            var values = keys.unsafe_offset(n_panel_keys * head_dim)
            var weights = values.unsafe_offset(n_columns * n_kv)
            var averages = weights.unsafe_offset(QUERIES * n_weights(n_kv))
            var first_key = sequence * n_kv * n_state + h * head_dim
            pack(keys, all_keys.unsafe_offset(first_key), n_state, n_kv, head_dim, 1)
            for d in range(0, head_dim, PANEL):
                copy_rows(
                    values.unsafe_offset(d * n_kv), PANEL, all_values.unsafe_offset(first_key + d), n_state, n_kv, min(PANEL, head_dim - d)
                )
            var at = sequence * n * n_state + h * head_dim
            var end = min((part + 1) * share, n)
            for i in range(part * share, end, QUERIES):
                var row = at + i * n_state
                attend(
                    contexts.unsafe_offset(row), queries.unsafe_offset(row), n_state, keys, values, min(QUERIES, end - i), n_kv, head_dim,
                    weights, averages,
                )
            _ = memory^

        sync_parallelize(work, n_heads * n_shares)


@register("maxwhisper.alignment_scores")
struct AlignmentScores:
    """Scores q @ k.T / sqrt(head_dim) of some cross-attention heads of all layers."""

    @staticmethod
    def execute[
        dtype: DType, n_layers: Int
    ](
        result: OutputTensor[dtype=DType.float32, rank=4, ...],  # [n_audio, n_heads, n, n_kv]
        q: InputTensor[dtype=DType.float32, rank=3, ...],  # [n_audio, n, n_layers * n_head * head_dim]
        heads: InputTensor[dtype=DType.int64, rank=1, ...],  # [n_heads], layer * n_head + head for each
        keys: InputVariadicTensors[dtype=dtype, rank=4, size=n_layers, ...],  # [n_audio, n_head, n_kv, head_dim]
        ctx: DeviceContext,
    ) raises:
        var n_heads = result.dim_size(1)
        var n = result.dim_size(2)
        var n_kv = result.dim_size(3)
        var n_head = keys[0].dim_size(1)
        var head_dim = keys[0].dim_size(3)
        var results = result.unsafe_ptr()
        var wanted = heads.unsafe_ptr()
        var queries = q.unsafe_ptr()
        var k = Array[Numbers[dtype], n_layers](uninitialized=True)
        comptime for i in range(n_layers):
            k[i] = rebind[Numbers[dtype]](keys[i].unsafe_ptr())

        def work(task: Int) {
            imm results, imm wanted, imm queries, imm k, imm n_heads, imm n, imm n_kv, imm n_head, imm head_dim
        }:
            var memory = List[Float32](unsafe_uninit_length=head_dim)
            var scaled = rebind[Floats](memory.unsafe_ptr())
            var factor = 1 / sqrt(Float32(head_dim))
            var audio, i = divmod(task, n_heads)
            var head_number = Int(wanted.unsafe_load(i))
            var layer, head = divmod(head_number, n_head)
            for row in range(n):
                var query = queries.unsafe_offset(((audio * n + row) * n_layers * n_head + head_number) * head_dim)
                for d in range(head_dim):
                    scaled.unsafe_store(d, query.unsafe_load(d) * factor)
                var own_keys = k[layer].unsafe_offset((audio * n_head + head) * n_kv * head_dim)
                scores[1](results.unsafe_offset((task * n + row) * n_kv), scaled, 0, own_keys, n_kv, head_dim)
            _ = memory^

        sync_parallelize(work, result.dim_size(0) * n_heads)
