"""The decoder's embedding of tokens at their positions."""

from extensibility import InputTensor, OutputTensor, register
from max.gpu.host import DeviceContext


@register("maxwhisper.embed")
struct Embed:
    """Rows of the token embedding, and their sums with rows of the positional embedding."""

    @staticmethod
    def execute[
        dtype: DType
    ](
        embedding: OutputTensor[dtype=DType.float32, rank=3, ...],  # [n_seq, n, n_state], as x
        x: OutputTensor[dtype=DType.float32, rank=3, ...],
        tokens: InputTensor[dtype=DType.int64, rank=2, ...],  # [n_seq, n]
        positions: InputTensor[dtype=DType.int64, rank=1, ...],  # [n]
        weight: InputTensor[dtype=dtype, rank=2, ...],  # [n_vocab, n_state]
        positional: InputTensor[dtype=DType.float32, rank=2, ...],  # [n_ctx, n_state]
        scale: InputTensor[dtype=DType.float32, rank=1, ...],  # [n_vocab], read if weight is int8
        ctx: DeviceContext,
    ) raises:
        var n = positions.dim_size(0)
        var n_state = weight.dim_size(1)
        var embeddings = embedding.unsafe_ptr()
        var sums = x.unsafe_ptr()
        var all_tokens = tokens.unsafe_ptr()
        var all_positions = positions.unsafe_ptr()
        var weights = weight.unsafe_ptr()
        var positionals = positional.unsafe_ptr()
        var scales = scale.unsafe_ptr()
        for i in range(tokens.dim_size(0) * n):
            var token = Int(all_tokens.unsafe_load(i))
            var position = Int(all_positions.unsafe_load(i % n))
            for j in range(n_state):
                var number = weights.unsafe_load(token * n_state + j).cast[DType.float32]()
                comptime if dtype.is_integral():
                    number *= scales.unsafe_load(token)
                embeddings.unsafe_store(i * n_state + j, number)
                sums.unsafe_store(i * n_state + j, number + positionals.unsafe_load(position * n_state + j))
