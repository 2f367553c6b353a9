"""Keys and values of new tokens behind those of the tokens before, wherever the graph runs."""

from extensibility import InputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from max.algorithm import elementwise
from layout import Coord
from max.gpu.host import DeviceContext


@register("maxwhisper.append_to_cache")
struct AppendToCache:
    """Each of `new` at its position, which stays on the device: nothing waits for it."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        cache: MutableInputTensor[dtype=dtype, rank=5, ...],  # [n_audio, n_group, n_head, n_ctx, head_dim]
        new: InputTensor[dtype=dtype, rank=4, ...],  # [n_audio * n_group, n_head, n, head_dim]
        positions: InputTensor[dtype=DType.int64, rank=1, ...],  # [n]
        ctx: DeviceContext,
    ) raises:
        var to = cache.unsafe_ptr()
        var come = new.unsafe_ptr()
        var places = positions.unsafe_ptr()
        var n_ctx = cache.dim_size(3)
        var n = new.dim_size(2)
        var head_dim = new.dim_size(3)

        @always_inline
        def write[width: Int, alignment: Int = 1](index: Coord) {var to, var come, var places, var n_ctx, var n, var head_dim}:
            var head_and_token, d = divmod(Int(index[0].value()), head_dim)
            var head, token = divmod(head_and_token, n)
            var place = Int(places.unsafe_load(token))
            to.unsafe_store((head * n_ctx + place) * head_dim + d, come.unsafe_load((head * n + token) * head_dim + d))

        elementwise[1, target=target](write, Coord(new.size()), ctx)
