"""Hugging Face's format: `config.json` and one or several `.safetensors` files in a folder."""

import json
import re
from pathlib import Path

import numpy as np
import safetensors

from maxwhisper.checkpoint.alignment_heads import read_heads
from maxwhisper.checkpoint.checkpoint import MALFORMED, Checkpoint, widen_bfloat16
from maxwhisper.checkpoint.dimensions import ModelDimensions
from maxwhisper.errors import CheckpointError

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
# Parts of Hugging Face's names and of OpenAI's, replaced in this order.
RENAMED = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.", ".attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)
TIED = "proj_out.weight"  # the LM head, a second name of the token embedding
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}


def read_huggingface(folder: Path, files: list[Path]) -> Checkpoint:
    """Read the weights in `files`, whose sizes `config.json` in `folder` states.

    Raises CheckpointError where a file is missing or damaged, or holds no Whisper model.
    """
    config_path = folder / "config.json"
    try:
        config = json.loads(config_path.read_text())
        dims = ModelDimensions(**{ours: config[theirs] for ours, theirs in CONFIG_KEYS.items()})
    except OSError as error:
        raise CheckpointError(f"{config_path} can't be read ({error.strerror}); it must lie beside the weights") from error
    except MALFORMED as error:
        raise CheckpointError(f"{config_path} is damaged or not a Whisper model's ({error!r})") from error
    weights: dict[str, np.ndarray] = {}
    heads = read_heads(folder / "generation_config.json", dims.n_text_layer, dims.n_text_head)
    for path in files:
        try:
            tensors = safetensors.deserialize(path.read_bytes())
            weights |= {_openai_name(name): _array(tensor) for name, tensor in tensors if name != TIED}
        except OSError as error:
            raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
        except (safetensors.SafetensorError, *MALFORMED) as error:
            raise CheckpointError(f"{path} is damaged ({error}); get it anew") from error
    return Checkpoint(dims, weights, str(folder), heads)


def _openai_name(name: str) -> str:
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def _array(tensor: dict) -> np.ndarray:
    array = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return widen_bfloat16(array) if tensor["dtype"] == "BF16" else array
