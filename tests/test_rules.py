"""The rules of decoding and transcribing, judged quickly: both programs by PyTorch, on a small model that sees something else each time."""

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
from maxwhisper.audio import HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from maxwhisper.decoding.options import fallback_options
from maxwhisper.transcription.options import TranscriptionOptions
from tests.test_decoding import Draws, assert_same
from tests.torch_model import TorchModel, random_model

MODELS = {multilingual: random_model(multilingual) for multilingual in (False, True)}
NOISE = np.random.default_rng(0).standard_normal((3, 80, 3000)).astype(np.float32) * np.array(
    [[[0.1]], [[1]], [[4]]], np.float32
)


def decode_both(multilingual: bool, mel: np.ndarray, rng: Any = None, **options: Any) -> tuple[Any, Any]:
    judge = MODELS[multilingual]
    ours = decode(TorchModel(judge), mel, DecodingOptions(**options), rng=rng)
    return ours, whisper.decode(judge, torch.from_numpy(mel), whisper.DecodingOptions(**options, fp16=False))


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
def test_options(multilingual: bool, options: dict[str, Any]) -> None:
    options = {"sample_len": 24, **options}
    if not multilingual:
        options["language"] = "en"
    for mel in NOISE:
        ours, theirs = decode_both(multilingual, mel, **options)
        assert isinstance(ours, DecodingResult)
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    "options", [{}, {"best_of": 3}, {"best_of": 4, "length_penalty": 0.5}, {"best_of": 4, "length_penalty": 0.0}]
)
def test_samples(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    options = {"temperature": 0.7, "sample_len": 16, "language": "fr", **options}
    for mel in NOISE:
        assert_same(*decode_both(True, mel, rng=draws.ours, **options))


def test_options_may_be_keywords_and_windows_features() -> None:
    model = TorchModel(MODELS[False])
    options: dict[str, Any] = {"without_timestamps": True, "sample_len": 5}
    expected = decode(model, NOISE, DecodingOptions(**options))
    assert isinstance(expected, list)
    assert decode(model, NOISE, **options) == expected
    assert decode(model, NOISE, DecodingOptions(sample_len=5), without_timestamps=True) == expected
    assert decode(model, model.embed_audio(NOISE), **options) == expected


def test_languages_of_a_batch() -> None:
    ours, theirs = decode_both(True, NOISE, sample_len=10)
    assert len({result.language for result in theirs}) > 1
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    named, expected = decode_both(True, NOISE, task="lang_id")
    assert [r.language for r in named] == [r.language for r in expected]
    for a, b in zip(named, expected, strict=True):
        assert a.language_probs == pytest.approx(b.language_probs)
    token, probs = detect_language(TorchModel(MODELS[True]), NOISE[1])
    assert (token, max(probs, key=lambda code: probs[code])) == (
        detect_language(TorchModel(MODELS[True]), NOISE)[0][1],
        expected[1].language,
    )


SPEECHLESS = 0.1 * np.random.default_rng(1).standard_normal(40 * SAMPLE_RATE).astype(np.float32)


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
def test_transcripts(temperature: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    monkeypatch.setattr(  # the same spectrogram for both, or now and then a draw falls between two tokens
        importlib.import_module("whisper.transcribe"),
        "log_mel_spectrogram",
        lambda audio, n_mels, padding: torch.from_numpy(log_mel_spectrogram(audio, n_mels, padding)),
    )
    judge = MODELS[True]
    options = {"temperature": temperature, "sample_len": 16, **options}
    ours = transcribe(TorchModel(judge), SPEECHLESS, rng=draws.ours, **options)
    theirs = whisper.transcribe(judge, SPEECHLESS, fp16=False, **options)
    assert ours["language"] == theirs["language"]
    assert ours["text"] == theirs["text"]
    assert len(ours["segments"]) == len(theirs["segments"])
    for a, b in zip(ours["segments"], theirs["segments"], strict=True):
        assert a.keys() == b.keys()
        # probabilities are summed in another order
        assert a == {
            name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for name, value in b.items()
        }


def test_defaults_are_openais() -> None:
    ours, theirs = (inspect.signature(function).parameters for function in (transcribe, whisper.transcribe))
    shared = {name for name in ours if name in theirs and name != "decode_options"}
    assert {"no_speech_threshold", "condition_on_previous_text", "temperature"} <= shared
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


@pytest.mark.parametrize("function", [iter_segments, transcribe_batched])
def test_options_have_the_defaults_of_the_functions(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    own = {
        field.name: getattr(TranscriptionOptions(), field.name) for field in dataclasses.fields(TranscriptionOptions)
    }
    assert own.keys() - parameters.keys() <= set(SEQUENTIAL_ONLY if function is transcribe_batched else ())
    assert parameters.keys() - own.keys() <= {"model", "audio", "recordings", "batch_size", "verbose", "rng"}
    shared = own.keys() & parameters.keys() - {"decode_options"}
    assert {name: own[name] for name in shared} == {name: parameters[name].default for name in shared}


SEQUENTIAL_ONLY = (
    "condition_on_previous_text",
    "carry_initial_prompt",
    "hallucination_silence_threshold",
    "hotwords",
    "multilingual",
    "language_detection_segments",
    "language_detection_threshold",
)

SEVERAL_WINDOWS = np.concatenate([scale * SPEECHLESS for scale in (1, 3, 9)])


def transcribe_both(multilingual: bool, samples: np.ndarray, **options: Any) -> tuple[Any, Any]:
    judge = MODELS[multilingual]
    options = {"sample_len": 16, "temperature": 0.0, **options}
    return transcribe(TorchModel(judge), samples, **options), whisper.transcribe(judge, samples, fp16=False, **options)


@pytest.mark.parametrize("options", [{}, {"no_speech_threshold": 0.0, "logprob_threshold": None}])
@pytest.mark.parametrize("multilingual", [False, True])
def test_several_windows(multilingual: bool, options: dict[str, Any]) -> None:
    ours, theirs = transcribe_both(multilingual, SEVERAL_WINDOWS, **options)
    assert (ours["text"], ours["language"]) == (theirs["text"], theirs["language"])
    assert [segment["seek"] for segment in ours["segments"]] == [segment["seek"] for segment in theirs["segments"]]
    assert options or len({segment["seek"] for segment in ours["segments"]}) > 2


@pytest.mark.parametrize("multilingual", [False, True])
def test_segments_are_printed_as_they_come(multilingual: bool, capsys: pytest.CaptureFixture[str]) -> None:
    transcribe(TorchModel(MODELS[multilingual]), SEVERAL_WINDOWS, verbose=True, sample_len=16, temperature=0.0)
    ours = capsys.readouterr().out.splitlines()
    whisper.transcribe(MODELS[multilingual], SEVERAL_WINDOWS, verbose=True, fp16=False, sample_len=16, temperature=0.0)
    theirs = capsys.readouterr().out.splitlines()
    assert ours == [line for line in theirs if not line.startswith("Detecting language")]
    assert any(line.startswith("[00:0") for line in ours)


class Bar:
    """What a progress bar is told."""

    def __init__(self, **how: Any) -> None:
        self.how, self.seen, self.lines = how, [0], list[str]()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int) -> None:
        self.seen.append(self.seen[-1] + n)

    def write(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("verbose", "disable"), [(None, True), (False, None), (True, None)])
def test_progress_is_shown_in_frames(
    verbose: bool | None, disable: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []

    def make(**how: Any) -> Bar:
        bars.append(Bar(**how))
        return bars[-1]

    monkeypatch.setattr(importlib.import_module("maxwhisper.transcription.sequential"), "tqdm", make)
    transcribe(TorchModel(MODELS[False]), SEVERAL_WINDOWS, verbose=verbose, sample_len=16, temperature=0.0)
    (bar,) = bars
    n_frames = len(SEVERAL_WINDOWS) // HOP_LENGTH
    assert bar.how == {"total": n_frames, "unit": "frames", "disable": disable}
    assert n_frames <= bar.seen[-1] < n_frames + N_FRAMES  # the last window may end later than the recording
    assert 0 < bar.seen[1] <= N_FRAMES
    assert bool(bar.lines) == bool(verbose)


def test_an_english_model_knows_english_alone() -> None:
    model = TorchModel(MODELS[False])
    for language in (None, "en", "English"):
        assert transcribe(model, SPEECHLESS, sample_len=2, temperature=0.0, language=language)["language"] == (
            language or "en"
        )
    with pytest.raises(
        OptionError, match=r"^this model knows only English, not 'de'; use a multilingual one, such as base$"
    ):
        transcribe(model, SPEECHLESS, language="de")
    with pytest.raises(
        OptionError, match=r"^this model knows only English, so it can't tell languages apart; use a multilingual one"
    ):
        detect_language(model, NOISE[0])


def test_each_temperature_has_its_options() -> None:
    with pytest.raises(OptionError, match=r"^no temperature is given to decode at; give one or several$"):
        fallback_options([], {})
    for temperatures in ((0, 1), ["0.0", 1.0]):
        asked = {"best_of": 5, "beam_size": 3, "patience": 2.0, "language": "de"}
        assert fallback_options(temperatures, asked) == [  # type: ignore[arg-type]
            DecodingOptions(language="de", temperature=0.0, beam_size=3, patience=2.0),
            DecodingOptions(language="de", temperature=1.0, best_of=5),
        ]


def test_two_runs_draw_the_same() -> None:
    options: dict[str, Any] = {"temperature": 0.9, "sample_len": 8, "language": "en"}
    texts = [
        transcribe(TorchModel(MODELS[True]), SPEECHLESS, rng=rng, **options)["text"]
        for rng in (None, np.random.default_rng(0))
    ]
    assert texts[0] == texts[1]
