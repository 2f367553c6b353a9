"""Measure the peak rates of all cores: multiply-adds in registers, and reading memory."""

from extensibility import InputTensor, OutputTensor, register
from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from std.runtime import parallelism_level
from std.sys import simd_width_of

comptime WIDTH = simd_width_of[DType.float32]()
comptime CHAINS = 24  # independent multiply-adds: more than a core executes at once
comptime VECTORS = 8  # independent reads


@register("ceiling.multiply_add")
struct MultiplyAdd:
    """Multiply-adds on each core. Their sums go to y [n_cores], so that none is optimized away."""

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=1, ...],
        x: InputTensor[dtype=DType.float32, rank=1, ...],  # two vectors
        multiply_adds: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var numbers = x.unsafe_ptr()
        var sums_of = y.unsafe_ptr()
        var n_rounds = Int(multiply_adds.unsafe_ptr().unsafe_load(0)) // (CHAINS * WIDTH)

        def work(core: Int) {imm numbers, imm sums_of, imm n_rounds}:
            var sums = Array[SIMD[DType.float32, WIDTH], CHAINS](fill=0)
            var factor = numbers.unsafe_load[width=WIDTH](0)
            var term = numbers.unsafe_load[width=WIDTH](WIDTH)
            for _ in range(n_rounds):
                comptime for i in range(CHAINS):
                    sums[i] = factor.fma(sums[i], term)
            comptime for i in range(1, CHAINS):
                sums[0] += sums[i]
            sums_of.unsafe_store(core, sums[0].reduce_add())

        sync_parallelize(work, y.dim_size(0))


@register("ceiling.read")
struct Read:
    """Sums of x, of which each core reads an equal share. The sums go to y [n_cores]."""

    @staticmethod
    def execute(
        y: OutputTensor[dtype=DType.float32, rank=1, ...],
        x: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var numbers = x.unsafe_ptr()
        var sums_of = y.unsafe_ptr()
        var share = x.dim_size(0) // y.dim_size(0) // (VECTORS * WIDTH) * (VECTORS * WIDTH)

        def work(core: Int) {imm numbers, imm sums_of, imm share}:
            var sums = Array[SIMD[DType.float32, WIDTH], VECTORS](fill=0)
            for at in range(core * share, (core + 1) * share, VECTORS * WIDTH):
                comptime for i in range(VECTORS):
                    sums[i] += numbers.unsafe_load[width=WIDTH](at + i * WIDTH)
            comptime for i in range(1, VECTORS):
                sums[0] += sums[i]
            sums_of.unsafe_store(core, sums[0].reduce_add())

        sync_parallelize(work, y.dim_size(0))
