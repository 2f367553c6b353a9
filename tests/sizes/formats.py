"""Random weights of a size, in files that the formats' own programs wrote."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maxwhisper.checkpoint import LM_HEAD, Checkpoint, ModelDimensions, weight_shapes
from maxwhisper.checkpoint.dimensions import SIZES
from maxwhisper.tokenizer import get_tokenizer
from tests.support.checkpoints import huggingface_state, write_openai


def random_weights(dims: ModelDimensions, seed: int = 0) -> Checkpoint:
    """Return random float16 weights under which activations keep their size from layer to layer."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(dims).items():
        n_in = int(np.prod(shape[1:])) if name.endswith("weight") and len(shape) > 1 else 100
        offset = 1.0 if re.search(r"ln(_post)?\.weight$", name) else 0.0
        numbers = rng.standard_normal(shape, np.float32) * np.float32(n_in**-0.5) + np.float32(offset)
        weights[name] = numbers.astype(np.float16)
    return Checkpoint(dims, weights, "random")


def as_transformers(checkpoint: Checkpoint) -> Any:
    """Return a `WhisperForConditionalGeneration` with a checkpoint's weights, in their dtype."""
    import transformers

    transformers.logging.disable_progress_bar()
    d, tied = checkpoint.dims, LM_HEAD not in checkpoint.stored
    config = transformers.WhisperConfig(
        vocab_size=d.n_vocab,
        num_mel_bins=d.n_mels,
        d_model=d.n_audio_state,
        encoder_layers=d.n_audio_layer,
        encoder_attention_heads=d.n_audio_head,
        encoder_ffn_dim=4 * d.n_audio_state,
        decoder_layers=d.n_text_layer,
        decoder_attention_heads=d.n_text_head,
        decoder_ffn_dim=4 * d.n_text_state,
        max_source_positions=d.n_audio_ctx,
        max_target_positions=d.n_text_ctx,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(config)
    state = huggingface_state(checkpoint)
    state.setdefault("proj_out.weight", state["model.decoder.embed_tokens.weight"])
    model.load_state_dict(state, assign=True)
    if tied:
        model.tie_weights()
    model.generation_config.alignment_heads = [list(pair) for pair in checkpoint.alignment_heads]
    return model.eval()


def write_transformers(folder: Path, model: Any) -> Path:
    """Let `transformers` write a model, in several files if it is large."""
    model.save_pretrained(folder, max_shard_size="500MB")
    return folder


def write_ctranslate2(folder: Path, model: Any, quantization: str | None = None) -> Path:
    """Let CTranslate2 convert a model of `transformers`."""
    from ctranslate2.converters.transformers import WhisperLoader

    spec = WhisperLoader().get_model_spec(model)
    dims = replace(SIZES["tiny"], n_vocab=model.config.vocab_size)
    special = get_tokenizer(dims.is_multilingual, num_languages=dims.num_languages).special_tokens
    names = {i: name for name, i in special.items()}  # by which CTranslate2 finds the tokens with a meaning
    spec.register_vocabulary([names.get(i, f"<{i}>") for i in range(dims.n_vocab)])
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir()
    spec.save(str(folder))
    return folder


Writer = Callable[[Path, Checkpoint, Any], Path]
# Each takes an empty place, the checkpoint, and the same model of `transformers`.
WRITERS: dict[str, Writer] = {
    "OpenAI": lambda path, checkpoint, model: write_openai(path.with_suffix(".pt"), checkpoint),
    "Hugging Face": lambda path, checkpoint, model: write_transformers(path, model),
    "CTranslate2": lambda path, checkpoint, model: write_ctranslate2(path, model),
    "CTranslate2 int8": lambda path, checkpoint, model: write_ctranslate2(path, model, "int8_float16"),
}


def differences(read: Checkpoint, written: Checkpoint) -> list[str]:
    """Return what a file changed. int8 weights may differ by half a quantization step."""
    found = [f"sizes {read.dims}"] if read.dims != written.dims else []
    if names := read.stored.keys() ^ written.stored.keys():
        return [*found, f"{len(names)} names differ, {min(names)} the first"]
    return [*found, *(f"{name} differs" for name in read.stored if not _agree(name, read, written))]


def _agree(name: str, read: Checkpoint, written: Checkpoint) -> bool:
    """Whether a weight that was read is the one that was written, or its nearest in int8."""
    numbers, expected, scale = read.weights[name], written.weights[name], read.stored[name].scale
    if numbers.shape != expected.shape or scale is None:
        return np.array_equal(_bits(numbers), _bits(expected))
    return bool((np.abs(numbers - expected.astype(np.float32)) <= 0.501 * scale.max()).all())


def _bits(array: np.ndarray) -> np.ndarray:
    """Return an array as integers, which NumPy compares without widening each float16."""
    return array.view(f"u{array.itemsize}")
