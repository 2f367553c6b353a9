"""Hugging Face's format: `safetensors`, with `config.json` and `generation_config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from maxwhisper.checkpoint.alignment_heads import Heads, read_heads
from maxwhisper.checkpoint.checkpoint import MALFORMED, widen_bfloat16
from maxwhisper.checkpoint.dimensions import ModelDimensions
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
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
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


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read the weights by the file's own names.

    Raises:
        CheckpointError: if the file can't be read, is damaged, or has a dtype that NumPy lacks.
    """
    try:
        tensors = safetensors.deserialize(path.read_bytes())
        unknown = [(name, tensor["dtype"]) for name, tensor in tensors if tensor["dtype"] not in DTYPES]
        weights = {name: _array(tensor) for name, tensor in tensors if tensor["dtype"] in DTYPES}
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    except (safetensors.SafetensorError, *MALFORMED) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again") from error
    if unknown:
        name, dtype = unknown[0]
        raise CheckpointError(
            f"{path} stores {name} as {dtype}; only floating-point weights can be read, of 16 bits and more"
        )
    return weights


def _array(tensor: dict) -> np.ndarray:
    array = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return widen_bfloat16(array) if tensor["dtype"] == "BF16" else array
