"""Reads a model from a folder or a file, in any of the supported formats."""

import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from maxwhisper.checkpoint.alignment_heads import read_heads
from maxwhisper.checkpoint.checkpoint import MALFORMED, Checkpoint
from maxwhisper.checkpoint.ctranslate2 import read_ctranslate2
from maxwhisper.checkpoint.dimensions import ModelDimensions, official_dimensions
from maxwhisper.checkpoint.huggingface import read_config, read_safetensors
from maxwhisper.checkpoint.names import openai_names, tie_lm_head
from maxwhisper.checkpoint.pytorch import read_pytorch
from maxwhisper.checkpoint.stored import StoredBytes, StoredTensor, Weights
from maxwhisper.errors import CheckpointError, CheckpointWarning

# The standard names of a folder's weights. The first one that exists is read: the names of
# transformers, in its order, then CTranslate2's.
STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.bin",
)
PYTORCH = (".pt", ".pth", ".ckpt")
ENDINGS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|index(\.\w+)?\.json)$")
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\b")
# Other files that training writes to a model's folder.
NO_MODEL = re.compile(r"(adapter_|training_args|optimizer|scheduler|scaler|rng_state)")
ADAPTERS = re.compile(r"adapter_(config\.json|model)")
ZIP = b"PK\x03\x04"
# The first bytes of files in unsupported formats, with a description and a remedy.
FOREIGN = {
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "in PyTorch's old format (before 1.6, no zip archive), which is "
    "not read; save it again: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)",
    b"version https://git-lfs": "a pointer of Git LFS instead of the weights; fetch them with `git lfs pull`",
    b"lmgg": "in whisper.cpp's format (ggml), which is not read; use the model that it was made from",
    b"GGUF": "in the format GGUF, which is not read; use the model that it was made from",
}


def weights_file(folder: Path) -> Path:
    """Return the file with a folder's model, or the index of its files.

    A standard name of a format is preferred. Otherwise the folder must contain exactly one model.
    Warns with CheckpointWarning if an adapter or a second model is ignored.

    Raises:
        CheckpointError: if there is no model, or there are several.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read ({error.strerror})") from error
    models = [name for name in STANDARD if name in names][:1]
    models = models or [
        name for name in names if ENDINGS.search(name) and not SHARD.search(name) and not NO_MODEL.match(name)
    ]
    adapters = list(filter(ADAPTERS.match, names))
    if len(models) != 1:
        shards = list(filter(SHARD.search, names))
        raise CheckpointError(f"{folder} holds {_describe_content(models, adapters, shards)}")
    (name,) = models
    ignored = [f"an adapter ({adapters[0]}), which is not applied to {name}"] if adapters else []
    if (index := f"{name}.index.json") in names:
        ignored.append(f"{index}, which is not read, because {name} is in the same folder")
    for description in ignored:
        warnings.warn(f"{folder} holds {description}", CheckpointWarning, stacklevel=3)
    return folder / name


def _describe_content(models: list[str], adapters: list[str], shards: list[str]) -> str:
    """Describe the content of a folder that does not hold exactly one model, with a remedy."""
    if models:
        return f"{len(models)} models, {', '.join(models)}; name one of them"
    if adapters:
        return (
            f"an adapter ({adapters[0]}), which is not a model; merge it with PEFT and load the result: "
            "PeftModel.from_pretrained(MODEL, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
        )
    if shards:
        return f"parts of a model, {shards[0]} the first, but no index (….index.json) that names them; download it, too"
    return "no model: no .safetensors, .bin or .pt file in it"


def read_file(path: Path) -> Checkpoint:
    """Read a model from its file, or from the files that an index names.

    Raises:
        CheckpointError: if a file is damaged, in an unsupported format, or not a Whisper model.
    """
    if path.suffix == ".bin" and not _start(path).startswith(ZIP):
        checkpoint = read_ctranslate2(StoredBytes.of(path), str(path))
        heads = read_heads(path.with_name("config.json"), checkpoint.dims.n_text_layer, checkpoint.dims.n_text_head)
        return replace(checkpoint, alignment_heads=heads or checkpoint.alignment_heads)
    if SHARD.search(path.name):
        raise CheckpointError(
            f"{path} is one part of a model; name its folder, or the index (….index.json) that names all parts"
        )
    stored, dims = (_read_index(path), None) if path.suffix == ".json" else _read_weights(path)
    config = None if dims else read_config(path.parent)
    weights = tie_lm_head(openai_names(stored, str(path)), str(path), tied=config is None or config.tied)
    if dims is None:
        dims = config.dims if config else official_dimensions(weights, str(path))
    return Checkpoint(dims, Weights(weights), str(path), config.alignment_heads if config else ())


def _start(path: Path) -> bytes:
    """Return the first bytes of a file; raise CheckpointError if its format is unsupported."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    for signature, description in FOREIGN.items():
        if start.startswith(signature):
            raise CheckpointError(f"{path} is {description}")
    return start


def _read_weights(path: Path) -> tuple[Mapping[str, StoredTensor], ModelDimensions | None]:
    """Read the weights by the file's own names, and the model's sizes if the file has them."""
    _start(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path), None
    if path.suffix in (*PYTORCH, ".bin"):
        return read_pytorch(path)
    raise CheckpointError(
        f"{path} is in none of the formats that can be read: .pt (OpenAI), "
        ".safetensors and pytorch_model.bin (Hugging Face), model.bin (CTranslate2)"
    )


def _read_index(path: Path) -> dict[str, StoredTensor]:
    """Read exactly the weights that an index names, each from the file that it gives for it."""
    names_in = defaultdict[str, list[str]](list)
    try:
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            names_in[file].append(name)
        if outside := [file for file in names_in if not file or file != Path(file).name]:
            raise ValueError(f"{outside[0]!r} is not a file in the same folder")
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    except (*MALFORMED, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not an index of weights ({error!r}); download it again") from error
    weights = dict[str, StoredTensor]()
    for file, names in names_in.items():
        if not os.path.exists(path.with_name(file)):  # pathlib's `exists` raises for invalid names
            raise CheckpointError(f"{path} names {file}, which is missing; download it, too")
        stored, _ = _read_weights(path.with_name(file))
        if missing := [name for name in names if name not in stored]:
            raise CheckpointError(f"{path} says that {missing[0]} is in {file}, but it is not; download both again")
        weights |= {name: stored[name] for name in names}
    return weights
