"""What each stage of Whisper must do at least, from the model's sizes and dtypes.

A product of [m, k] with [k, n] is 2 m k n operations. Of memory only what can't stay in a cache is counted: weights as the graphs hold
them, keys and values of the audio and of the tokens so far, and logits. GELU, softmax and layer norm count nothing.
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
    """Operations, and bytes from and to memory."""

    operations: int
    n_bytes: int


def weight_bytes(dims: ModelDimensions, dtypes: DTypes, graph: str) -> int:
    """Of the weights that a graph reads; of positions a decoder reads next to none."""

    def read_by(name: str) -> str:
        return "cross_kv" if CROSS_KV.search(name) else name.split(".", 1)[0]

    shapes = {name: shape for name, shape in weight_shapes(dims).items() if name != "decoder.positional_embedding"}
    return sum(
        math.prod(shape) * dtypes.weights[name].size_in_bytes
        for name, shape in shapes.items()
        if read_by(name) == graph
    )


def encoder(dims: ModelDimensions, dtypes: DTypes) -> Work:
    """A window's log-mel to its features."""
    n, state = dims.n_audio_ctx, dims.n_audio_state
    convolutions = 2 * 3 * (2 * n * dims.n_mels * state + n * state * state)
    attention = 2 * 4 * n * state * state + 2 * 2 * n * n * state
    mlp = 2 * 2 * n * state * 4 * state
    return Work(convolutions + dims.n_audio_layer * (attention + mlp), weight_bytes(dims, dtypes, "encoder"))


def cross_kv(dims: ModelDimensions, dtypes: DTypes) -> Work:
    """A window's features to keys and values for each decoder layer, which are written."""
    n, state = dims.n_audio_ctx, dims.n_text_state
    kept = 2 * dims.n_text_layer * n * state
    return Work(
        2 * kept * dims.n_audio_state, weight_bytes(dims, dtypes, "cross_kv") + kept * dtypes.cross_kv.size_in_bytes
    )


def decoder(dims: ModelDimensions, dtypes: DTypes, n: int, n_past: int, n_rows: int = 1) -> Work:
    """N tokens behind n_past others, of which n_rows get logits."""
    state, layers = dims.n_text_state, dims.n_text_layer
    projections = 2 * 6 * n * state * state  # query, key, value, out; query and out of cross-attention
    attention = 2 * 2 * n * state * (n_past + n / 2 + dims.n_audio_ctx)
    mlp = 2 * 2 * n * state * 4 * state
    logits = n_rows * dims.n_vocab
    of_audio = 2 * layers * state * dims.n_audio_ctx * dtypes.cross_kv.size_in_bytes
    of_tokens = 2 * layers * state * (n_past + n) * dtypes.activations.size_in_bytes
    return Work(
        int(layers * (projections + attention + mlp)) + 2 * logits * state,
        weight_bytes(dims, dtypes, "decoder") + of_audio + of_tokens + FLOAT32 * logits,
    )
