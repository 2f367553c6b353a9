"""Matrix products on a GPU by the vendor's library, without rounding float32 to TF32."""

from _cublas.cublas import (
    Algorithm,
    ComputeType,
    _convert_to_cublas_datatype,
    _convert_to_cublas_transpose,
    check_cublas_error,
    cublasGemmStridedBatchedEx,
    cublasMath_t,
    cublasSetMathMode,
)
from extensibility import InputTensor, OutputTensor, register
from linalg.matmul.vendor.blas import _get_global_handle
from max.gpu.host import DeviceContext


comptime Input = Pointer[NoneType, ImmutAnyOrigin]
comptime Output = Pointer[NoneType, MutAnyOrigin]


@register("maxwhisper.matmul")
struct Matmul:
    """Batched product x [batch, n, n_in] @ y [batch, n_in, n_out], in one call of the library.

    If transposed, y is [batch, n_out, n_in].
    """

    @staticmethod
    def execute[
        dtype: DType, result_dtype: DType, //, transposed: Bool
    ](
        result: OutputTensor[dtype=result_dtype, rank=3, ...],
        x: InputTensor[dtype=dtype, rank=3, ...],
        y: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        var n = Int64(result.dim_size(1))
        var n_out = Int64(result.dim_size(2))
        var n_in = Int64(x.dim_size(2))
        var one = Float32(1)
        var zero = Float32(0)
        # The library is column-major, so it computes y.T @ x.T, which is result.T.
        with ctx.push_context():
            var handle = _get_global_handle[dtype](ctx)._get_cublas()
            check_cublas_error(cublasSetMathMode(handle, cublasMath_t.CUBLAS_DEFAULT_MATH))
            check_cublas_error(
                cublasGemmStridedBatchedEx(
                    handle,
                    _convert_to_cublas_transpose(transposed),
                    _convert_to_cublas_transpose(False),
                    n_out,
                    n,
                    n_in,
                    rebind[Input](Pointer(to=one)),
                    rebind[Input](y.unsafe_ptr()),
                    _convert_to_cublas_datatype[dtype](),
                    n_in if transposed else n_out,
                    n_in * n_out,
                    rebind[Input](x.unsafe_ptr()),
                    _convert_to_cublas_datatype[dtype](),
                    n_in,
                    n * n_in,
                    rebind[Input](Pointer(to=zero)),
                    rebind[Output](result.unsafe_ptr()),
                    _convert_to_cublas_datatype[result_dtype](),
                    n_out,
                    n * n_out,
                    Int64(result.dim_size(0)),
                    ComputeType.COMPUTE_32F,
                    Algorithm.DEFAULT,
                )
            )
