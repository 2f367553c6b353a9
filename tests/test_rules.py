"""Rules of decoding and transcribing are OpenAI Whisper's.

Both packages compute with one small random PyTorch model, so the tests are quick and logits are
equal.
"""

import dataclasses
import importlib
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from maxwhisper import (
    DecodingOptions,
    DecodingResult,
    OptionError,
    decode,
    detect_language,
    iter_segments,
    log_mel_spectrogram,
    transcribe,
    transcribe_batched,
)
from maxwhisper.audio import HOP_LENGTH, N_FRAMES
from maxwhisper.decoding.options import fallback_options
from maxwhisper.transcription.options import TranscriptionOptions
from tests.support.decoding import assert_same_result
from tests.support.random_models import MODELS, NOISE_SAMPLES, SEVERAL_WINDOWS
from tests.support.sampling import SharedDraws
from tests.support.torch_model import TorchModel

# Random spectrograms of three loudnesses, float32 [3, n_mels, n_frames].
NOISE = np.random.default_rng(0).standard_normal((3, 80, 3000)).astype(np.float32) * np.array(
    [[[0.1]], [[1]], [[4]]], np.float32
)


def decode_both(multilingual: bool, mel: np.ndarray, rng: Any = None, **options: Any) -> tuple[Any, Any]:
    model = MODELS[multilingual]
    actual = decode(TorchModel(model), mel, DecodingOptions(**options), rng=rng)
    return actual, whisper.decode(model, torch.from_numpy(mel), whisper.DecodingOptions(**options, fp16=False))


@pytest.mark.parametrize("multilingual", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"prompt": "A story about Americans, read aloud."},
        {"prompt": list(range(300, 400))},
        {"prefix": "To the", "sample_len": 20},
        {"prefix": list(range(300, 350)), "sample_len": 24},
        {"sample_len": 1},
        {"suppress_tokens": "-1,11,13", "suppress_blank": False},
        {"suppress_tokens": None, "max_initial_timestamp": None},
        {"suppress_tokens": [-1, 50], "max_initial_timestamp": 0.47},
        {"language": "en", "max_initial_timestamp": 0.0},
        {
            "prompt": [400] * 60,
            "prefix": [500] * 26,
            "suppress_tokens": [50256, 50257],
            "without_timestamps": True,
            "sample_len": 32,
        },
    ],
)
def test_decoding_options_give_openais_results(multilingual: bool, options: dict[str, Any]) -> None:
    options = {"sample_len": 24, **options}
    if not multilingual:
        options["language"] = "en"
    for mel in NOISE:
        actual, openai = decode_both(multilingual, mel, **options)
        assert isinstance(actual, DecodingResult)
        assert_same_result(actual, openai)


@pytest.mark.parametrize(
    "options", [{}, {"best_of": 3}, {"best_of": 4, "length_penalty": 0.5}, {"best_of": 4, "length_penalty": 0.0}]
)
def test_sampled_results_are_openais(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    draws = SharedDraws(monkeypatch)
    options = {"temperature": 0.7, "sample_len": 16, "language": "fr", **options}
    for mel in NOISE:
        assert_same_result(*decode_both(True, mel, rng=draws.rng, **options))


def test_decode_takes_keywords_and_features() -> None:
    model = TorchModel(MODELS[False])
    options: dict[str, Any] = {"without_timestamps": True, "sample_len": 5}
    expected = decode(model, NOISE, DecodingOptions(**options))
    assert isinstance(expected, list)
    assert decode(model, NOISE, **options) == expected
    assert decode(model, NOISE, DecodingOptions(sample_len=5), without_timestamps=True) == expected
    assert decode(model, model.embed_audio(NOISE), **options) == expected


def test_each_window_of_a_batch_has_its_language() -> None:
    actual, openai = decode_both(True, NOISE, sample_len=10)
    assert len({result.language for result in openai}) > 1
    for a, b in zip(actual, openai, strict=True):
        assert_same_result(a, b)
    detected, expected = decode_both(True, NOISE, task="lang_id")
    assert [r.language for r in detected] == [r.language for r in expected]
    for a, b in zip(detected, expected, strict=True):
        assert a.language_probs == pytest.approx(b.language_probs)
    token, probs = detect_language(TorchModel(MODELS[True]), NOISE[1])
    assert (token, max(probs, key=lambda code: probs[code])) == (
        detect_language(TorchModel(MODELS[True]), NOISE)[0][1],
        expected[1].language,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"condition_on_previous_text": False},
        {"initial_prompt": "Worstward Ho."},
        {"without_timestamps": True},
        {"no_speech_threshold": 0.0, "logprob_threshold": None},
        {"no_speech_threshold": 0.0, "logprob_threshold": 0.0},
        {"no_speech_threshold": 0.0, "logprob_threshold": -1e3},
        {"no_speech_threshold": None, "compression_ratio_threshold": None, "logprob_threshold": None},
        {"language": "de", "task": "translate"},
        {"language": "French"},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, (0.0, 0.4, 0.6)])
def test_transcripts_are_openais(temperature: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    draws = SharedDraws(monkeypatch)
    # Both use one spectrogram. Otherwise a random number may fall between two sums that differ
    # slightly.
    monkeypatch.setattr(
        importlib.import_module("whisper.transcribe"),
        "log_mel_spectrogram",
        lambda audio, n_mels, padding: torch.from_numpy(log_mel_spectrogram(audio, n_mels, padding)),
    )
    model = MODELS[True]
    options = {"temperature": temperature, "sample_len": 16, **options}
    actual = transcribe(TorchModel(model), NOISE_SAMPLES, rng=draws.rng, **options)
    openai = whisper.transcribe(model, NOISE_SAMPLES, fp16=False, **options)
    assert actual["language"] == openai["language"]
    assert actual["text"] == openai["text"]
    assert len(actual["segments"]) == len(openai["segments"])
    for a, b in zip(actual["segments"], openai["segments"], strict=True):
        assert a.keys() == b.keys()
        # probabilities are summed in a different order
        assert a == {
            name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for name, value in b.items()
        }


def test_defaults_are_openais() -> None:
    actual, openai = (inspect.signature(function).parameters for function in (transcribe, whisper.transcribe))
    shared = {name for name in actual if name in openai and name != "decode_options"}
    assert {"no_speech_threshold", "condition_on_previous_text", "temperature"} <= shared
    assert {name: actual[name].default for name in shared} == {name: openai[name].default for name in shared}


@pytest.mark.parametrize("function", [iter_segments, transcribe_batched])
def test_options_have_the_defaults_of_the_functions(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    defaults = {
        field.name: getattr(TranscriptionOptions(), field.name) for field in dataclasses.fields(TranscriptionOptions)
    }
    assert defaults.keys() - parameters.keys() <= set(SEQUENTIAL_ONLY if function is transcribe_batched else ())
    assert parameters.keys() - defaults.keys() <= {"model", "audio", "recordings", "batch_size", "verbose", "rng"}
    shared = defaults.keys() & parameters.keys() - {"decode_options"}
    assert {name: defaults[name] for name in shared} == {name: parameters[name].default for name in shared}


SEQUENTIAL_ONLY = (
    "condition_on_previous_text",
    "carry_initial_prompt",
    "hallucination_silence_threshold",
    "hotwords",
    "multilingual",
    "language_detection_segments",
    "language_detection_threshold",
)


def transcribe_both(multilingual: bool, samples: np.ndarray, **options: Any) -> tuple[Any, Any]:
    model = MODELS[multilingual]
    options = {"sample_len": 16, "temperature": 0.0, **options}
    return transcribe(TorchModel(model), samples, **options), whisper.transcribe(model, samples, fp16=False, **options)


@pytest.mark.parametrize("options", [{}, {"no_speech_threshold": 0.0, "logprob_threshold": None}])
@pytest.mark.parametrize("multilingual", [False, True])
def test_transcripts_of_several_windows_are_openais(multilingual: bool, options: dict[str, Any]) -> None:
    actual, openai = transcribe_both(multilingual, SEVERAL_WINDOWS, **options)
    assert (actual["text"], actual["language"]) == (openai["text"], openai["language"])
    assert [segment["seek"] for segment in actual["segments"]] == [segment["seek"] for segment in openai["segments"]]
    assert options or len({segment["seek"] for segment in actual["segments"]}) > 2


@pytest.mark.parametrize("multilingual", [False, True])
def test_segments_are_printed_as_they_are_decoded(multilingual: bool, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe(TorchModel(MODELS[multilingual]), SEVERAL_WINDOWS, verbose=True, sample_len=16, temperature=0.0)
    actual = capsys.readouterr().out.splitlines()
    whisper.transcribe(MODELS[multilingual], SEVERAL_WINDOWS, verbose=True, fp16=False, sample_len=16, temperature=0.0)
    openai = capsys.readouterr().out.splitlines()
    assert actual == [line for line in openai if not line.startswith("Detecting language")]
    assert any(line.startswith("[00:0") for line in actual)


class Bar:
    """A progress bar that records its calls."""

    def __init__(self, **options: Any) -> None:
        self.options, self.positions, self.lines = options, [0], list[str]()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int) -> None:
        self.positions.append(self.positions[-1] + n)

    def write(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("verbose", "disable"), [(None, True), (False, None), (True, None)])
def test_progress_is_shown_in_frames(
    verbose: bool | None, disable: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []

    def create(**options: Any) -> Bar:
        bars.append(Bar(**options))
        return bars[-1]

    monkeypatch.setattr(importlib.import_module("maxwhisper.transcription.sequential"), "tqdm", create)
    transcribe(TorchModel(MODELS[False]), SEVERAL_WINDOWS, verbose=verbose, sample_len=16, temperature=0.0)
    (bar,) = bars
    n_frames = len(SEVERAL_WINDOWS) // HOP_LENGTH
    assert bar.options == {"total": n_frames, "unit": "frames", "disable": disable}
    assert n_frames <= bar.positions[-1] < n_frames + N_FRAMES  # the last window may end later than the recording
    assert 0 < bar.positions[1] <= N_FRAMES
    assert bool(bar.lines) == bool(verbose)


def test_an_english_only_model_refuses_other_languages() -> None:
    model = TorchModel(MODELS[False])
    for language in (None, "en", "English"):
        assert transcribe(model, NOISE_SAMPLES, sample_len=2, temperature=0.0, language=language)["language"] == (
            language or "en"
        )
    with pytest.raises(
        OptionError, match=r"^this model knows only English, not 'de'; use a multilingual one, such as base$"
    ):
        transcribe(model, NOISE_SAMPLES, language="de")
    with pytest.raises(
        OptionError, match=r"^this model knows only English, so it can't tell languages apart; use a multilingual one"
    ):
        detect_language(model, NOISE[0])


def test_fallback_options_depend_on_the_temperature() -> None:
    with pytest.raises(OptionError, match=r"^no temperature is given to decode at; give one or several$"):
        fallback_options([], {})
    for temperatures in ((0, 1), ["0.0", 1.0]):
        decode_options = {"best_of": 5, "beam_size": 3, "patience": 2.0, "language": "de"}
        assert fallback_options(temperatures, decode_options) == [  # type: ignore[arg-type]
            DecodingOptions(language="de", temperature=0.0, beam_size=3, patience=2.0),
            DecodingOptions(language="de", temperature=1.0, best_of=5),
        ]


def test_two_runs_draw_the_same_random_numbers() -> None:
    options: dict[str, Any] = {"temperature": 0.9, "sample_len": 8, "language": "en"}
    texts = [
        transcribe(TorchModel(MODELS[True]), NOISE_SAMPLES, rng=rng, **options)["text"]
        for rng in (None, np.random.default_rng(0))
    ]
    assert texts[0] == texts[1]
