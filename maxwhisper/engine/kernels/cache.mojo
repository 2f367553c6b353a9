"""Keys and values of a decoder's tokens, written and read wherever the graph runs; on the CPU `decoder_block` does so itself."""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from layout import Coord
from max.algorithm import elementwise
from max.gpu.host import DeviceContext


@register("maxwhisper.append_to_cache")
struct AppendToCache:
    """Each of `new` at its position, in its page. Both stay on the device: nothing waits for them."""

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
        var to = cache.unsafe_ptr()
        var come = new.unsafe_ptr()
        var places = positions.unsafe_ptr()
        var rows = page_table.unsafe_ptr()
        var n_head = cache.dim_size(1)
        var n_ctx = cache.dim_size(2)
        var n = new.dim_size(2)
        var head_dim = new.dim_size(3)

        @always_inline
        def write[
            width: Int, alignment: Int = 1
        ](index: Coord) {var to, var come, var places, var rows, var n_head, var n_ctx, var n, var head_dim}:
            var at = Int(index[0].value())
            var head_and_token, d = divmod(at, head_dim)
            var sequence_and_head, token = divmod(head_and_token, n)
            var sequence, head = divmod(sequence_and_head, n_head)
            var place = Int(places.unsafe_load(token))
            var page = Int(rows.unsafe_load(sequence * n_ctx + place))
            to.unsafe_store(((page * n_head + head) * n_ctx + place) * head_dim + d, come.unsafe_load(at))

        elementwise[1, target=target](write, Coord(new.size()), ctx)


@register("maxwhisper.read_cache")
struct ReadCache:
    """What each sequence has of all positions, from the pages that hold it."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        result: OutputTensor[dtype=dtype, rank=4, ...],  # [n_seq, n_head, n_ctx, head_dim]
        cache: InputTensor[dtype=dtype, rank=4, ...],  # as above
        page_table: InputTensor[dtype=DType.int64, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        var to = result.unsafe_ptr()
        var come = cache.unsafe_ptr()
        var rows = page_table.unsafe_ptr()
        var n_head = cache.dim_size(1)
        var n_ctx = cache.dim_size(2)
        var head_dim = cache.dim_size(3)

        @always_inline
        def read[width: Int, alignment: Int = 1](index: Coord) {var to, var come, var rows, var n_head, var n_ctx, var head_dim}:
            var at = Int(index[0].value())
            var head_and_place, d = divmod(at, head_dim)
            var sequence_and_head, place = divmod(head_and_place, n_ctx)
            var sequence, head = divmod(sequence_and_head, n_head)
            var page = Int(rows.unsafe_load(sequence * n_ctx + place))
            to.unsafe_store(at, come.unsafe_load(((page * n_head + head) * n_ctx + place) * head_dim + d))

        elementwise[1, target=target](read, Coord(result.size()), ctx)
