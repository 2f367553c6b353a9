"""Attention without a mask.

A few queries at a time: scores with all keys, their exponentials, and the weighted average of the
values.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.runtime import parallelism_level

from .few_queries import add_up, divide, exponentials
from .tile import PANEL, ROWS, Floats, multiply_tile, pack, zero

comptime KEYS = 256  # number of values that are summed in registers before the sums are written


@always_inline
def attend[
    n_queries: Int
](context: Floats, q: Floats, stride: Int, keys: Floats, v: Floats, n_kv: Int, head_dim: Int, weights: Floats):
    """Write softmax(q @ k.T / sqrt(head_dim)) @ v to context, for n_queries rows of one head.

    The rows of context, q and v are `stride` elements apart. keys is k packed into panels. weights
    is memory for [n_queries, n_kv rounded up to a multiple of PANEL].
    """
    var n_weights = ceildiv(n_kv, PANEL) * PANEL
    for key in range(0, n_kv, PANEL):
        multiply_tile[n_queries, False](
            weights.unsafe_offset(key), n_weights, q, stride, keys.unsafe_offset(key * head_dim), PANEL, head_dim
        )
    var sums = Array[Float32, n_queries](fill=0)
    comptime for i in range(n_queries):
        sums[i] = exponentials(weights.unsafe_offset(i * n_weights), n_kv, head_dim)
        zero(context.unsafe_offset(i * stride), head_dim)
    var d = 0
    while d + PANEL <= head_dim:
        for key in range(0, n_kv, KEYS):
            multiply_tile[n_queries, True](
                context.unsafe_offset(d),
                stride,
                weights.unsafe_offset(key),
                n_weights,
                v.unsafe_offset(key * stride + d),
                stride,
                min(KEYS, n_kv - key),
            )
        d += PANEL
    while d < head_dim:
        add_up[n_queries, 1, 1](context.unsafe_offset(d), stride, weights, n_weights, v.unsafe_offset(d), stride, n_kv)
        d += 1
    comptime for i in range(n_queries):
        divide(context.unsafe_offset(i * stride), head_dim, sums[i])


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
            var n_panels = ceildiv(n_kv, PANEL)
            var memory = List[Float32](length=n_panels * PANEL * (head_dim + ROWS), fill=0)
            var keys = rebind[Floats](memory.unsafe_ptr())
            var weights = keys.unsafe_offset(n_panels * PANEL * head_dim)
            var first_key = sequence * n_kv * n_state + h * head_dim
            pack(keys, all_keys.unsafe_offset(first_key), n_state, n_kv, head_dim, 1)
            var values = all_values.unsafe_offset(first_key)
            var at = sequence * n * n_state + h * head_dim
            var i = part * share
            var end = min(i + share, n)
            while i + ROWS <= end:
                var row = at + i * n_state
                attend[ROWS](contexts.unsafe_offset(row), queries.unsafe_offset(row), n_state, keys, values, n_kv, head_dim, weights)
                i += ROWS
            while i < end:
                var row = at + i * n_state
                attend[1](contexts.unsafe_offset(row), queries.unsafe_offset(row), n_state, keys, values, n_kv, head_dim, weights)
                i += 1
            _ = memory^

        sync_parallelize(work, n_heads * n_shares)
