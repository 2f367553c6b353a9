"""Filters, sampling, ranking and options of decoding work as in OpenAI Whisper."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwhisper import (
    DecodingOptions,
    DecodingResult,
    OptionError,
    decode,
    detect_language,
    log_mel_spectrogram,
    pad_or_trim,
)
from maxwhisper.audio import N_FRAMES
from maxwhisper.decoding import ApplyTimestampRules, SuppressBlank, SuppressTokens
from maxwhisper.decoding.search import logsumexp, sample, softmax
from maxwhisper.tokenizer import get_tokenizer
from reference.clips import packaged_clips
from tests.support.decoding import assert_same_result
from tests.support.implementations import Implementations
from tests.support.sampling import SharedDraws
from tests.support.torch_model import TorchModel, random_model

TOKENIZER, OPENAI_TOKENIZER = get_tokenizer(True), whisper.tokenizer.get_tokenizer(True)
N_VOCAB = 51865
SAMPLE_BEGIN = 3


def mel_of(name: str) -> np.ndarray:
    return pad_or_trim(log_mel_spectrogram(packaged_clips()[name].samples), N_FRAMES)


# Filters.

token = st.sampled_from([*range(400, 404), TOKENIZER.eot]) | st.integers(
    TOKENIZER.timestamp_begin, TOKENIZER.timestamp_begin + 60
)


@given(
    sampled=st.lists(token, max_size=8),
    seed=st.integers(0, 100),
    bias=st.sampled_from([-3.0, 0.0, 3.0, 12.0]),
    limit=st.sampled_from([None, 50]),
)
@settings(max_examples=200)
def test_filters_forbid_the_same_tokens_as_openais(
    sampled: list[int], seed: int, bias: float, limit: int | None
) -> None:
    logits = np.random.default_rng(seed).standard_normal((1, N_VOCAB)).astype(np.float32)
    logits[:, TOKENIZER.timestamp_begin :] += bias  # decides whether timestamps or text are more likely
    tokens = np.array([[TOKENIZER.sot, 50259, TOKENIZER.transcribe, *sampled]])
    pairs: list[tuple[Any, Any]] = [
        (SuppressBlank(TOKENIZER, SAMPLE_BEGIN), whisper.decoding.SuppressBlank(OPENAI_TOKENIZER, SAMPLE_BEGIN)),
        (SuppressTokens([1, 7, 400]), whisper.decoding.SuppressTokens([1, 7, 400])),
        (
            ApplyTimestampRules(TOKENIZER, SAMPLE_BEGIN, limit),
            whisper.decoding.ApplyTimestampRules(OPENAI_TOKENIZER, SAMPLE_BEGIN, limit),
        ),
    ]
    for actual, openai in pairs:
        expected = torch.from_numpy(logits.copy())
        openai.apply(expected, torch.from_numpy(tokens))
        actual.apply(logits, tokens)
        assert np.array_equal(logits, expected.numpy())


def test_filters_treat_each_sequence_by_its_own_tokens(rng: np.random.Generator) -> None:
    begin = TOKENIZER.timestamp_begin
    tokens = np.array(
        [
            [TOKENIZER.sot, 50259, TOKENIZER.transcribe, begin, 400, begin + 9],
            [TOKENIZER.sot, 50259, TOKENIZER.transcribe, begin, 400, 401],
        ]
    )
    logits = rng.standard_normal((2, N_VOCAB)).astype(np.float32)
    one_by_one = logits.copy()
    rules = ApplyTimestampRules(TOKENIZER, SAMPLE_BEGIN, 50)
    rules.apply(logits, tokens)
    for i in range(2):
        rules.apply(one_by_one[i : i + 1], tokens[i : i + 1])
    assert np.array_equal(logits, one_by_one)


@pytest.mark.parametrize("suppress", ["-1", "-1,400", "400,401", [400, -1], ""])
def test_suppressed_tokens_are_openais(suppress: Any, tiny_en: Implementations) -> None:
    from maxwhisper.decoding import DecodingTask

    options = {"suppress_tokens": suppress, "without_timestamps": True, "suppress_blank": False}
    actual = DecodingTask(tiny_en.model, DecodingOptions(**options)).logit_filters
    openai = whisper.decoding.DecodingTask(tiny_en.openai, whisper.DecodingOptions(**options, fp16=False)).logit_filters
    assert [list(f.suppress_tokens) for f in actual if isinstance(f, SuppressTokens)] == [
        list(f.suppress_tokens) for f in openai
    ]


# Numerical functions.


def test_logsumexp_and_softmax_are_torchs(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((3, 1000)).astype(np.float32) * 30
    logits[0, 10:] = -np.inf
    logits[1] += 1000
    assert np.allclose(logsumexp(logits), torch.from_numpy(logits).logsumexp(-1).numpy(), rtol=1e-6)
    assert np.allclose(softmax(logits), torch.from_numpy(logits).softmax(-1).numpy(), rtol=1e-4, atol=1e-12)
    assert logsumexp(np.full((1, 5), -np.inf)) == -np.inf


def test_sampling_follows_the_distribution(rng: np.random.Generator) -> None:
    probabilities = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        tokens = sample(np.tile(np.log(probabilities), (20000, 1)), rng.random(20000))
    assert np.allclose(np.bincount(tokens, minlength=4) / 20000, probabilities, atol=0.02)
    edges = sample(np.log(np.array([[0.0 + 1e-300, 0.5, 0.5]] * 2)), np.array([0.0, np.nextafter(1, 0)]))
    assert edges.tolist() in ([0, 2], [1, 2])  # never a token past the end
    offsets = np.array([[1000.0], [-1000.0]])  # each row must be normalised by its own maximum
    logits = np.log(np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]])) + offsets
    for draws, expected in (
        ((0.2, 0.2), [0, 0]),
        ((0.25, 0.5), [1, 1]),
        ((0.49, 0.74), [1, 1]),
        ((0.5, 0.75), [2, 2]),
        ((0.99, 0.99), [2, 2]),
    ):
        assert sample(logits, np.array(draws) + 1e-3).tolist() == expected


# Whole windows.


def decode_both(
    implementations: Implementations, mel: np.ndarray, **options: Any
) -> tuple[DecodingResult, whisper.DecodingResult]:
    actual = decode(implementations.model, mel, DecodingOptions(**options))
    openai = whisper.decode(
        implementations.openai, torch.from_numpy(mel), whisper.DecodingOptions(**options, fp16=False)
    )
    assert isinstance(actual, DecodingResult)
    return actual, openai


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"prompt": "A story about Americans, read aloud."},
        {"prompt": list(range(300, 700))},  # longer than the context
        {"prefix": "To the", "sample_len": 20},
        {"prefix": "To the"},
        {"sample_len": 5},
        {"suppress_tokens": "-1,11,13", "suppress_blank": False},
        {"suppress_tokens": None, "max_initial_timestamp": None},
        {"max_initial_timestamp": 0.47},
    ],
)
def test_every_option_gives_openais_result(options: dict[str, Any], tiny_en: Implementations) -> None:
    assert_same_result(*decode_both(tiny_en, mel_of("beckett"), language="en", **options))


@pytest.mark.parametrize(
    "options", [{}, {"task": "translate"}, {"language": "French"}, {"language": "fr", "task": "translate"}]
)
def test_languages_and_tasks(options: dict[str, Any], base: Implementations) -> None:
    assert_same_result(*decode_both(base, mel_of("fr/pangrama"), **options))


def test_language_detection_is_openais(base: Implementations) -> None:
    mel = np.stack([mel_of(name) for name in ("ja/kazoeru", "hi/pangrama")])
    tokens, probs = detect_language(base.model, mel)
    openai_tokens, openai_probs = whisper.detect_language(base.openai, torch.from_numpy(mel))
    assert tokens.tolist() == openai_tokens.tolist()
    for actual, openai in zip(probs, openai_probs):
        assert actual == pytest.approx(openai, abs=1e-4)
        assert sum(actual.values()) == pytest.approx(1)
    token, alone = detect_language(base.model, mel[0])
    assert (token, max(alone, key=lambda code: alone[code])) == (tokens[0], "ja")
    named = decode(base.model, mel, DecodingOptions(task="lang_id"))
    assert isinstance(named, list)
    assert [(result.language, result.language_probs) for result in named] == list(zip(["ja", "hi"], probs))


def test_windows_of_a_batch_are_decoded_as_alone(tiny_en: Implementations) -> None:
    mel = np.stack([mel_of(name) for name in ("en/counting", "beckett", "en/hello_world")])
    together = decode(tiny_en.model, mel)
    assert isinstance(together, list)
    for window, result in zip(mel, together):
        alone = decode(tiny_en.model, window)
        assert isinstance(alone, DecodingResult)
        assert (result.tokens, result.text) == (alone.tokens, alone.text)
        assert result.avg_logprob == pytest.approx(alone.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"best_of": 3, "length_penalty": 0.5}])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_same_draws_give_the_same_tokens(
    temperature: float, options: dict[str, Any], tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = SharedDraws(monkeypatch)
    options = {"temperature": temperature, "language": "en", **options}
    actual = decode(tiny_en.model, mel_of("beckett"), DecodingOptions(**options), rng=draws.rng)
    openai = whisper.decode(
        tiny_en.openai, torch.from_numpy(mel_of("beckett")), whisper.DecodingOptions(**options, fp16=False)
    )
    assert isinstance(actual, DecodingResult)
    assert_same_result(actual, openai)


def test_decoding_to_the_end_of_the_context(tiny_en: Implementations) -> None:
    """With a full prompt, a long prefix and an endless text, decoding stops at position 448."""
    eot = get_tokenizer(False).eot
    filled = {"prompt": [400] * 300, "prefix": [500] * 190}
    options = {**filled, "suppress_tokens": [eot, -1], "without_timestamps": True, "language": "en"}
    mel = mel_of("beckett")
    actual, openai = decode_both(tiny_en, mel, **copy.deepcopy(options))
    assert len(actual.tokens) == 448 + 1 - (1 + 223 + 2 + 190) == len(openai.tokens)
    assert_same_result(actual, openai)


# Options that can't be used.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beam_size": 0}, "beam_size 0 follows no sequence"),
        ({"beam_size": 5, "best_of": 5, "temperature": 1.0}, "beam_size and best_of"),
        ({"beam_size": 5, "patience": 0.05}, "patience 0.05 lets none of 5 sequences end"),
        ({"patience": 2.0}, "patience needs a beam_size"),
        ({"temperature": -0.1}, "-0.1 is not 0 or more"),
        ({"temperature": np.nan}, "nan is not 0 or more"),
        ({"temperature": np.inf}, "inf is not 0 or more"),
        ({"prompt": "<|endoftext|>"}, "special tokens"),
        ({"best_of": 5}, "needs a temperature above 0"),
        ({"best_of": 0, "temperature": 1.0}, "best_of 0"),
        ({"length_penalty": 1.5}, "length_penalty 1.5"),
        ({"sample_len": 0}, "sample_len 0"),
        ({"suppress_tokens": "1,two"}, "'1,two' is not a comma-separated"),
        ({"suppress_tokens": [-2, 1]}, r"suppress_tokens \[-2, 1\] contains tokens that the vocabulary"),
        ({"suppress_tokens": [51864]}, "tokens that the vocabulary of 51864 lacks"),
        ({"task": "sing"}, "'sing' is neither"),
        ({"language": "Klingon"}, "'Klingon'"),
        ({"prefix": [400] * 99}, "more than the context of 64"),
    ],
)
def test_unusable_decoding_options_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        decode(TorchModel(random_model(multilingual=False)), np.zeros((80, N_FRAMES), np.float32), **options)


def test_a_window_of_the_wrong_shape_is_named(tiny_en: Implementations) -> None:
    with pytest.raises(OptionError, match=r"\(80, 2999\).*takes \(80, 3000\); use pad_or_trim"):
        decode(tiny_en.model, np.zeros((80, 2999), np.float32))


def test_an_english_only_model_refuses_to_detect_languages() -> None:
    english = TorchModel(random_model(multilingual=False))
    with pytest.raises(OptionError, match="knows only English"):
        detect_language(english, np.zeros((1, 80, N_FRAMES), np.float32))
    with pytest.raises(OptionError, match="knows only English"):
        decode(english, np.zeros((80, N_FRAMES), np.float32), task="lang_id")


@pytest.mark.parametrize(
    "options",
    [{}, {"language": "en"}, {"task": "translate", "beam_size": 3}, {"without_timestamps": True, "language": "yue"}],
)
def test_added_tokens_are_treated_as_by_openai_whisper(options: dict[str, Any]) -> None:
    openai = random_model(n_mels=128, n_added=4)
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples, 128), N_FRAMES)
    actual = decode(TorchModel(openai), mel, **options)
    expected = whisper.decode(openai, torch.from_numpy(mel), whisper.DecodingOptions(**options, fp16=False))
    for name in ("language", "tokens", "text"):
        assert getattr(actual, name) == getattr(expected, name), name
