"""The first kernel of a decoding step: token and position embedding."""

from max.gpu import block_dim, block_idx, thread_idx

from .launch import Floats, Int64s, Weights, let_next_start, wait_for_previous


@always_inline
def embed_row[
    dtype: DType
](
    embedding: Floats,
    x: Floats,
    weight: Weights[dtype],
    positional: Weights[DType.float32],
    token: Int,
    position: Int,
    n_state: Int,
):
    """Compute the block's row of the results."""
    var at = Int(block_idx.x) * n_state
    for i in range(Int(thread_idx.x), n_state, Int(block_dim.x)):
        var value = weight.unsafe_load(token * n_state + i).cast[DType.float32]()
        embedding.unsafe_store(at + i, value)
        x.unsafe_store(at + i, value + positional.unsafe_load(position * n_state + i))


def embed_kernel[
    dtype: DType, pdl: Bool
](
    embedding: Floats,  # [n_seq, n, n_state], as x
    x: Floats,
    tokens: Int64s,  # [n_seq, n]
    positions: Int64s,  # [n]
    weight: Weights[dtype],  # [n_vocab, n_state]
    positional: Weights[DType.float32],  # [n_ctx, n_state]
    n: Int32,
    n_state: Int32,
):
    """Embed tokens at their positions, a block each."""
    # The kernels after this one read caches before they wait, so they may start only when all
    # before this one have ended.
    wait_for_previous[pdl]()
    let_next_start[pdl]()
    var row = Int(block_idx.x)
    var sequence = Int(UInt32(row) // UInt32(n))
    var token = Int(tokens.unsafe_load(row))
    var position = Int(positions.unsafe_load(row - sequence * Int(n)))
    embed_row(embedding, x, weight, positional, token, position, Int(n_state))


def embed_last_kernel[
    dtype: DType, pdl: Bool
](
    embedding: Floats,  # [n_seq, 1, n_state], as x
    x: Floats,
    position: Int64s,  # [1], receives the position of the last token
    tokens: Int64s,  # [n_seq, row_length]
    n_tokens: Int64s,  # [1]
    weight: Weights[dtype],
    positional: Weights[DType.float32],
    row_length: Int32,
    n_state: Int32,
):
    """Embed the last token of each sequence, a block each."""
    wait_for_previous[pdl]()
    let_next_start[pdl]()
    var last = Int(n_tokens.unsafe_load(0)) - 1
    if block_idx.x == 0 and thread_idx.x == 0:
        position.unsafe_store(0, Int64(last))
    var token = Int(tokens.unsafe_load(Int(block_idx.x) * Int(row_length) + last))
    embed_row(embedding, x, weight, positional, token, last, Int(n_state))
