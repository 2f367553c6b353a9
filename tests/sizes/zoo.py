"""Checkpoints as people have them: each gives its original's logits, or is refused with a reason.

Small models of one or two layers, in files that the formats' own programs wrote, and then treated
as training programs, converters, copying and accidents treat them.
"""

import json
import re
import struct
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch
import whisper
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from maxwhisper import CheckpointError, ModelDimensions, Whisper
from maxwhisper.checkpoint import LM_HEAD, Checkpoint, load_checkpoint
from maxwhisper.errors import CheckpointWarning
from reference.models.openai import load_openai
from tests.sizes.formats import as_transformers, random_weights, write_ctranslate2
from tests.support.checkpoints import openai_state, write_openai

DIMS = ModelDimensions(80, 1500, 128, 2, 2, 51865, 448, 128, 2, 1)
TOKENS = np.array([[50258, 50259, 50359, 400, 30000, 11]])
TOLERANCE = 1e-4  # of logits, whose magnitude is a few units; a wrong weight changes them by more than 0.1
State = dict[str, torch.Tensor]
EMBEDDING, PROJECTION = "model.decoder.embed_tokens.weight", "proj_out.weight"


@dataclass(frozen=True)
class Animal:
    """A checkpoint, made in an empty folder."""

    name: str
    make: Callable[[Path], Path]  # returns the path to load
    # Returns the logits that the original gives for `TOKENS` and a log-mel window. None if the
    # checkpoint must be refused.
    original: Callable[[Path, np.ndarray], np.ndarray] | None
    says: str = ""  # a pattern that the warning, or the error, has to match


# Originals.


def by_transformers(path: Path, mel: np.ndarray) -> np.ndarray:
    """Let `transformers` load the folder and compute in float32."""
    import transformers

    folder = path if path.is_dir() else path.parent
    return _transformers_logits(
        transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), mel
    )


def by_openai(path: Path, mel: np.ndarray) -> np.ndarray:
    """Let `whisper` load the file and compute in float32."""
    return _openai_logits(whisper.load_model(str(path), device="cpu").float(), mel)


def by_making(checkpoint: Checkpoint) -> Callable[[Path, np.ndarray], np.ndarray]:
    """Compute with the weights that went into a file which only its training program could load."""
    return lambda path, mel: _openai_logits(load_openai(checkpoint), mel)


def _openai_logits(model: whisper.Whisper, mel: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.decoder(torch.from_numpy(TOKENS), model.encoder(torch.from_numpy(mel))).numpy()


def _transformers_logits(model: Any, mel: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(mel), decoder_input_ids=torch.from_numpy(TOKENS)).logits.numpy()


# Weights.


def weights(seed: int = 0, untied: bool = False, **sizes: int) -> Checkpoint:
    """Return random float16 weights, of changed sizes, or with an LM head of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # about added tokens
        checkpoint = random_weights(replace(DIMS, **sizes), seed)
        if not untied:
            return checkpoint
        head = -checkpoint.weights["decoder.token_embedding.weight"]
        return replace(checkpoint, weights={**checkpoint.weights, LM_HEAD: head})


PLAIN, OTHER, UNTIED = weights(), weights(seed=1), weights(untied=True)


# Files.


def hugging_face(checkpoint: Checkpoint = PLAIN, dtype: torch.dtype = torch.float16, shard: str = "5GB") -> Any:
    """Return a function that lets `transformers` write a folder."""

    def make(folder: Path) -> Path:
        model = as_transformers(checkpoint).to(dtype)
        model.save_pretrained(folder, max_shard_size=shard)
        return folder

    return make


def with_state(
    change: Callable[[State], Mapping[str, torch.Tensor]],
    checkpoint: Checkpoint = PLAIN,
    name: str = "model.safetensors",
    **config: object,
) -> Callable[[Path], Path]:
    """Return a function that writes a folder by `transformers`, and its weights again, changed."""

    def make(folder: Path) -> Path:
        hugging_face(checkpoint)(folder)
        state = safetensors.torch.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        changed = {key: tensor.clone() for key, tensor in change(state).items()}
        save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
        save(changed, folder / name)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return make


def then(make: Callable[[Path], Path], accident: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Return a function that makes a checkpoint, and then changes its path."""

    def make_and_change(folder: Path) -> Path:
        path = make(folder)
        accident(path)
        return path

    return make_and_change


def openai(checkpoint: Checkpoint = PLAIN, dtype: torch.dtype | None = None) -> Callable[[Path], Path]:
    """Return a function that writes OpenAI's format."""
    return lambda folder: write_openai(folder / "model.pt", checkpoint, dtype)


def saved(content: Callable[[State], object], name: str = "model.pt", **options: Any) -> Callable[[Path], Path]:
    """Return a function that saves a training program's file, beside a `config.json`."""

    def make(folder: Path) -> Path:
        hugging_face()(folder)
        (folder / "model.safetensors").unlink()
        torch.save(content(openai_state(PLAIN)), folder / name, **options)
        return folder / name

    return make


def ctranslate2(quantization: str | None) -> Callable[[Path], Path]:
    """Return a function that lets CTranslate2 convert."""
    return lambda folder: write_ctranslate2(folder / "model", as_transformers(PLAIN), quantization)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": tensor for key, tensor in state.items()}


def halves(path: Path) -> None:
    """Cut the largest file of a folder, or a file, in half, as an interrupted download does."""
    file = max(path.iterdir(), key=lambda one: one.stat().st_size) if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def first_shard(path: Path) -> Path:
    return min(path.glob("model-*.safetensors"))


class Runs:
    """An object whose unpickling would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


def add_lora(state: State) -> State:
    return state | {
        f"model.decoder.layers.0.self_attn.q_proj.lora_{x}.default.weight": torch.ones(4, 128) for x in "AB"
    }


def write_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    safetensors.torch.save_file(
        {"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, path / "adapter_model.safetensors"
    )


def only_adapter(folder: Path) -> Path:
    write_adapter(folder)
    return folder


def other_format(start: bytes, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(start + bytes(1000))
        return folder / name

    return make


def heads(pairs: object) -> Callable[[Path], object]:
    return lambda path: (path / "generation_config.json").write_text(json.dumps({"alignment_heads": pairs}))


def bert(folder: Path) -> Path:
    import transformers

    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def hugging_face_with_added_tokens(folder: Path) -> Path:
    model = as_transformers(PLAIN).float()
    model.resize_token_embeddings(DIMS.n_vocab + 3)
    model.save_pretrained(folder)
    return folder


def openai_with_added_tokens(folder: Path) -> Path:
    state = openai_state(PLAIN)
    name = "decoder.token_embedding.weight"
    state[name] = torch.cat([state[name], state[name][:3]])
    dims = {**vars(DIMS), "n_vocab": DIMS.n_vocab + 3}
    torch.save({"dims": dims, "model_state_dict": state}, folder / "model.pt")
    return folder / "model.pt"


def dequantized() -> Checkpoint:
    """Return the weights that CTranslate2's int8 stands for."""
    numbers = {}
    for name, array in PLAIN.weights.items():
        numbers[name] = array.astype(np.float32)
        if name.endswith(".weight") and array.ndim > 1:
            rows = numbers[name].reshape(len(array), -1)
            scale = 127 / np.abs(rows).max(axis=1, keepdims=True)
            numbers[name] = (np.rint(rows * scale) / scale).reshape(array.shape)
    return Checkpoint(DIMS, numbers, "dequantized")


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {new if name == old else name: tensor for name, tensor in state.items()}


ZOO = [
    # OpenAI's format, and PyTorch's.
    Animal("OpenAI, float16", openai(), by_openai),
    Animal("OpenAI, float32", openai(dtype=torch.float32), by_openai),
    Animal("OpenAI, bfloat16", openai(dtype=torch.bfloat16), by_openai),
    Animal("OpenAI, English only", openai(weights(n_vocab=51864)), by_openai),
    Animal("OpenAI, 100 languages", openai(weights(n_vocab=51866, n_mels=128)), by_openai),
    Animal("OpenAI, 4 tokens added to 100 languages", openai(weights(n_vocab=51870, n_mels=128)), by_openai, "added"),
    Animal("OpenAI, 3 tokens added to 99 languages", openai_with_added_tokens, None, "resize_token_embeddings"),
    Animal("state dict alone", saved(dict), by_making(PLAIN)),
    Animal("state dict of DataParallel", saved(prefixed("module.")), by_making(PLAIN)),
    Animal("state dict of torch.compile", saved(prefixed("_orig_mod.")), by_making(PLAIN)),
    Animal(
        "Lightning", saved(lambda s: {"state_dict": prefixed("model.")(s), "epoch": 3}, "last.ckpt"), by_making(PLAIN)
    ),
    Animal("PyTorch's old format", saved(dict, _use_new_zipfile_serialization=False), None, "old format"),
    Animal("pickle that calls a function", saved(lambda s: {"model": s, "x": Runs()}), None, "print to be called"),
    Animal("OpenAI, cut", then(openai(), halves), None, "damaged .* download it again"),
    # Hugging Face's format.
    Animal("Hugging Face, float16", hugging_face(), by_transformers),
    Animal("Hugging Face, float32", hugging_face(dtype=torch.float32), by_transformers),
    Animal("Hugging Face, bfloat16", hugging_face(dtype=torch.bfloat16), by_transformers),
    Animal("several files", hugging_face(shard="4MB"), by_transformers),
    Animal(
        "several files and a stray",
        then(
            hugging_face(shard="4MB"), lambda p: safetensors.torch.save_file(openai_state(OTHER), p / "old.safetensors")
        ),
        by_transformers,
    ),
    Animal(
        "several files, one missing",
        then(hugging_face(shard="4MB"), lambda p: first_shard(p).unlink()),
        None,
        "missing",
    ),
    Animal(
        "several files, one cut", then(hugging_face(shard="4MB"), lambda p: halves(first_shard(p))), None, "damaged"
    ),
    Animal(
        "several files, no index",
        then(hugging_face(shard="4MB"), lambda p: (p / "model.safetensors.index.json").unlink()),
        None,
        "no index",
    ),
    Animal("pytorch_model.bin", with_state(dict, name="pytorch_model.bin"), by_making(PLAIN)),
    Animal("LM head of its own", hugging_face(UNTIED), by_transformers),
    Animal(
        "LM head named lm_head",
        with_state(renamed(PROJECTION, "lm_head.weight"), UNTIED, tie_word_embeddings=False),
        by_making(UNTIED),
    ),
    Animal("LM head alone, tied", with_state(renamed(EMBEDDING, PROJECTION)), by_transformers),
    Animal(
        "LM head missing though not tied",
        with_state(without(PROJECTION), UNTIED, tie_word_embeddings=False),
        None,
        "holds decoder.token_embedding.weight alone",
    ),
    Animal(
        "layers of torch.compile",
        with_state(lambda s: {re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", key): t for key, t in s.items()}),
        by_making(PLAIN),
    ),
    Animal(
        "mixed dtypes",
        with_state(lambda s: {key: t.float() if "layer_norm" in key or "fc1" in key else t for key, t in s.items()}),
        by_transformers,
    ),
    Animal("more encoder than decoder layers", hugging_face(weights(n_audio_layer=4)), by_transformers),
    Animal(
        "alignment heads of another model", then(hugging_face(), heads([[7, 0], [25, 6]])), by_transformers, "heads"
    ),
    Animal("no alignment heads", then(hugging_face(), heads(None)), by_transformers),
    Animal(
        "no generation_config.json",
        then(hugging_face(), lambda p: (p / "generation_config.json").unlink()),
        by_transformers,
    ),
    Animal("no config.json", then(hugging_face(), lambda p: (p / "config.json").unlink()), None, "how many heads"),
    Animal("an adapter beside it", then(hugging_face(), write_adapter), by_transformers, "adapter .* not applied"),
    Animal("an adapter alone", only_adapter, None, "merge_and_unload"),
    Animal("an adapter that is not merged", with_state(add_lora), None, "not merged"),
    Animal("3 tokens added, Hugging Face", hugging_face_with_added_tokens, None, "resize_token_embeddings"),
    Animal(
        "weights in 8 bits by bitsandbytes",
        with_state(lambda s: {k: (100 * t).to(torch.int8) if "fc1.weight" in k else t for k, t in s.items()}),
        None,
        "stored as int8",
    ),
    Animal(
        "weights in float8",
        with_state(lambda s: {k: t.to(torch.float8_e4m3fn) if "fc1.weight" in k else t for k, t in s.items()}),
        None,
        "F8_E4M3",
    ),
    Animal("a weight missing", with_state(without("model.encoder.conv1.bias")), None, "lacks 1 weight"),
    Animal("a file of Git LFS", other_format(b"version https://git-lfs", "model.safetensors"), None, "git lfs pull"),
    Animal("BERT", bert, None, "Whisper"),
    # CTranslate2's format, and others.
    Animal("CTranslate2, float16", ctranslate2("float16"), by_making(PLAIN)),
    Animal("CTranslate2, float32", ctranslate2("float32"), by_making(PLAIN)),
    Animal("CTranslate2, int8", ctranslate2("int8"), by_making(dequantized())),
    Animal("CTranslate2, int8_float16", ctranslate2("int8_float16"), by_making(dequantized())),
    Animal("CTranslate2, int16", ctranslate2("int16"), None, "16 bits"),
    Animal("CTranslate2, cut", then(ctranslate2("float16"), halves), None, "damaged"),
    Animal("whisper.cpp", other_format(struct.pack("<I", 0x67676D6C), "ggml-base.bin"), None, "whisper.cpp"),
]


def visit(animal: Animal, folder: Path, mel: np.ndarray) -> str:
    """Make a checkpoint and load it; return what is wrong, or "" if all is as expected."""
    path = animal.make(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            reason = str(error)
            as_expected = animal.original is None and re.search(animal.says, reason) and "\n" not in reason
            return "" if as_expected else f"refused: {reason}"
    if animal.original is None:
        return "loaded, but should be refused"
    said = [str(warning.message) for warning in caught if issubclass(warning.category, CheckpointWarning)]
    if len(said) != bool(animal.says) or not re.search(animal.says, "".join(said)):
        return f"warned of {said}"
    difference = np.abs(Whisper(checkpoint)(mel, TOKENS) - animal.original(path, mel)).max()
    return "" if difference <= TOLERANCE else f"logits differ by {difference:.3g}"


def main() -> int:
    """Visit all, and print what was found; 0 if all is as expected."""
    table = Table("checkpoint", "outcome", title=f"{len(ZOO)} checkpoints")
    failed = 0
    for animal in tqdm(ZOO, unit="checkpoint", disable=None):
        n_mels = 128 if "100 languages" in animal.name else 80
        mel = np.random.default_rng(0).standard_normal((1, n_mels, 3000)).astype(np.float32)
        with TemporaryDirectory() as folder:
            problem = visit(animal, Path(folder), mel)
        expected = "refused with the reason" if animal.original is None else "the original's logits"
        table.add_row(animal.name, problem or expected, style="bold red" if problem else "")
        failed += bool(problem)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
