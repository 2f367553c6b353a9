"""Linear layers of few rows, with what stands before and behind them in a decoder block."""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_idx, grid_dim, warp_id
from max.gpu.sync import barrier
from std.math import erf
from std.utils import StaticTuple

from .lanes import scatter_sums
from .launch import HEAD_DIM, Cache, Floats, Int64s, Weights, let_next_start, wait_for_previous
from .product import (
    THREADS,
    WARPS,
    Place,
    lanes_of,
    load_tile,
    multiply,
    outputs_of,
    outputs_of_block,
)
from .staging import Affine, normalize, normalize_row, put_together, room_for

comptime SQRT_HALF = Float32(0.70710678118654752)
comptime FEW = 8  # rows that are multiplied together, unless there is only one


@always_inline
def gelu(x: Float32) -> Float32:
    """Compute the exact GELU."""
    return 0.5 * x * (1 + erf(x * SQRT_HALF))


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def project_kernel[
    dtype: DType, cache_dtype: DType, n_state: Int, together: Int, pdl: Bool
](
    normed: Floats,  # [n_rows, n_state], as query, key and value
    query: Floats,
    key: Floats,
    value: Floats,
    k_cache: Cache[cache_dtype],  # [n_pages, n_head, n_ctx, HEAD_DIM]
    v_cache: Cache[cache_dtype],
    x: Floats,  # [n_rows, n_state]
    ln_weight: Weights[DType.float32],
    ln_bias: Weights[DType.float32],
    w_query: Weights[dtype],
    w_key: Weights[dtype],
    w_value: Weights[dtype],
    b_query: Weights[DType.float32],
    b_value: Weights[DType.float32],
    page_table: Int64s,  # [n_seq, n_ctx]
    positions: Int64s,  # [n]
    n_rows: Int32,
    n: Int32,  # rows of a sequence
    n_ctx: Int32,
):
    """Compute layer norm, queries, keys and values; write keys and values into the cache, too."""
    comptime outputs = outputs_of[dtype, n_state, 3 * n_state, together]()
    comptime lanes = lanes_of[dtype, n_state]()
    var place = Place[dtype, n_state, 3 * n_state, together]()
    # A group's rows are in one of three matrices. (A division takes long.)
    var which = (1 if place.first_output >= n_state else 0) + (1 if place.first_output >= 2 * n_state else 0)
    var first = place.first_output - which * n_state
    var matrix = w_query if which == 0 else (w_key if which == 1 else w_value)
    var held = load_tile[dtype, n_state, outputs](matrix, first, n_state - 1, 0, place.lane)
    var affine = Affine[n_state](ln_weight, ln_bias)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var staged = room_for[together * n_state]()
    normalize[n_state, together](staged, normed, x, affine, place.first_row, Int(n_rows), block_idx.y == 0)
    var products = multiply[dtype, n_state, outputs, together](held^, matrix, first, n_state - 1, staged, Int(n_rows) - place.first_row, place.lane)
    var sums = scatter_sums[outputs * together, lanes](products, place.lane)
    comptime for i in range(max(1, outputs * together // lanes)):
        var output, row = place.output_and_row(i)
        if place.has_sums() and output < 3 * n_state and row < Int(n_rows):
            var at = output - which * n_state
            var sum = sums[i]
            if which != 1:
                sum += (b_query if which == 0 else b_value).unsafe_load(at)
            (query if which == 0 else (key if which == 1 else value)).unsafe_store(row * n_state + at, sum)
            if which > 0:
                var sequence = Int(UInt32(row) // UInt32(n))
                var position = Int(positions.unsafe_load(row - sequence * Int(n)))
                var page = Int(page_table.unsafe_load(sequence * Int(n_ctx) + position))
                var head = page * (n_state // HEAD_DIM) + at // HEAD_DIM
                (k_cache if which == 1 else v_cache).unsafe_store(
                    (head * Int(n_ctx) + position) * HEAD_DIM + at % HEAD_DIM, sum.cast[cache_dtype]()
                )


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def normed_linear_kernel[
    dtype: DType, n_in: Int, n_out: Int, activates: Bool, together: Int, pdl: Bool
](
    normed: Floats,  # [n_rows, n_in]
    y: Floats,  # [n_rows, n_out]
    activated: Floats,  # [n_rows, n_out] if it activates
    x: Floats,  # [n_rows, n_in]
    ln_weight: Weights[DType.float32],
    ln_bias: Weights[DType.float32],
    weight: Weights[dtype],
    bias: Weights[DType.float32],
    n_rows: Int32,
):
    """Compute layer norm and a linear layer, and its GELU if it `activates`."""
    comptime outputs = outputs_of[dtype, n_in, n_out, together]()
    comptime lanes = lanes_of[dtype, n_in]()
    var place = Place[dtype, n_in, n_out, together]()
    var held = load_tile[dtype, n_in, outputs](weight, place.first_output, n_out - 1, 0, place.lane)
    var affine = Affine[n_in](ln_weight, ln_bias)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var staged = room_for[together * n_in]()
    normalize[n_in, together](staged, normed, x, affine, place.first_row, Int(n_rows), block_idx.y == 0)
    var products = multiply[dtype, n_in, outputs, together](
        held^, weight, place.first_output, n_out - 1, staged, Int(n_rows) - place.first_row, place.lane
    )
    var sums = scatter_sums[outputs * together, lanes](products, place.lane)
    comptime for i in range(max(1, outputs * together // lanes)):
        var output, row = place.output_and_row(i)
        if place.has_sums() and output < n_out and row < Int(n_rows):
            var sum = sums[i] + bias.unsafe_load(output)
            y.unsafe_store(row * n_out + output, sum)
            comptime if activates:
                activated.unsafe_store(row * n_out + output, gelu(sum))


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def attended_linear_kernel[
    dtype: DType, n_state: Int, n_splits: Int, together: Int, pdl: Bool
](
    context: Floats,  # [n_rows, n_state], as y and the sum
    y: Floats,
    sum_with_residual: Floats,
    parts: Floats,  # as in `staging.put_together`
    scales: Floats,
    residual: Floats,  # [n_rows, n_state]
    weight: Weights[dtype],
    bias: Weights[DType.float32],
    n_rows: Int32,
):
    """Put the parts of an attention together, compute the linear layer behind it, add the residual."""
    comptime outputs = outputs_of[dtype, n_state, n_state, together]()
    comptime lanes = lanes_of[dtype, n_state]()
    var place = Place[dtype, n_state, n_state, together]()
    var held = load_tile[dtype, n_state, outputs](weight, place.first_output, n_state - 1, 0, place.lane)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var staged = room_for[together * n_state]()
    put_together[n_state, n_splits, together](
        staged, context, parts, scales, place.first_row, Int(n_rows), block_idx.y == 0
    )
    var products = multiply[dtype, n_state, outputs, together](
        held^, weight, place.first_output, n_state - 1, staged, Int(n_rows) - place.first_row, place.lane
    )
    var sums = scatter_sums[outputs * together, lanes](products, place.lane)
    comptime for i in range(max(1, outputs * together // lanes)):
        var output, row = place.output_and_row(i)
        if place.has_sums() and output < n_state and row < Int(n_rows):
            var at = row * n_state + output
            var sum = sums[i] + bias.unsafe_load(output)
            y.unsafe_store(at, sum)
            sum_with_residual.unsafe_store(at, sum + residual.unsafe_load(at))


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def residual_linear_kernel[
    dtype: DType, n_in: Int, n_out: Int, together: Int, pdl: Bool
](
    y: Floats,  # [n_rows, n_out], as the sum
    sum_with_residual: Floats,
    x: Floats,  # [n_rows, n_in]
    residual: Floats,  # [n_rows, n_out]
    weight: Weights[dtype],
    bias: Weights[DType.float32],
    n_rows: Int32,
):
    """Compute a linear layer, and add the residual."""
    comptime outputs = outputs_of[dtype, n_in, n_out, together]()
    comptime lanes = lanes_of[dtype, n_in]()
    var place = Place[dtype, n_in, n_out, together]()
    var held = load_tile[dtype, n_in, outputs](weight, place.first_output, n_out - 1, 0, place.lane)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var products = multiply[dtype, n_in, outputs, together](
        held^, weight, place.first_output, n_out - 1, x.unsafe_offset(place.first_row * n_in), Int(n_rows) - place.first_row, place.lane
    )
    var sums = scatter_sums[outputs * together, lanes](products, place.lane)
    comptime for i in range(max(1, outputs * together // lanes)):
        var output, row = place.output_and_row(i)
        if place.has_sums() and output < n_out and row < Int(n_rows):
            var at = row * n_out + output
            var sum = sums[i] + bias.unsafe_load(output)
            y.unsafe_store(at, sum)
            sum_with_residual.unsafe_store(at, sum + residual.unsafe_load(at))


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def lm_head_kernel[
    dtype: DType, n_state: Int, n_vocab: Int, together: Int, pdl: Bool
](
    normed: Floats,  # [n_rows, n_state]
    logits: Floats,  # [n_rows, n_vocab]
    x: Floats,  # [n_seq, n, n_state]
    ln_weight: Weights[DType.float32],
    ln_bias: Weights[DType.float32],
    weight: Weights[dtype],
    wanted: Int64s,  # [n_wanted]: which of the n rows of each sequence
    n_rows: Int32,  # n_seq * n_wanted
    n_wanted: Int32,
    n: Int32,
):
    """Compute layer norm and the LM head, of some rows of each sequence.

    A warp goes through many rows of the matrix, while the next ones are on their way.
    """
    comptime outputs = outputs_of[dtype, n_state, n_vocab, together]()
    comptime lanes = lanes_of[dtype, n_state]()
    var place = Place[dtype, n_state, n_vocab, together]()
    var held = load_tile[dtype, n_state, outputs](weight, place.first_output, n_vocab - 1, 0, place.lane)
    var affine = Affine[n_state](ln_weight, ln_bias)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var staged = room_for[together * n_state]()
    for i in range(Int(warp_id()), min(together, Int(n_rows) - place.first_row), WARPS):
        var row = place.first_row + i
        var sequence = Int(UInt32(row) // UInt32(n_wanted))
        var source = sequence * Int(n) + Int(wanted.unsafe_load(row - sequence * Int(n_wanted)))
        normalize_row[n_state](
            staged.unsafe_offset(i * n_state),
            normed.unsafe_offset(row * n_state),
            x.unsafe_offset(source * n_state),
            affine,
            block_idx.y == 0,
        )
    barrier()
    var stride = Int(grid_dim.y) * outputs_of_block[dtype, n_state, n_vocab, together]()
    while place.first_output < n_vocab:
        var next = load_tile[dtype, n_state, outputs](weight, place.first_output + stride, n_vocab - 1, 0, place.lane)
        var products = multiply[dtype, n_state, outputs, together](
            held^, weight, place.first_output, n_vocab - 1, staged, Int(n_rows) - place.first_row, place.lane
        )
        var sums = scatter_sums[outputs * together, lanes](products, place.lane)
        comptime for i in range(max(1, outputs * together // lanes)):
            var output, row = place.output_and_row(i)
            if place.has_sums() and output < n_vocab and row < Int(n_rows):
                logits.unsafe_store(row * n_vocab + output, sums[i])
        held = next^
        place.first_output += stride
