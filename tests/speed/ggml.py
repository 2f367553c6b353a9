"""Write a checkpoint in whisper.cpp's own format, so that it has the same weights."""

import struct
from pathlib import Path

import numpy as np

from maxwhisper.audio import mel_filters
from maxwhisper.checkpoint import Checkpoint
from maxwhisper.tokenizer import get_tokenizer

MAGIC = 0x67676D6C
FLOAT32, FLOAT16 = 0, 1


def write_ggml(checkpoint: Checkpoint, path: Path) -> None:
    """Write `ggml-*.bin` as whisper.cpp's `convert-pt-to-ggml.py` does.

    The file has the model's dimensions, the mel filters, the vocabulary and the weights, in this
    order. Matrices are in float16.
    """
    dims = checkpoint.dims
    audio = (dims.n_vocab, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    text = (dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer, dims.n_mels, FLOAT16)
    filters = mel_filters(dims.n_mels)
    encoding = get_tokenizer(dims.n_vocab >= 51865).encoding
    words = [encoding.decode_single_token_bytes(token) for token in range(encoding.eot_token)]
    with path.open("wb") as file:
        file.write(struct.pack("12i", MAGIC, *audio, *text))
        file.write(struct.pack("2i", *filters.shape) + np.ascontiguousarray(filters, np.float32).tobytes())
        file.write(struct.pack("i", len(words)))
        for word in words:
            file.write(struct.pack("i", len(word)) + word)
        for name, weight in checkpoint.weights.items():
            is_bias = name in ("encoder.conv1.bias", "encoder.conv2.bias")  # stored as a column, as whisper.cpp adds it
            array = weight.reshape(-1, 1) if is_bias else weight
            in_float32 = array.ndim < 2 or is_bias or name.endswith("positional_embedding")
            file.write(struct.pack("3i", array.ndim, len(name), FLOAT32 if in_float32 else FLOAT16))
            file.write(struct.pack(f"{array.ndim}i", *reversed(array.shape)) + name.encode())
            file.write(np.ascontiguousarray(array, np.float32 if in_float32 else np.float16).tobytes())
