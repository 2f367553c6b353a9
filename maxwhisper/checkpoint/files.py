"""A model in a folder or a file: which files hold its weights, and what else says how large it is."""

import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from maxwhisper.checkpoint.alignment_heads import read_heads
from maxwhisper.checkpoint.checkpoint import MALFORMED, Checkpoint
from maxwhisper.checkpoint.ctranslate2 import read_ctranslate2
from maxwhisper.checkpoint.dimensions import ModelDimensions, official_dimensions
from maxwhisper.checkpoint.huggingface import read_config, read_safetensors
from maxwhisper.checkpoint.names import openai_names, with_one_vocabulary
from maxwhisper.checkpoint.pytorch import read_pytorch
from maxwhisper.errors import CheckpointError, CheckpointWarning

# What holds a folder's model, the first of them that is there: in the order of transformers, then CTranslate2's.
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
NO_MODEL = re.compile(
    r"(adapter_|training_args|optimizer|scheduler|scaler|rng_state)"
)  # what training leaves beside it
ADAPTERS = re.compile(r"adapter_(config\.json|model)")
ZIP = b"PK\x03\x04"
# How files of other formats begin, what they are, and what to do.
FOREIGN = {
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "in PyTorch's old format (before 1.6, no zip archive), which is not read; save it again: "
    "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)",
    b"version https://git-lfs": "a pointer of Git LFS in the weights' place; fetch them with `git lfs pull`",
    b"lmgg": "whisper.cpp's (ggml), which is not read; take the model that it was made of",
    b"GGUF": "in the format GGUF, which is not read; take the model that it was made of",
}


def weights_file(folder: Path) -> Path:
    """The file that holds a folder's model, or the index of those that do. A format's own name decides, or its index; never all files.

    Warns with CheckpointWarning of an adapter, or another model, that is left out.

    Raises CheckpointError where there is none or one of several would have to be chosen.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read ({error.strerror})") from error
    found = [name for name in STANDARD if name in names][:1]
    found = found or [
        name for name in names if ENDINGS.search(name) and not SHARD.search(name) and not NO_MODEL.match(name)
    ]
    adapters = list(filter(ADAPTERS.match, names))
    if len(found) != 1:
        raise CheckpointError(f"{folder} holds {_instead_of_one(found, adapters, list(filter(SHARD.search, names)))}")
    (name,) = found
    left_out = [f"an adapter ({adapters[0]}), which is not applied to {name}"] if adapters else []
    if (index := f"{name}.index.json") in names:
        left_out.append(f"{index}, which is not read, as {name} stands beside it")
    for what in left_out:
        warnings.warn(f"{folder} holds {what}", CheckpointWarning, stacklevel=3)
    return folder / name


def _instead_of_one(found: list[str], adapters: list[str], shards: list[str]) -> str:
    """What a folder holds that isn't one model, and what to do."""
    if found:
        return f"{len(found)} models, {', '.join(found)}; name one of them"
    if adapters:
        return (
            f"an adapter ({adapters[0]}), which changes a model and is none; merge it with PEFT and load what that saves: "
            "PeftModel.from_pretrained(MODEL, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
        )
    if shards:
        return f"parts of a model, {shards[0]} the first, but no index (….index.json) that names them; get it, too"
    return "no model: no .safetensors, .bin or .pt file in it"


def read_file(path: Path) -> Checkpoint:
    """Read a model from its file, or from those that its index names.

    Raises CheckpointError where they are damaged, of another kind, or no Whisper model.
    """
    if path.suffix == ".bin" and not _start(path).startswith(ZIP):
        checkpoint = read_ctranslate2(path.read_bytes(), str(path))
        heads = read_heads(path.with_name("config.json"), checkpoint.dims.n_text_layer, checkpoint.dims.n_text_head)
        return replace(checkpoint, alignment_heads=heads or checkpoint.alignment_heads)
    if SHARD.search(path.name):
        raise CheckpointError(
            f"{path} is one part of a model; name its folder, or the index (….index.json) that names all parts"
        )
    stored, dims = (_read_index(path), None) if path.suffix == ".json" else _read_weights(path)
    config = None if dims else read_config(path.parent)
    weights = with_one_vocabulary(openai_names(stored, str(path)), str(path), tied=config is None or config.tied)
    if dims is None:
        dims = config.dims if config else official_dimensions(weights, str(path))
    return Checkpoint(dims, weights, str(path), config.alignment_heads if config else ())


def _start(path: Path) -> bytes:
    """The first bytes of a file, which show its kind."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    for signature, what in FOREIGN.items():
        if start.startswith(signature):
            raise CheckpointError(f"{path} is {what}")
    return start


def _read_weights(path: Path) -> tuple[Mapping[str, np.ndarray], ModelDimensions | None]:
    """A file's weights under its own names, and the model's sizes where it says them."""
    _start(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path), None
    if path.suffix in (*PYTORCH, ".bin"):
        return read_pytorch(path)
    raise CheckpointError(
        f"{path} is none of the formats that can be read: .pt (OpenAI), .safetensors and pytorch_model.bin (Hugging Face), "
        "model.bin (CTranslate2)"
    )


def _read_index(path: Path) -> dict[str, np.ndarray]:
    """Exactly the weights that an index names, each from the file that it names for it."""
    names_in = defaultdict[str, list[str]](list)
    try:
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            names_in[file].append(name)
        if strange := [file for file in names_in if not file or file != Path(file).name]:
            raise ValueError(f"{strange[0]!r} is no file beside it")
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    except (*MALFORMED, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no index of weights ({error!r}); get it anew") from error
    weights = dict[str, np.ndarray]()
    for file, names in names_in.items():
        if not os.path.exists(path.with_name(file)):  # pathlib raises for names that can be none
            raise CheckpointError(f"{path} names {file}, which is not there; get it, too")
        stored, _ = _read_weights(path.with_name(file))
        if missing := [name for name in names if name not in stored]:
            raise CheckpointError(f"{path} says that {missing[0]} is in {file}, where it is not; get both anew")
        weights |= {name: stored[name] for name in names}
    return weights
