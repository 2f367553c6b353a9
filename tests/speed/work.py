"""Compute the least work of each stage of Whisper from the model's dimensions and dtypes.

A product of [m, k] with [k, n] is 2 m k n operations. Memory traffic counts only data that can't
stay in a cache: weights in the dtypes of the graphs, keys and values of the audio and of the tokens
so far, and logits. GELU, softmax and layer norm count as no work.
"""

import math
from dataclasses import dataclass

from max.dtype import DType

from maxwhisper import ModelDimensions
from maxwhisper.checkpoint import weight_shapes
from maxwhisper.engine.dtypes import DTypes
from reference.flow.whisper import CROSS_KV

FLOAT32 = DType.float32.size_in_bytes


@dataclass(frozen=True)
class Work:
    """An amount of work."""

    operations: int
    n_bytes: int  # read from and written to memory


def weight_bytes(dims: ModelDimensions, dtypes: DTypes, graph: str) -> int:
    """Return the bytes of the weights that a graph reads.

    The decoder's positions are left out, because a step reads only one of them.
    """

    def graph_that_reads(name: str) -> str:
        return "cross_kv" if CROSS_KV.search(name) else name.split(".", 1)[0]

    shapes = {name: shape for name, shape in weight_shapes(dims).items() if name != "decoder.positional_embedding"}
    return sum(
        math.prod(shape) * dtypes.weights[name].size_in_bytes
        for name, shape in shapes.items()
        if graph_that_reads(name) == graph
    )


def encoder(dims: ModelDimensions, dtypes: DTypes) -> Work:
    """Return the work of computing a window's features from its log-mel spectrogram."""
    n, state = dims.n_audio_ctx, dims.n_audio_state
    convolutions = 2 * 3 * (2 * n * dims.n_mels * state + n * state * state)
    attention = 2 * 4 * n * state * state + 2 * 2 * n * n * state
    mlp = 2 * 2 * n * state * 4 * state
    return Work(convolutions + dims.n_audio_layer * (attention + mlp), weight_bytes(dims, dtypes, "encoder"))


def cross_kv(dims: ModelDimensions, dtypes: DTypes) -> Work:
    """Return the work of computing and writing a window's keys and values for all layers."""
    n, state = dims.n_audio_ctx, dims.n_text_state
    n_written = 2 * dims.n_text_layer * n * state
    return Work(
        2 * n_written * dims.n_audio_state,
        weight_bytes(dims, dtypes, "cross_kv") + n_written * dtypes.cross_kv.size_in_bytes,
    )


def decoder(dims: ModelDimensions, dtypes: DTypes, n: int, n_past: int, n_rows: int = 1) -> Work:
    """Return the work of a decoder call.

    Args:
        dims: the model's dimensions.
        dtypes: the dtypes of its graphs.
        n: number of new tokens.
        n_past: number of tokens in the KV cache before.
        n_rows: number of new tokens whose logits are computed.
    """
    state, layers = dims.n_text_state, dims.n_text_layer
    projections = 2 * 6 * n * state * state  # query, key, value, out; query and out of cross-attention
    attention = 2 * 2 * n * state * (n_past + n / 2 + dims.n_audio_ctx)
    mlp = 2 * 2 * n * state * 4 * state
    logits = n_rows * dims.n_vocab
    audio_kv_bytes = 2 * layers * state * dims.n_audio_ctx * dtypes.cross_kv.size_in_bytes
    token_kv_bytes = 2 * layers * state * (n_past + n) * dtypes.activations.size_in_bytes
    return Work(
        int(layers * (projections + attention + mlp)) + 2 * logits * state,
        weight_bytes(dims, dtypes, "decoder") + audio_kv_bytes + token_kv_bytes + FLOAT32 * logits,
    )
