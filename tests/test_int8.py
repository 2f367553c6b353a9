"""Weights in int8: activations agree with the quantized ops' definitions, and few tokens differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import whisper
from max.dtype import DType
from whisper.normalizers import EnglishTextNormalizer

from maxwhisper import (
    DecodingResult,
    OptionError,
    Whisper,
    decode,
    load_model,
    log_mel_spectrogram,
    pad_or_trim,
    transcribe,
    transcribe_batched,
)
from maxwhisper.audio import N_FRAMES, N_SAMPLES
from maxwhisper.checkpoint import LM_HEAD
from maxwhisper.engine.dtypes import DTypes
from maxwhisper.engine.quantization import convert_weights, quantize
from reference.clips import all_clips, english_speech, packaged_clips
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import names
from reference.models.capture import capture_max
from reference.models.float64 import decoder_inputs
from reference.ops.judge import judge_alone, judge_each
from reference.parity.activations import compare_activations, truth
from tests.support.checkpoints import write_ctranslate2
from tests.support.compiling import without_graphs
from tests.support.implementations import Implementations
from tests.support.word_times import time_shifts

MAX_CHARACTER_ERROR_RATE = 0.03  # relative to OpenAI Whisper
MAX_TOKENS = 0.01  # share of the tokens that differ after the same text, besides one
PROMPT = [50257, 50362]


@pytest.fixture(scope="module")
def int8_model(tiny_en: Implementations) -> Whisper:
    return Whisper(tiny_en.checkpoint, compute_type="int8")


def test_weights_are_quantized_to_the_nearest_integer(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((5, 300)).astype(np.float16)
    weight[3] = 0
    quantized, scale = quantize(weight)
    assert (quantized.dtype, scale.dtype) == (np.int8, np.float32)
    assert np.abs(quantized).max(axis=1).tolist() == [127, 127, 127, 0, 127]
    assert (np.abs(quantized * scale[:, None].astype(float) - weight) <= scale[:, None] * (0.5 + 1e-4)).all()


def test_matrices_are_quantized_and_other_weights_are_not(tiny_en: Implementations) -> None:
    dtypes = DTypes.of(tiny_en.checkpoint, "int8").weights
    stored = convert_weights(tiny_en.checkpoint.stored, dtypes)
    quantized = {name for name, dtype in dtypes.items() if dtype == DType.int8}
    assert {
        "encoder.blocks.0.mlp.2.weight",
        "decoder.blocks.3.cross_attn.key.weight",
        "decoder.token_embedding.weight",
    } <= quantized
    assert not quantized & {
        "encoder.conv1.weight",
        "encoder.positional_embedding",
        "decoder.positional_embedding",
        "decoder.ln.weight",
    }
    assert set(stored) == set(dtypes) | {name.replace(".weight", ".scale") for name in quantized}


def test_every_int8_activation_agrees_with_its_ops_definition(tiny_en: Implementations) -> None:
    """Give the model an LM head of its own, from which logits must be computed."""
    original = tiny_en.checkpoint
    lm_head = original.weights["decoder.token_embedding.weight"][::-1].copy()
    untied = replace(original, weights={**original.weights, LM_HEAD: lm_head})
    tied_flow = whisper_flow.of_max(original.dims, "int8")
    with without_graphs("alignment"):
        model = Whisper(untied, capture=names(tied_flow), compute_type="int8")
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)
    tokens = [50363, 843, 523, 616, 5891, 3399, 11]
    activations = capture_max(model, mel, PROMPT, tokens)
    arrays = {**model.weights, "log_mel": mel[None], **decoder_inputs(np.array([[*PROMPT, *tokens]]))}
    flow = whisper_flow.for_weights(tied_flow, untied.weights)
    compared = compare_activations(flow, activations, arrays, truth(flow, arrays), verdict=judge_alone)
    # An activation must pass in situ too: an equivalent rewrite of its op is not accepted here.
    failures = [str(part) for part in compared if not (part.passes and part.in_situ.passes)]
    assert not failures, "\n".join(failures)
    ((_, logits),) = judge_each({"decoder.logits": tied_flow["decoder.logits"]}, {**arrays, **activations})
    assert not logits.actual.passes  # they are not computed from the token embedding


def characters(text: str) -> str:
    """Return the letters and digits: int8 may write "1-2-3" as "123", which is no other word."""
    return "".join(filter(str.isalnum, EnglishTextNormalizer()(text)))


def test_few_characters_differ_in_int8(int8_model: Whisper, tiny_en: Implementations) -> None:
    samples = english_speech()
    openai_text = whisper.transcribe(
        tiny_en.openai, samples, fp16=False, temperature=0.0, condition_on_previous_text=False
    )["text"]
    options: dict[str, Any] = {"temperature": 0.0, "condition_on_previous_text": False}
    text = transcribe(int8_model, samples, **options)["text"]
    assert jiwer.cer(characters(openai_text), characters(text)) <= MAX_CHARACTER_ERROR_RATE
    (batched,) = transcribe_batched(int8_model, [samples], temperature=0.0)
    assert isinstance(batched, dict)
    # Batched transcription cuts the audio at different places, so words at the cuts differ.
    assert jiwer.cer(characters(openai_text), characters(batched["text"])) <= 3 * MAX_CHARACTER_ERROR_RATE


def test_few_tokens_differ_in_int8_after_the_same_text(int8_model: Whisper, tiny_en: Implementations) -> None:
    """No token is changed by a different one before it."""
    n_different = n = 0
    for clip in all_clips().values():
        for start in range(0, len(clip.samples) if clip.language == "en" else 0, N_SAMPLES):
            mel = pad_or_trim(log_mel_spectrogram(clip.samples[start : start + N_SAMPLES]), N_FRAMES)
            decoded = decode(tiny_en.model, mel, temperature=0.0)
            assert isinstance(decoded, DecodingResult)
            tokens = np.array([[*PROMPT, *decoded.tokens]])
            in_int8, in_float32 = (
                model.logits(tokens, model.embed_audio(mel))[0, len(PROMPT) - 1 :].argmax(axis=-1)
                for model in (int8_model, tiny_en.model)
            )
            n_different += (in_int8 != in_float32).sum()
            n += in_int8.size
    print(f"{n_different} of {n} tokens differ")
    assert n_different <= 1 + MAX_TOKENS * n


def test_word_times_in_int8_are_those_of_float32(int8_model: Whisper, tiny_en: Implementations) -> None:
    shifts = time_shifts(int8_model, tiny_en.model)
    print(f"words shifted by {shifts}")
    assert np.quantile(shifts, 0.9) <= 1
    assert shifts.max() <= 25  # the end of a word before a pause is uncertain


def test_weights_stored_in_8_bits_are_used_as_they_are(tiny_en: Implementations, tmp_path: Path) -> None:
    """A model of an 8-bit file has the file's own numbers, and is the default for such a file."""
    original = tiny_en.checkpoint
    assert load_model("tiny.en").compute_type == "float32"
    model = load_model(write_ctranslate2(tmp_path / "model.bin", original, "int8_float16"))
    assert model.compute_type == "int8"
    quantized = Whisper(original, compute_type="int8")
    for name, weight in quantized.weights.items():
        own = model.weights[name]
        assert isinstance(own, np.ndarray)
        assert isinstance(weight, np.ndarray)
        if weight.dtype == np.int8:
            # The other's scale is rounded before it divides, so halves may be rounded differently.
            assert (abs(own.astype(int) - weight) <= 1).all()
            assert (own != weight).mean() < 1e-3
        elif name.endswith("scale"):
            assert np.allclose(own, weight, rtol=4 * 2**-24, atol=0)  # 127 / max, 1 / that, and max / 127 are rounded


def test_an_unknown_compute_type_is_an_error() -> None:
    with pytest.raises(OptionError, match="compute_type 'int4' is none of auto, float32, float16, bfloat16, int8"):
        load_model("tiny.en", compute_type="int4")
