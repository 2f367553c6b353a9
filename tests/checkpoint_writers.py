"""Writes a checkpoint in each of the three formats, the way their own programs do, so that the readers have something to read."""

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


def random_checkpoint(dims: ModelDimensions, dtype: type = np.float16, seed: int = 0, tied: bool = True) -> Checkpoint:
    """Weights of a small normal distribution, so that activations stay finite; tied: the LM head is the token embedding."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(dims, tied).items():
        offset = 1.0 if re.search(r"ln(_post)?\.weight$", name) else 0.0
        weights[name] = (offset + 0.1 * rng.standard_normal(shape, np.float32)).astype(dtype)
    return Checkpoint(dims, weights, "random")


def write_openai(path: Path, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Path:
    """As OpenAI: `torch.save` of the dimensions and the state dict."""
    torch.save({"dims": vars(checkpoint.dims).copy(), "model_state_dict": openai_state(checkpoint, dtype)}, path)
    return path


def write_huggingface(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype | None = None, n_files: int = 1) -> Path:
    """As `transformers.WhisperForConditionalGeneration.save_pretrained`, in one file or in several and their index."""
    write_files(write_config(folder, checkpoint), huggingface_state(checkpoint, dtype), n_files=n_files)
    return folder


def write_config(folder: Path, checkpoint: Checkpoint, **others: object) -> Path:
    """Its `config.json`."""
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
    (folder / "config.json").write_text(json.dumps(config | others))
    return folder


def write_files(
    folder: Path, state: Mapping[str, torch.Tensor], name: str = "model.safetensors", n_files: int = 1
) -> None:
    """A state dict as one file, or as several and their index; as PyTorch's files where the name ends so."""
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
    """The weights as tensors, under OpenAI's names."""
    return {name: torch.from_numpy(array.copy()).to(dtype) for name, array in checkpoint.weights.items()}


def huggingface_state(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The same under Hugging Face's; tied weights are stored once, as safetensors does."""
    return {_huggingface_name(name): tensor for name, tensor in openai_state(checkpoint, dtype).items()}


def _huggingface_name(name: str) -> str:
    room, _, rest = name.partition(".")
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
        return f"model.{room}.layer_norm.{rest.rpartition('.')[2]}"
    if not rest.startswith("blocks."):
        return f"model.{name}"
    _, layer, part, *others = rest.split(".")
    kind = others[-1]
    if part == "mlp":
        module = {"0": "fc1", "2": "fc2"}[others[0]]
    elif part.endswith("_ln"):
        module = {
            "attn_ln": "self_attn_layer_norm",
            "cross_attn_ln": "encoder_attn_layer_norm",
            "mlp_ln": "final_layer_norm",
        }[part]
    else:
        projection = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}[others[0]]
        module = {"attn": "self_attn", "cross_attn": "encoder_attn"}[part] + f".{projection}"
    return f"model.{room}.layers.{layer}.{module}.{kind}"


def write_ctranslate2(path: Path, checkpoint: Checkpoint) -> Path:
    """As CTranslate2's Whisper converter: projections stacked, keys given a bias of zeros, the LM head an alias.

    Weights of type uint16 are taken for the bits of bfloat16.
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

    def layer_norm(theirs: str, ours: str) -> None:
        variables[f"{theirs}/gamma"], variables[f"{theirs}/beta"] = w[f"{ours}.weight"], w[f"{ours}.bias"]

    def linear(theirs: str, *ours: str) -> None:
        zeros = np.zeros(len(w[f"{ours[0]}.weight"]), w[f"{ours[0]}.weight"].dtype)
        variables[f"{theirs}/weight"] = np.concatenate([w[f"{path}.weight"] for path in ours])
        variables[f"{theirs}/bias"] = np.concatenate([w.get(f"{path}.bias", zeros) for path in ours])

    layer_norm("encoder/layer_norm", "encoder.ln_post")
    layer_norm("decoder/layer_norm", "decoder.ln")
    for room, n_layer in (("encoder", d.n_audio_layer), ("decoder", d.n_text_layer)):
        for i in range(n_layer):
            theirs, ours = f"{room}/layer_{i}", f"{room}.blocks.{i}"
            layer_norm(f"{theirs}/self_attention/layer_norm", f"{ours}.attn_ln")
            linear(f"{theirs}/self_attention/linear_0", *(f"{ours}.attn.{name}" for name in ("query", "key", "value")))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.attn.out")
            if room == "decoder":
                layer_norm(f"{theirs}/attention/layer_norm", f"{ours}.cross_attn_ln")
                linear(f"{theirs}/attention/linear_0", f"{ours}.cross_attn.query")
                linear(f"{theirs}/attention/linear_1", f"{ours}.cross_attn.key", f"{ours}.cross_attn.value")
                linear(f"{theirs}/attention/linear_2", f"{ours}.cross_attn.out")
            layer_norm(f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.mlp.0")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.mlp.2")
    head = "decoder/projection/weight"
    if LM_HEAD in w:
        variables[head] = w[LM_HEAD]
    path.write_bytes(ctranslate2_bytes(variables, {} if LM_HEAD in w else {head: "decoder/embeddings/weight"}))
    return path


def ctranslate2_bytes(variables: dict[str, np.ndarray], aliases: dict[str, str]) -> bytes:
    """The layout of `model.bin`."""

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
