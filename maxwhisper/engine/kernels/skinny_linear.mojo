"""Products of few rows with a weight matrix, which is read once and widened in registers.

For one or two rows, reading the weights takes most of the time, so they are read as one stream and
prefetched. For more rows, multiply-adds take most of the time, so the sums of a tile of rows and
outputs stay in registers.
"""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys import size_of
from std.sys.intrinsics import PrefetchOptions, prefetch

from .parallel import n_workers
from .tile import WIDTH, Floats

comptime ROWS = 4  # rows of x in a tile
# The default number of beams, which has its own tile size. A tile of 4 rows and one of 1 would be
# slower, because the additions of a single row wait for each other.
comptime BEAMS = 5
comptime LINE[dtype: DType] = max(1, 64 // (WIDTH * size_of[dtype]()))  # vectors in a cache line
comptime AHEAD = 4096  # distance of prefetching, in elements of the weights


@always_inline
def tile[
    n_rows: Int, n_outputs: Int, unroll: Int, biased: Bool, dtype: DType
](y: Floats, x: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], scale: Floats, bias: Floats, n_in: Int, n_out: Int):
    """Multiply n_rows rows of x [n, n_in] with n_outputs rows of weight [n_out, n_in].

    Each sum is computed as WIDTH * unroll partial sums.
    """
    comptime STEP = WIDTH * unroll
    var sums = Array[SIMD[DType.float32, WIDTH], n_rows * n_outputs * unroll](fill=0)
    var whole = n_in // STEP * STEP
    for j in range(0, whole, STEP):
        comptime for o in range(n_outputs):
            comptime for u in range(unroll):
                var at = o * n_in + j + u * WIDTH
                comptime if u % LINE[dtype] == 0:
                    prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](weight.unsafe_offset(at + AHEAD))
                var w = weight.unsafe_load[width=WIDTH](at).cast[DType.float32]()
                comptime for i in range(n_rows):
                    comptime s = (i * n_outputs + o) * unroll + u
                    sums[s] = x.unsafe_load[width=WIDTH](i * n_in + j + u * WIDTH).fma(w, sums[s])
    comptime for i in range(n_rows):
        comptime for o in range(n_outputs):
            comptime s = (i * n_outputs + o) * unroll
            comptime for u in range(1, unroll):
                sums[s] += sums[s + u]
            var sum = sums[s].reduce_add()
            for j in range(whole, n_in):
                sum += x.unsafe_load(i * n_in + j) * weight.unsafe_load(o * n_in + j).cast[DType.float32]()
            comptime if dtype.is_integral():
                sum *= scale.unsafe_load(o)
            comptime if biased:
                sum += bias.unsafe_load(o)
            y.unsafe_store(i * n_out + o, sum)


@always_inline
def all_rows[
    n_outputs: Int, unroll: Int, biased: Bool, dtype: DType
](y: Floats, x: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], scale: Floats, bias: Floats, n: Int, n_in: Int, n_out: Int):
    """Multiply all n rows of x with n_outputs rows of weight."""
    var i = 0
    while n - i >= ROWS and n - i != BEAMS:
        tile[ROWS, n_outputs, unroll, biased](y.unsafe_offset(i * n_out), x.unsafe_offset(i * n_in), weight, scale, bias, n_in, n_out)
        i += ROWS
    if n - i == BEAMS:
        tile[BEAMS, n_outputs, unroll, biased](y.unsafe_offset(i * n_out), x.unsafe_offset(i * n_in), weight, scale, bias, n_in, n_out)
        i += BEAMS
    while i < n:
        tile[1, n_outputs, unroll, biased](y.unsafe_offset(i * n_out), x.unsafe_offset(i * n_in), weight, scale, bias, n_in, n_out)
        i += 1


@no_inline
def multiply[
    biased: Bool, dtype: DType
](y: Floats, x: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], scale: Floats, bias: Floats, n: Int, n_in: Int, n_out: Int, start: Int, end: Int):
    """Compute the outputs from start to end for all rows."""
    var o = start
    if n >= ROWS:
        while o + 2 <= end:
            all_rows[2, 2, biased](y.unsafe_offset(o), x, weight.unsafe_offset(o * n_in), scale.unsafe_offset(o), bias.unsafe_offset(o), n, n_in, n_out)
            o += 2
    while o < end:
        all_rows[1, 4, biased](y.unsafe_offset(o), x, weight.unsafe_offset(o * n_in), scale.unsafe_offset(o), bias.unsafe_offset(o), n, n_in, n_out)
        o += 1


def parallel_multiply[
    dtype: DType
](y: Floats, x: Floats, weight: Pointer[Scalar[dtype], MutAnyOrigin], scale: Floats, n: Int, n_in: Int, n_out: Int) raises:
    """Divide the outputs, and so the weights, among the cores."""
    var n_tasks = n_workers(n * n_in * n_out, n_out)
    var share = ceildiv(n_out, n_tasks)

    def outputs(task: Int) {imm y, imm x, imm weight, imm scale, imm n, imm n_in, imm n_out, imm share}:
        multiply[False](y, x, weight, scale, scale, n, n_in, n_out, task * share, min(n_out, task * share + share))

    sync_parallelize(outputs, n_tasks)


@register("maxwhisper.skinny_linear")
struct SkinnyLinear:
    """Product x [n, n_in] @ weight [n_out, n_in].T for few rows."""

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        weight: InputTensor[rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        parallel_multiply(
            y.unsafe_ptr(), x.unsafe_ptr(), weight.unsafe_ptr(), x.unsafe_ptr(), x.dim_size(0), x.dim_size(1), weight.dim_size(0)
        )


@register("maxwhisper.skinny_linear_int8")
struct SkinnyLinearInt8:
    """Product x [n, n_in] @ (int8 weight [n_out, n_in] * scale [n_out]).T for few rows."""

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        weight: InputTensor[rank=2, ...],
        scale: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        parallel_multiply(
            y.unsafe_ptr(), x.unsafe_ptr(), weight.unsafe_ptr(), scale.unsafe_ptr(), x.dim_size(0), x.dim_size(1), weight.dim_size(0)
        )
