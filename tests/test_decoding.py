"""The rules of decoding are OpenAI's: filters, sampling, ranking, options."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Trio
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
from tests.torch_model import TorchModel, random_model

OURS, THEIRS = get_tokenizer(True), whisper.tokenizer.get_tokenizer(True)
N_VOCAB = 51865
SAMPLE_BEGIN = 3


def mel_of(name: str) -> np.ndarray:
    return pad_or_trim(log_mel_spectrogram(packaged_clips()[name].samples), N_FRAMES)


# Filters.

token = st.sampled_from([*range(400, 404), OURS.eot]) | st.integers(OURS.timestamp_begin, OURS.timestamp_begin + 60)


@given(
    sampled=st.lists(token, max_size=8),
    seed=st.integers(0, 100),
    lean=st.sampled_from([-3.0, 0.0, 3.0, 12.0]),
    limit=st.sampled_from([None, 50]),
)
@settings(max_examples=200, deadline=None)
def test_filters_forbid_what_openais_do(sampled: list[int], seed: int, lean: float, limit: int | None) -> None:
    logits = np.random.default_rng(seed).standard_normal((1, N_VOCAB)).astype(np.float32)
    logits[:, OURS.timestamp_begin :] += lean  # so that timestamps now win over text, now lose
    tokens = np.array([[OURS.sot, 50259, OURS.transcribe, *sampled]])
    pairs: list[tuple[Any, Any]] = [
        (SuppressBlank(OURS, SAMPLE_BEGIN), whisper.decoding.SuppressBlank(THEIRS, SAMPLE_BEGIN)),
        (SuppressTokens([1, 7, 400]), whisper.decoding.SuppressTokens([1, 7, 400])),
        (
            ApplyTimestampRules(OURS, SAMPLE_BEGIN, limit),
            whisper.decoding.ApplyTimestampRules(THEIRS, SAMPLE_BEGIN, limit),
        ),
    ]
    for ours, theirs in pairs:
        expected = torch.from_numpy(logits.copy())
        theirs.apply(expected, torch.from_numpy(tokens))
        ours.apply(logits, tokens)
        assert np.array_equal(logits, expected.numpy())


def test_filters_treat_each_sequence_by_its_own_tokens(rng: np.random.Generator) -> None:
    begin = OURS.timestamp_begin
    tokens = np.array(
        [[OURS.sot, 50259, OURS.transcribe, begin, 400, begin + 9], [OURS.sot, 50259, OURS.transcribe, begin, 400, 401]]
    )
    logits = rng.standard_normal((2, N_VOCAB)).astype(np.float32)
    alone = logits.copy()
    rules = ApplyTimestampRules(OURS, SAMPLE_BEGIN, 50)
    rules.apply(logits, tokens)
    for i in range(2):
        rules.apply(alone[i : i + 1], tokens[i : i + 1])
    assert np.array_equal(logits, alone)


@pytest.mark.parametrize("suppress", ["-1", "-1,400", "400,401", [400, -1], ""])
def test_the_suppressed_tokens_are_openais(suppress: Any, tiny_en: Trio) -> None:
    from maxwhisper.decoding import DecodingTask

    options = {"suppress_tokens": suppress, "without_timestamps": True, "suppress_blank": False}
    ours = DecodingTask(tiny_en.model, DecodingOptions(**options)).logit_filters
    theirs = whisper.decoding.DecodingTask(tiny_en.judge, whisper.DecodingOptions(**options, fp16=False)).logit_filters
    assert [list(f.suppress_tokens) for f in ours if isinstance(f, SuppressTokens)] == [
        list(f.suppress_tokens) for f in theirs
    ]


# Numbers.


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
    logits = np.log(np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]])) + np.array(
        [[1000.0], [-1000.0]]
    )  # each row by its own maximum
    for draws, expected in (
        ((0.2, 0.2), [0, 0]),
        ((0.25, 0.5), [1, 1]),
        ((0.49, 0.74), [1, 1]),
        ((0.5, 0.75), [2, 2]),
        ((0.99, 0.99), [2, 2]),
    ):
        assert sample(logits, np.array(draws) + 1e-3).tolist() == expected


# Whole windows.


def decode_both(trio: Trio, mel: np.ndarray, **options: Any) -> tuple[DecodingResult, whisper.DecodingResult]:
    ours = decode(trio.model, mel, DecodingOptions(**options))
    theirs = whisper.decode(trio.judge, torch.from_numpy(mel), whisper.DecodingOptions(**options, fp16=False))
    assert isinstance(ours, DecodingResult)
    return ours, theirs


def assert_same(ours: DecodingResult, theirs: whisper.DecodingResult) -> None:
    for name in ("language", "tokens", "text", "temperature"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("avg_logprob", "no_speech_prob", "compression_ratio"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-3), name
    assert ours.language_probs == theirs.language_probs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"prompt": "A story about Americans, read aloud."},
        {"prompt": list(range(300, 700))},  # cut to what the context holds
        {"prefix": "To the", "sample_len": 20},
        {"prefix": "To the"},
        {"sample_len": 5},
        {"suppress_tokens": "-1,11,13", "suppress_blank": False},
        {"suppress_tokens": None, "max_initial_timestamp": None},
        {"max_initial_timestamp": 0.47},
    ],
)
def test_every_option_means_what_it_does_at_openai(options: dict[str, Any], tiny_en: Trio) -> None:
    assert_same(*decode_both(tiny_en, mel_of("beckett"), language="en", **options))


@pytest.mark.parametrize(
    "options", [{}, {"task": "translate"}, {"language": "French"}, {"language": "fr", "task": "translate"}]
)
def test_languages_and_tasks(options: dict[str, Any], base: Trio) -> None:
    assert_same(*decode_both(base, mel_of("fr/pangrama"), **options))


def test_language_detection_is_openais(base: Trio) -> None:
    mel = np.stack([mel_of(name) for name in ("ja/kazoeru", "hi/pangrama")])
    tokens, probs = detect_language(base.model, mel)
    their_tokens, their_probs = whisper.detect_language(base.judge, torch.from_numpy(mel))
    assert tokens.tolist() == their_tokens.tolist()
    for ours, theirs in zip(probs, their_probs):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert sum(ours.values()) == pytest.approx(1)
    token, alone = detect_language(base.model, mel[0])
    assert (token, max(alone, key=lambda code: alone[code])) == (tokens[0], "ja")
    named = decode(base.model, mel, DecodingOptions(task="lang_id"))
    assert isinstance(named, list)
    assert [(result.language, result.language_probs) for result in named] == list(zip(["ja", "hi"], probs))


def test_a_batch_is_decoded_as_its_windows_are_alone(tiny_en: Trio) -> None:
    mel = np.stack([mel_of(name) for name in ("en/counting", "beckett", "en/hello_world")])
    together = decode(tiny_en.model, mel)
    assert isinstance(together, list)
    for window, result in zip(mel, together):
        alone = decode(tiny_en.model, window)
        assert isinstance(alone, DecodingResult)
        assert (result.tokens, result.text) == (alone.tokens, alone.text)
        assert result.avg_logprob == pytest.approx(alone.avg_logprob, abs=1e-4)


class Draws:
    """The same random draws for both programs, by way of each one's own door."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours = np.random.default_rng(7)
        theirs = np.random.default_rng(7)

        class Categorical:
            def __init__(self, logits: torch.Tensor) -> None:
                self.logits = logits

            def sample(self) -> torch.Tensor:
                return torch.from_numpy(sample(self.logits.numpy(), theirs.random(len(self.logits))))

        monkeypatch.setattr(whisper.decoding, "Categorical", Categorical)


@pytest.mark.parametrize("options", [{}, {"best_of": 3, "length_penalty": 0.5}])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_same_draws_give_the_same_tokens(
    temperature: float, options: dict[str, Any], tiny_en: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws(monkeypatch)
    options = {"temperature": temperature, "language": "en", **options}
    ours = decode(tiny_en.model, mel_of("beckett"), DecodingOptions(**options), rng=draws.ours)
    theirs = whisper.decode(
        tiny_en.judge, torch.from_numpy(mel_of("beckett")), whisper.DecodingOptions(**options, fp16=False)
    )
    assert isinstance(ours, DecodingResult)
    assert_same(ours, theirs)


def test_decoding_to_the_end_of_the_context(tiny_en: Trio) -> None:
    """A full prompt, a long prefix, and a text that never ends: position 448 is reached, and no further."""
    eot = get_tokenizer(False).eot
    filled = {"prompt": [400] * 300, "prefix": [500] * 190}
    options = {**filled, "suppress_tokens": [eot, -1], "without_timestamps": True, "language": "en"}
    mel = mel_of("beckett")
    ours, theirs = decode_both(tiny_en, mel, **copy.deepcopy(options))
    assert len(ours.tokens) == 448 + 1 - (1 + 223 + 2 + 190) == len(theirs.tokens)
    assert_same(ours, theirs)


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
def test_options_that_can_not_be_used_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        decode(TorchModel(random_model(multilingual=False)), np.zeros((80, N_FRAMES), np.float32), **options)


def test_a_window_of_another_shape_is_named(tiny_en: Trio) -> None:
    with pytest.raises(OptionError, match=r"\(80, 2999\).*takes \(80, 3000\); use pad_or_trim"):
        decode(tiny_en.model, np.zeros((80, 2999), np.float32))


def test_an_english_model_can_not_tell_languages() -> None:
    english = TorchModel(random_model(multilingual=False))
    with pytest.raises(OptionError, match="knows only English"):
        detect_language(english, np.zeros((1, 80, N_FRAMES), np.float32))
    with pytest.raises(OptionError, match="knows only English"):
        decode(english, np.zeros((80, N_FRAMES), np.float32), task="lang_id")
