"""Transcripts of recorded speech are OpenAI Whisper's, token by token."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whisper

from maxwhisper import AudioError, OptionError, transcribe
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.transcription.segments import split_at_timestamps
from reference.clips import all_clips, packaged_clips
from reference.golden.transcripts import TranscriptCase, recall, transcript_cases
from reference.parity.observe import transcribe_with_max, transcribe_with_openai
from reference.parity.transcripts import Comparison, compare, differences, n_steps
from tests.support.audio import chirp, write_audio
from tests.support.implementations import Implementations, cached_encoder
from tests.support.sampling import SharedDraws
from tests.support.torch_model import TorchModel, random_model

ENGLISH = [name for name, clip in all_clips().items() if clip.language == "en"]
ALLOWED_ROUNDING = 1e-4  # share of all steps


@pytest.fixture(scope="module")
def ledger() -> Any:
    """Count the compared steps, and list and limit those at which rounding decided."""
    steps: dict[str, int] = {}
    rounding: dict[str, str] = {}
    yield steps, rounding
    for name, difference in rounding.items():
        print(f"\ndecided by rounding: {name}: {difference}")
    assert len(rounding) <= max(1, ALLOWED_ROUNDING * sum(steps.values())), rounding


def compare_both(implementations: Implementations, samples: np.ndarray, **options: Any) -> Comparison:
    options = {"temperature": 0.0, **options}
    actual = transcribe_with_max(implementations.model, samples, **options)
    openai = transcribe_with_openai(implementations.openai, samples, **options)
    return compare(actual, openai, implementations.model, implementations.openai, implementations.float64)


def assert_same(
    implementations: Implementations, name: str, samples: np.ndarray, ledger: Any, **options: Any
) -> Comparison:
    comparison = compare_both(implementations, samples, **options)
    steps, rounding = ledger
    name = f"{name} {options}"
    steps[name] = comparison.n_steps
    if comparison.passes and comparison.token_difference:
        rounding[name] = str(comparison.token_difference)
    assert comparison.passes, "\n".join([name, *comparison.differences, str(comparison.token_difference)])
    return comparison


def assert_same_with_and_without_condition(
    implementations: Implementations, name: str, samples: np.ndarray, ledger: Any
) -> None:
    conditioned = assert_same(implementations, name, samples, ledger, condition_on_previous_text=True)
    if conditioned.n_windows > 1:  # a single window has no previous text
        assert_same(implementations, name, samples, ledger, condition_on_previous_text=False)


@pytest.mark.parametrize("name", ENGLISH)
def test_transcripts_of_english_clips_are_openais(name: str, tiny_en: Implementations, ledger: Any) -> None:
    assert_same_with_and_without_condition(tiny_en, name, all_clips()[name].samples, ledger)


def test_stored_transcripts_cover_every_language_and_several_windows() -> None:
    cases = transcript_cases().values()
    spoken = {
        (clip.name, task)
        for clip in packaged_clips().values()
        if clip.name != "beckett"
        for task in ("transcribe", "translate")
    }
    assert {(case.clips[0], case.options["task"]) for case in cases if "task" in case.options} == spoken
    assert len({name.split("/")[0] for name, _ in spoken}) == 9
    joined = [case for case in cases if case.model == "tiny.en"]
    assert [case.options.get("condition_on_previous_text") for case in joined] == [True, False, None]
    assert {case.model for case in cases if case.options.get("beam_size") and case.options["word_timestamps"]} == {
        "tiny.en",
        "base",
    }
    assert all(len(case.samples) > 70 * SAMPLE_RATE for case in joined)


@pytest.fixture(scope="module")
def encoders(implementations: Callable[[str], Implementations]) -> Callable[[str], Any]:
    """Return a function that returns the encoder of a model, which encodes each window once.

    Features do not depend on options of decoding.
    """
    return cache(lambda name: cached_encoder(implementations(name).model.embed_audio))


@pytest.mark.parametrize("case", transcript_cases().values(), ids=lambda case: case.name)
def test_stored_transcripts_are_reproduced(
    case: TranscriptCase,
    implementations: Callable[[str], Implementations],
    encoders: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    ledger: Any,
) -> None:
    """OpenAI's transcripts are stored in `golden/`.

    OpenAI Whisper runs again only if our transcript differs, to compare margins and errors.
    """
    samples, model = case.samples, implementations(case.model).model
    monkeypatch.setattr(model, "embed_audio", encoders(case.model))
    openai = recall(case)
    if openai is None or differences(transcribe_with_max(model, samples, **case.options), openai):
        assert_same(implementations(case.model), case.name, samples, ledger, **case.options)
    else:
        ledger[0][case.name] = n_steps(openai)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_prompt": "Samuel Beckett, Worstward Ho."},
        {"without_timestamps": True},
        {"no_speech_threshold": 0.0, "logprob_threshold": 0.0},
        {"no_speech_threshold": None},
        {"language": "English", "compression_ratio_threshold": None, "logprob_threshold": None},
    ],
)
def test_transcription_options_give_openais_transcripts(
    options: dict[str, Any], tiny_en: Implementations, ledger: Any
) -> None:
    assert_same(tiny_en, "beckett", packaged_clips()["beckett"].samples, ledger, **options)


def test_fallback_decides_and_samples_as_openai_does(
    tiny_en: Implementations, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first temperatures miss the thresholds. Both packages draw the same random numbers."""
    draws = SharedDraws(monkeypatch)
    options = {
        "temperature": (0.0, 0.4, 1.0),
        "logprob_threshold": -0.2,
        "compression_ratio_threshold": 1.05,
        "best_of": 2,
    }
    samples = packaged_clips()["beckett"].samples
    actual = transcribe_with_max(tiny_en.model, samples, rng=draws.rng, **options)
    openai = transcribe_with_openai(tiny_en.openai, samples, **options)
    assert [w.temperature for w in actual.windows] == [w.temperature for w in openai.windows]
    assert len({w.temperature for w in actual.windows}) == 3
    comparison = compare(actual, openai, tiny_en.model, tiny_en.openai, tiny_en.float64)
    assert comparison.is_equal, comparison.differences


def test_two_runs_give_the_same_transcript(tiny_en: Implementations) -> None:
    """Transcripts are equal even if tokens are sampled."""
    options: dict[str, Any] = {"temperature": (0.4, 1.0), "logprob_threshold": -0.2}
    samples = packaged_clips()["beckett"].samples
    assert transcribe(tiny_en.model, samples, **options) == transcribe(tiny_en.model, samples, **options)


# Valid but unusual recordings.


def unusual() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE).astype(np.float32)
    return {
        "one sample": np.array([0.5], np.float32),
        "no sample": np.zeros(0, np.float32),
        "half a second of silence": np.zeros(SAMPLE_RATE // 2, np.float32),
        "silence": np.zeros(12 * SAMPLE_RATE, np.float32),
        "silence for two windows": np.zeros(45 * SAMPLE_RATE, np.float32),
        "noise": 0.1 * noise,
        "clipped noise": np.clip(100 * noise, -1, 1),
        "louder than full scale": 50 * packaged_clips()["en/counting"].samples,
        "very quiet": 1e-4 * packaged_clips()["en/counting"].samples,
    }


@pytest.mark.parametrize("name", unusual())
def test_unusual_samples(name: str, tiny_en: Implementations, ledger: Any) -> None:
    assert_same(tiny_en, name, unusual()[name], ledger)


@pytest.mark.parametrize(("rate", "layout", "n"), [(8000, "mono", 1), (96000, "5.1", 6)])
def test_unusual_files(rate: int, layout: str, n: int, tiny_en: Implementations, tmp_path: Path, ledger: Any) -> None:
    import librosa

    speech = librosa.resample(packaged_clips()["en/counting"].samples, orig_sr=SAMPLE_RATE, target_sr=rate)
    path = write_audio(tmp_path / "speech.wav", np.tile(np.clip(speech, -1, 1), (n, 1)), rate, layout)
    from maxwhisper import load_audio

    actual = transcribe(tiny_en.model, path, temperature=0.0)
    openai = whisper.transcribe(tiny_en.openai, load_audio(path), temperature=0.0, fp16=False)
    assert actual["text"] == openai["text"]
    assert [s["tokens"] for s in actual["segments"]] == [s["tokens"] for s in openai["segments"]]


def test_float64_samples_are_accepted(tiny_en: Implementations) -> None:
    samples = packaged_clips()["en/counting"].samples
    assert transcribe(tiny_en.model, samples.astype(np.float64), temperature=0) == transcribe(
        tiny_en.model, samples, temperature=0
    )


def test_a_tone_is_transcribed_as_by_openai(tiny_en: Implementations, ledger: Any) -> None:
    assert_same(tiny_en, "chirp", chirp(8.0, SAMPLE_RATE).astype(np.float32), ledger)


# Samples and options that can't be used.


def test_nan_samples_are_refused(tiny_en: Implementations) -> None:
    with pytest.raises(AudioError, match="first at 3"):
        transcribe(tiny_en.model, np.array([0, 0, 0, np.nan], np.float32))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"language": "fr"}, "knows only English, not 'fr'"),
        ({"language": "Klingon"}, "'Klingon'"),
        ({"beam_size": 0}, "beam_size 0 follows no sequence"),
        ({"temperature": ()}, "no temperature"),
        ({"temperatur": 0}, "temperatur"),
    ],
)
def test_unusable_transcription_options_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises((OptionError, TypeError), match=match):
        transcribe(TorchModel(random_model(multilingual=False)), np.zeros(SAMPLE_RATE, np.float32), **options)


# Splitting a window into segments.

BEGIN = 1000


@pytest.mark.parametrize(
    ("tokens", "spans", "advance"),
    [
        ([], [(0.0, 8.0, [])], 800),
        ([7, 8], [(0.0, 8.0, [7, 8])], 800),
        ([BEGIN, 7, BEGIN + 100], [(0.0, 2.0, [BEGIN, 7, BEGIN + 100])], 800),
        ([BEGIN, 7], [(0.0, 8.0, [BEGIN, 7])], 800),
        ([BEGIN, 7, BEGIN + 100, BEGIN + 110, 8], [(0.0, 2.0, [BEGIN, 7, BEGIN + 100])], 200),
        ([BEGIN, 7, BEGIN + 100, BEGIN + 110], [(0.0, 2.0, [BEGIN, 7, BEGIN + 100])], 200),
        (
            [BEGIN, 7, BEGIN + 100, BEGIN + 110, BEGIN + 115, 8],
            [(0.0, 2.0, [BEGIN, 7, BEGIN + 100]), (2.2, 2.2, [BEGIN + 110])],
            220,
        ),
        (
            [BEGIN + 5, 7, BEGIN + 100, BEGIN + 110, 8, BEGIN + 150],
            [(0.1, 2.0, [BEGIN + 5, 7, BEGIN + 100]), (2.2, 3.0, [BEGIN + 110, 8, BEGIN + 150])],
            800,
        ),
    ],
)
def test_windows_are_split_between_consecutive_timestamps(tokens: list[int], spans: list[Any], advance: int) -> None:
    segments, actual_advance = split_at_timestamps(tokens, BEGIN, segment_size=800, n_audio_ctx=1500)
    assert actual_advance == advance
    assert [(pytest.approx(start), pytest.approx(end), piece) for start, end, piece in segments] == spans
