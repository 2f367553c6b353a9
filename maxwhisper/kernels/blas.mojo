"""Products of matrices on a GPU, by its vendor's library, in which float32 stays float32."""

from extensibility import InputTensor, OutputTensor, register
from linalg.matmul.vendor.blas import matmul
from max.gpu.host import DeviceContext


@register("maxwhisper.matmul")
struct Matmul:
    """X [n, n_in] @ weight [n_out, n_in].T."""

    @staticmethod
    def execute[
        dtype: DType
    ](
        y: OutputTensor[dtype=dtype, rank=2, ...],
        x: InputTensor[dtype=dtype, rank=2, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        matmul[use_tf32=False](
            ctx,
            y.to_tile_tensor[DType.int64](),
            x.to_tile_tensor[DType.int64](),
            weight.to_tile_tensor[DType.int64](),
            c_row_major=True,
            transpose_b=True,
        )
