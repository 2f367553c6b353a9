"""Hugging Face's format: `safetensors`, with `config.json` and `generation_config.json`."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import safetensors

from maxwhisper.checkpoint.alignment_heads import Heads, read_heads
from maxwhisper.checkpoint.checkpoint import MALFORMED
from maxwhisper.checkpoint.dimensions import ModelDimensions
from maxwhisper.checkpoint.stored import BFLOAT16, StoredBytes, StoredTensor
from maxwhisper.errors import CheckpointError

# Keys of `config.json` by the names of `ModelDimensions`.
CONFIG_KEYS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
DTYPES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": BFLOAT16,
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
}


@dataclass(frozen=True)
class Config:
    """The configuration of a model."""

    dims: ModelDimensions
    # Whether the token embedding and the LM head are the same weight if only one is stored.
    tied: bool
    alignment_heads: Heads


def read_config(folder: Path) -> Config | None:
    """Read `config.json` and `generation_config.json` of a folder.

    Returns:
        The configuration, or None without a `config.json`.

    Raises:
        CheckpointError: if `config.json` is damaged or not that of a Whisper model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        dims = ModelDimensions(**{name: config[key] for name, key in CONFIG_KEYS.items()})
        tied = bool(config.get("tie_word_embeddings", True))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    except (*MALFORMED, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not a Whisper model's ({error!r})") from error
    return Config(dims, tied, read_heads(folder / "generation_config.json", dims.n_text_layer, dims.n_text_head))


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Find the weights in a file, by the file's own names.

    The file is a u64 number of bytes, that many bytes of JSON, which give dtype, shape and place of
    each weight, and the weights.

    Raises:
        CheckpointError: if the file can't be read, is damaged, or has a dtype that NumPy lacks.
    """
    try:
        with safetensors.safe_open(path, "numpy"):  # checks that places, shapes and the file's size agree
            pass
        content = StoredBytes.of(path)
        (n_header,) = struct.unpack_from("<Q", content.mapped)
        start = struct.calcsize("<Q") + n_header
        header = json.loads(content.mapped[start - n_header : start])
        header.pop("__metadata__", None)
        if unknown := [(name, entry["dtype"]) for name, entry in header.items() if entry["dtype"] not in DTYPES]:
            name, dtype = unknown[0]
            raise CheckpointError(
                f"{path} stores {name} as {dtype}; only floating-point weights can be read, of 16 bits and more"
            )
        return {
            name: StoredTensor(tuple(entry["shape"]), DTYPES[entry["dtype"]], content, start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror or error})") from error
    except (safetensors.SafetensorError, *MALFORMED) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again") from error
