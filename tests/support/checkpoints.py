"""Random checkpoints, and writers of the three file formats.

The files are like those of the formats' own programs.
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from maxwhisper.checkpoint import LM_HEAD, Checkpoint, ModelDimensions, weight_shapes

# Sizes of a small model: one layer, two heads and 8 channels in encoder and decoder.
SMALL = ModelDimensions(80, 16, 8, 2, 1, 51864, 12, 8, 2, 1)


def random_checkpoint(dims: ModelDimensions, dtype: type = np.float16, seed: int = 0, tied: bool = True) -> Checkpoint:
    """Return a checkpoint of random weights, small enough that activations stay finite.

    Args:
        dims: The sizes of the model.
        dtype: The NumPy type of the weights.
        seed: The seed of the random numbers.
        tied: Whether the LM head is the token embedding.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(dims, tied).items():
        offset = 1.0 if re.search(r"ln(_post)?\.weight$", name) else 0.0
        weights[name] = (offset + 0.1 * rng.standard_normal(shape, np.float32)).astype(dtype)
    return Checkpoint(dims, weights, "random")


def write_openai(path: Path, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Path:
    """Write a file like OpenAI's: `torch.save` of the dimensions and the state dict."""
    torch.save({"dims": vars(checkpoint.dims).copy(), "model_state_dict": openai_state(checkpoint, dtype)}, path)
    return path


def write_huggingface(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype | None = None, n_files: int = 1) -> Path:
    """Write a folder like that of `WhisperForConditionalGeneration.save_pretrained`.

    If `n_files` is above 1, an index says which file contains which weight.
    """
    write_files(write_config(folder, checkpoint), huggingface_state(checkpoint, dtype), n_files=n_files)
    return folder


def write_config(folder: Path, checkpoint: Checkpoint, **entries: object) -> Path:
    """Write the `config.json` of Hugging Face's format, with additional entries."""
    d = checkpoint.dims
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "whisper",
        "d_model": d.n_audio_state,
        "num_mel_bins": d.n_mels,
        "vocab_size": d.n_vocab,
        "max_source_positions": d.n_audio_ctx,
        "max_target_positions": d.n_text_ctx,
        "encoder_layers": d.n_audio_layer,
        "encoder_attention_heads": d.n_audio_head,
        "decoder_layers": d.n_text_layer,
        "decoder_attention_heads": d.n_text_head,
    }
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def write_files(
    folder: Path, state: Mapping[str, torch.Tensor], name: str = "model.safetensors", n_files: int = 1
) -> None:
    """Write a state dict to one file, or to several files and their index.

    Args:
        folder: The folder of the files.
        state: The tensors, by name.
        name: The name of a single file. If it ends in `.safetensors`, files have that format;
            otherwise they have PyTorch's.
        n_files: The number of files.
    """
    stem, _, ending = name.rpartition(".")
    save = safetensors.torch.save_file if ending == "safetensors" else torch.save
    names = [name] if n_files == 1 else [f"{stem}-{i + 1:05d}-of-{n_files:05d}.{ending}" for i in range(n_files)]
    parts = [dict(list(state.items())[i::n_files]) for i in range(n_files)]
    for file, part in zip(names, parts):
        save(part, folder / file)
    if n_files > 1:
        weight_map = {key: file for file, part in zip(names, parts) for key in part}
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def openai_state(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the weights as tensors, with OpenAI's names."""
    return {name: torch.from_numpy(array.copy()).to(dtype) for name, array in checkpoint.weights.items()}


def huggingface_state(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the weights as tensors, with Hugging Face's names.

    Tied weights are stored once, as safetensors does.
    """
    return {_huggingface_name(name): tensor for name, tensor in openai_state(checkpoint, dtype).items()}


def _huggingface_name(name: str) -> str:
    half, _, rest = name.partition(".")
    fixed = {
        "encoder.positional_embedding": "encoder.embed_positions.weight",
        "decoder.positional_embedding": "decoder.embed_positions.weight",
        "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
    }
    if name == LM_HEAD:
        return "proj_out.weight"
    if name in fixed:
        return f"model.{fixed[name]}"
    if rest.startswith(("ln.", "ln_post.")):
        return f"model.{half}.layer_norm.{rest.rpartition('.')[2]}"
    if not rest.startswith("blocks."):
        return f"model.{name}"
    _, layer, part, *path = rest.split(".")
    kind = path[-1]
    if part == "mlp":
        module = {"0": "fc1", "2": "fc2"}[path[0]]
    elif part.endswith("_ln"):
        module = {
            "attn_ln": "self_attn_layer_norm",
            "cross_attn_ln": "encoder_attn_layer_norm",
            "mlp_ln": "final_layer_norm",
        }[part]
    else:
        projection = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}[path[0]]
        module = {"attn": "self_attn", "cross_attn": "encoder_attn"}[part] + f".{projection}"
    return f"model.{half}.layers.{layer}.{module}.{kind}"


def write_ctranslate2(path: Path, checkpoint: Checkpoint, quantization: str = "") -> Path:
    """Write a file like that of CTranslate2's Whisper converter.

    Projections are stacked, keys have a bias of zeros, and a tied LM head is an alias. Weights of
    type uint16 are the bits of bfloat16 numbers. With the quantization "int8", matrices and
    convolutions are int8, all else float32; with "int8_float16" all else is float16.
    """
    d, w = checkpoint.dims, checkpoint.weights
    variables: dict[str, np.ndarray] = {
        "encoder/num_heads": np.array(d.n_audio_head, np.int16),
        "decoder/num_heads": np.array(d.n_text_head, np.int16),
        "decoder/alignment_heads": np.array([[1, 0], [2, 5]], np.int16),
        "decoder/pre_norm": np.array(1, np.int8),
        "encoder/position_encodings/encodings": w["encoder.positional_embedding"],
        "decoder/position_encodings/encodings": w["decoder.positional_embedding"],
        "decoder/embeddings/weight": w["decoder.token_embedding.weight"],
        "encoder/conv1/weight": w["encoder.conv1.weight"],
        "encoder/conv1/bias": w["encoder.conv1.bias"],
        "encoder/conv2/weight": w["encoder.conv2.weight"],
        "encoder/conv2/bias": w["encoder.conv2.bias"],
    }

    def layer_norm(ctranslate2: str, openai: str) -> None:
        variables[f"{ctranslate2}/gamma"], variables[f"{ctranslate2}/beta"] = w[f"{openai}.weight"], w[f"{openai}.bias"]

    def linear(ctranslate2: str, *openai: str) -> None:
        zeros = np.zeros(len(w[f"{openai[0]}.weight"]), w[f"{openai[0]}.weight"].dtype)
        variables[f"{ctranslate2}/weight"] = np.concatenate([w[f"{path}.weight"] for path in openai])
        variables[f"{ctranslate2}/bias"] = np.concatenate([w.get(f"{path}.bias", zeros) for path in openai])

    layer_norm("encoder/layer_norm", "encoder.ln_post")
    layer_norm("decoder/layer_norm", "decoder.ln")
    for half, n_layer in (("encoder", d.n_audio_layer), ("decoder", d.n_text_layer)):
        for i in range(n_layer):
            ctranslate2, openai = f"{half}/layer_{i}", f"{half}.blocks.{i}"
            layer_norm(f"{ctranslate2}/self_attention/layer_norm", f"{openai}.attn_ln")
            linear(
                f"{ctranslate2}/self_attention/linear_0",
                *(f"{openai}.attn.{name}" for name in ("query", "key", "value")),
            )
            linear(f"{ctranslate2}/self_attention/linear_1", f"{openai}.attn.out")
            if half == "decoder":
                layer_norm(f"{ctranslate2}/attention/layer_norm", f"{openai}.cross_attn_ln")
                linear(f"{ctranslate2}/attention/linear_0", f"{openai}.cross_attn.query")
                linear(f"{ctranslate2}/attention/linear_1", f"{openai}.cross_attn.key", f"{openai}.cross_attn.value")
                linear(f"{ctranslate2}/attention/linear_2", f"{openai}.cross_attn.out")
            layer_norm(f"{ctranslate2}/ffn/layer_norm", f"{openai}.mlp_ln")
            linear(f"{ctranslate2}/ffn/linear_0", f"{openai}.mlp.0")
            linear(f"{ctranslate2}/ffn/linear_1", f"{openai}.mlp.2")
    head = "decoder/projection/weight"
    aliases = {} if LM_HEAD in w else {head: "decoder/embeddings/weight"}
    if LM_HEAD in w:
        variables[head] = w[LM_HEAD]
    if quantization:
        variables = _quantized(variables, np.float16 if quantization == "int8_float16" else np.float32)
    path.write_bytes(ctranslate2_bytes(variables, aliases))
    return path


def _quantized(variables: dict[str, np.ndarray], other: type) -> dict[str, np.ndarray]:
    """Quantize as `ctranslate2.specs.model_spec` does: 127 / max|row| per output."""
    quantized: dict[str, np.ndarray] = {}
    for name, array in variables.items():
        if name.endswith("weight"):
            rows = array.reshape(len(array), -1).astype(np.float32)
            scale = 127 / np.abs(rows).max(axis=1)
            quantized[name] = np.rint(rows * scale[:, None]).astype(np.int8).reshape(array.shape)
            quantized[f"{name}_scale"] = scale
        else:
            quantized[name] = array.astype(other) if array.dtype.kind == "f" else array
    return quantized


def ctranslate2_bytes(variables: dict[str, np.ndarray], aliases: dict[str, str]) -> bytes:
    """Return the bytes of a `model.bin`."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    codes: dict[Any, int] = {
        np.dtype(t): i for i, t in enumerate((np.float32, np.int8, np.int16, np.int32, np.float16, np.uint16))
    }
    parts = [struct.pack("<I", 6), string("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in sorted(variables.items()):
        header = struct.pack(f"<B{array.ndim}IBI", array.ndim, *array.shape, codes[array.dtype], array.nbytes)
        parts += [string(name), header, np.ascontiguousarray(array).tobytes()]
    parts += [struct.pack("<I", len(aliases)), *(string(a) + string(b) for a, b in aliases.items())]
    return b"".join(parts)
