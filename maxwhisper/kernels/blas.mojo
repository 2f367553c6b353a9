"""Products of matrices on a GPU, by its vendor's library, in which float32 stays float32."""

from extensibility import InputTensor, OutputTensor, register
from layout import Coord, TileTensor, row_major
from linalg.matmul.vendor.blas import matmul
from max.gpu.host import DeviceContext


@register("maxwhisper.matmul")
struct Matmul:
    """X [batch, n, n_in] @ y [batch, n_in, n_out], or, transposed, @ y [batch, n_out, n_in].T, for each of the batch."""

    @staticmethod
    def execute[
        dtype: DType, //, transposed: Bool
    ](
        result: OutputTensor[dtype=dtype, rank=3, ...],
        x: InputTensor[dtype=dtype, rank=3, ...],
        y: InputTensor[dtype=dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        var n = result.dim_size(1)
        var n_out = result.dim_size(2)
        var n_in = x.dim_size(2)
        var rows = n_out if transposed else n_in
        var columns = n_in if transposed else n_out
        for b in range(result.dim_size(0)):
            matmul[use_tf32=False](
                ctx,
                TileTensor(result.unsafe_ptr().unsafe_offset(b * n * n_out), row_major(Coord(n, n_out))),
                TileTensor(x.unsafe_ptr().unsafe_offset(b * n * n_in), row_major(Coord(n, n_in))),
                TileTensor(y.unsafe_ptr().unsafe_offset(b * n_in * n_out), row_major(Coord(rows, columns))),
                c_row_major=True,
                transpose_b=transposed,
            )
