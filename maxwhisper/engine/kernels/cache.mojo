"""Writing and reading the decoder's KV cache on any device; `decoder_block` has its own code."""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from layout import Coord
from max.algorithm import elementwise
from max.gpu.host import DeviceContext


@register("maxwhisper.append_to_cache")
struct AppendToCache:
    """Write new keys, or values, at their positions into the cache pages.

    Positions and page table are on the device, so the host does not wait.
    """

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        cache: MutableInputTensor[dtype=dtype, rank=4, ...],  # [n_pages, n_head, n_ctx, head_dim]
        new: InputTensor[dtype=dtype, rank=4, ...],  # [n_seq, n_head, n, head_dim]
        positions: InputTensor[dtype=DType.int64, rank=1, ...],  # [n]
        page_table: InputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n_ctx]
        ctx: DeviceContext,
    ) raises:
        var destination = cache.unsafe_ptr()
        var source = new.unsafe_ptr()
        var position_values = positions.unsafe_ptr()
        var table = page_table.unsafe_ptr()
        var n_head = cache.dim_size(1)
        var n_ctx = cache.dim_size(2)
        var n = new.dim_size(2)
        var head_dim = new.dim_size(3)

        @always_inline
        def write[
            width: Int, alignment: Int = 1
        ](index: Coord) {var destination, var source, var position_values, var table, var n_head, var n_ctx, var n, var head_dim}:
            var at = Int(index[0].value())
            var head_and_token, d = divmod(at, head_dim)
            var sequence_and_head, token = divmod(head_and_token, n)
            var sequence, head = divmod(sequence_and_head, n_head)
            var position = Int(position_values.unsafe_load(token))
            var page = Int(table.unsafe_load(sequence * n_ctx + position))
            destination.unsafe_store(((page * n_head + head) * n_ctx + position) * head_dim + d, source.unsafe_load(at))

        elementwise[1, target=target](write, Coord(new.size()), ctx)


@register("maxwhisper.read_cache")
struct ReadCache:
    """Gather the keys, or values, of all positions of each sequence from the cache pages."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        result: OutputTensor[dtype=dtype, rank=4, ...],  # [n_seq, n_head, n_ctx, head_dim]
        cache: InputTensor[dtype=dtype, rank=4, ...],  # as in `AppendToCache`
        page_table: InputTensor[dtype=DType.int64, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        var destination = result.unsafe_ptr()
        var source = cache.unsafe_ptr()
        var table = page_table.unsafe_ptr()
        var n_head = cache.dim_size(1)
        var n_ctx = cache.dim_size(2)
        var head_dim = cache.dim_size(3)

        @always_inline
        def read[
            width: Int, alignment: Int = 1
        ](index: Coord) {var destination, var source, var table, var n_head, var n_ctx, var head_dim}:
            var at = Int(index[0].value())
            var head_and_position, d = divmod(at, head_dim)
            var sequence_and_head, position = divmod(head_and_position, n_ctx)
            var sequence, head = divmod(sequence_and_head, n_head)
            var page = Int(table.unsafe_load(sequence * n_ctx + position))
            destination.unsafe_store(at, source.unsafe_load(((page * n_head + head) * n_ctx + position) * head_dim + d))

        elementwise[1, target=target](read, Coord(result.size()), ctx)
