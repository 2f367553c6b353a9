"""Layer norm and GELU, row by row.

MAX's own take its compiler about five seconds for each graph that has them.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import erf, sqrt

from .parallel import n_workers
from .tile import WIDTH, Floats

comptime EPSILON = Float32(1e-5)
comptime COST = 16  # of an element of a row, in multiply-adds


@always_inline
def normalise(y: Floats, x: Floats, weight: Floats, bias: Floats, n: Int):
    """Compute the layer norm of a row of n elements.

    The mean's rounding error is subtracted again (the corrected two-pass algorithm of Chan, Golub
    and LeVeque, 1983), because it is large if all elements are almost the same.
    """
    var whole = n // WIDTH * WIDTH
    var sums = SIMD[DType.float32, WIDTH](0)
    for i in range(0, whole, WIDTH):
        sums += x.unsafe_load[width=WIDTH](i)
    var sum = sums.reduce_add()
    for i in range(whole, n):
        sum += x.unsafe_load(i)
    var mean = sum / Float32(n)
    var errors = SIMD[DType.float32, WIDTH](0)
    sums = SIMD[DType.float32, WIDTH](0)
    for i in range(0, whole, WIDTH):
        var centred = x.unsafe_load[width=WIDTH](i) - mean
        errors += centred
        sums = centred.fma(centred, sums)
    var error = errors.reduce_add()
    var squares = sums.reduce_add()
    for i in range(whole, n):
        error += x.unsafe_load(i) - mean
        squares += (x.unsafe_load(i) - mean) ** 2
    error /= Float32(n)
    var factor = 1 / sqrt(max(squares / Float32(n) - error * error, 0) + EPSILON)
    for i in range(0, whole, WIDTH):
        var normal = (x.unsafe_load[width=WIDTH](i) - mean - error) * factor
        y.unsafe_store(i, normal.fma(weight.unsafe_load[width=WIDTH](i), bias.unsafe_load[width=WIDTH](i)))
    for i in range(whole, n):
        y.unsafe_store(i, (x.unsafe_load(i) - mean - error) * factor * weight.unsafe_load(i) + bias.unsafe_load(i))


@always_inline
def gelu(y: Floats, x: Floats, n: Int):
    """Compute the exact GELU of n elements."""
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


@register("maxwhisper.layer_norm")
struct LayerNorm:
    """Layer norm of some rows of each sequence."""

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=3, ...],  # [n_seq, n_rows, n_state]
        x: InputTensor[dtype=DType.float32, rank=3, ...],  # [n_seq, n, n_state]
        rows: InputTensor[dtype=DType.int64, rank=1, ...],  # [n_rows], or empty for all
        weight: InputTensor[dtype=DType.float32, rank=1, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_rows = y.dim_size(1)
        var n_all = y.dim_size(0) * n_rows
        var n = x.dim_size(1)
        var n_state = x.dim_size(2)
        var results = y.unsafe_ptr()
        var inputs = x.unsafe_ptr()
        var wanted = rows.unsafe_ptr()
        var n_wanted = rows.dim_size(0)
        var weights = weight.unsafe_ptr()
        var biases = bias.unsafe_ptr()
        var n_tasks = n_workers(COST * n_all * n_state, n_all)

        def share(task: Int) {
            imm results, imm inputs, imm wanted, imm n_wanted, imm weights, imm biases, imm n_all, imm n_rows, imm n, imm n_state, imm n_tasks
        }:
            for i in range(task * n_all // n_tasks, (task + 1) * n_all // n_tasks):
                var sequence, row = divmod(i, n_rows)
                var at = sequence * n + (Int(wanted.unsafe_load(row)) if n_wanted > 0 else row)
                normalise(results.unsafe_offset(i * n_state), inputs.unsafe_offset(at * n_state), weights, biases, n_state)

        sync_parallelize(share, n_tasks)


@register("maxwhisper.gelu")
struct Gelu:
    """GELU of the elements of x [n, n_state]."""

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=2, ...], x: InputTensor[dtype=DType.float32, rank=2, ...], ctx: DeviceContext
    ) raises:
        var n = x.dim_size(0)
        var n_state = x.dim_size(1)
        var results = y.unsafe_ptr()
        var rows = x.unsafe_ptr()
        var n_tasks = n_workers(COST * n * n_state, n)

        def share(task: Int) {imm results, imm rows, imm n, imm n_state, imm n_tasks}:
            var first = task * n // n_tasks
            var end = (task + 1) * n // n_tasks
            gelu(results.unsafe_offset(first * n_state), rows.unsafe_offset(first * n_state), (end - first) * n_state)

        sync_parallelize(share, n_tasks)
