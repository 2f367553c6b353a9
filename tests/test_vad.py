"""Silence is skipped, and the times of speech stay those of the recording."""

import argparse
import json
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxwhisper import AudioError, OptionError, iter_segments, transcribe, transcribe_batched
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.transcription.silence import Speech, VadOptions, find_speech, speech_parts
from maxwhisper.transcription.silero import speech_probabilities
from reference.clips import all_clips, packaged_clips
from reference.golden.silence import ANSWERS, DIGITS, SCALE
from tests.support.implementations import Implementations

CHUNK = 512  # number of samples for which the detector computes one probability
NO_PAD = VadOptions(min_silence_duration_ms=100, speech_pad_ms=0)


@pytest.mark.parametrize(
    ("probabilities", "options", "parts"),
    [
        ([], NO_PAD, []),
        ([0.1] * 9, NO_PAD, []),
        ([0.9] * 9, NO_PAD, [(0, 9)]),
        ([0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9], NO_PAD, [(1, 3), (8, 9)]),
        ([0.1, 0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1], NO_PAD, [(1, 9)]),  # no pause is long enough
        ([0.1, 0.9, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], NO_PAD, [(1, 9)]),  # neither speech nor silence
        (
            [0.1, 0.9, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4],
            VadOptions(neg_threshold=0.45, min_silence_duration_ms=100, speech_pad_ms=0),
            [(1, 2)],
        ),
        (
            [0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9],
            VadOptions(0.5, None, 40, np.inf, 100, 0),
            [(6, 9)],
        ),  # too short
    ],
)
def test_speech_begins_and_ends(probabilities: list[float], options: VadOptions, parts: list[tuple[int, int]]) -> None:
    assert speech_parts(probabilities, CHUNK * len(probabilities), options) == [
        (CHUNK * start, CHUNK * end) for start, end in parts
    ]


@given(
    probabilities=st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.9]), max_size=60),
    pause=st.sampled_from([0, 64, 300]),
    pad=st.sampled_from([0, 30, 400]),
    n_cut=st.integers(0, 511),
)
def test_speech_parts_cover_all_speech_once(probabilities: list[float], pause: int, pad: int, n_cut: int) -> None:
    n_samples = max(0, CHUNK * len(probabilities) - n_cut)
    parts = speech_parts(probabilities, n_samples, VadOptions(min_silence_duration_ms=pause, speech_pad_ms=pad))
    edges = [edge for part in parts for edge in part]
    assert edges == sorted(edges)
    assert all(0 <= start < end <= n_samples for start, end in parts)
    for i, probability in enumerate(probabilities):
        if probability >= 0.5:
            assert any(start <= CHUNK * i < end and min(CHUNK * (i + 1), n_samples) <= end for start, end in parts)


def test_times_are_restored_to_the_recordings() -> None:
    speech: Any = Speech([(SAMPLE_RATE, 3 * SAMPLE_RATE), (10 * SAMPLE_RATE, 11 * SAMPLE_RATE)])
    assert len(speech.joined(np.zeros(20 * SAMPLE_RATE, np.float32))) == 3 * SAMPLE_RATE
    whole = {"start": 0.5, "end": 2.0, "text": " One"}
    assert speech.restore(whole) == {"start": 1.5, "end": 3.0, "text": " One"}
    assert speech.restore({"start": 2.0, "end": 2.5}) == {"start": 10.0, "end": 10.5}
    words = [{"word": " One", "start": 1.8, "end": 2.1}, {"word": " two", "start": 2.1, "end": 2.4}]
    timed = speech.restore({**whole, "words": words})
    assert [(w["start"], w["end"]) for w in timed["words"]] == [(2.8, 3.0), (10.1, 10.4)]
    assert (timed["start"], timed["end"]) == (2.8, 10.4)
    beyond = speech.restore({"words": [{"word": " so", "start": 1.9, "end": 2.2}]})
    assert (beyond["start"], beyond["end"]) == (10.0, 10.2)  # most of the word is in the second part
    assert speech.restore({"start": 2.0, "end": 2.0}) == {"start": 10.0, "end": 10.0}
    other: Any = Speech([(0, 8960), (168960, 328960)])
    assert other.restore({"start": 0.5599999999999999, "end": 1.56})["start"] == 10.56
    assert speech.within([(2 * SAMPLE_RATE, 10 * SAMPLE_RATE + 5)]).parts == [
        (2 * SAMPLE_RATE, 3 * SAMPLE_RATE),
        (10 * SAMPLE_RATE, 10 * SAMPLE_RATE + 5),
    ]


@cache
def answers() -> dict[str, Any]:
    """Load faster-whisper's results, stored by `python -m reference.golden.silence answers`."""
    return json.loads(ANSWERS.read_text())


def test_random_probabilities_give_faster_whispers_parts() -> None:
    """Parts are equal for any options, including limits on the length of speech."""
    for case in answers()["made_up"]:
        probabilities = np.array([int(digit) for digit in case["digits"]], np.float32) / np.float32(DIGITS)
        parts = speech_parts(probabilities, case["n_samples"], VadOptions.of(case["options"]))
        assert parts == [tuple(part) for part in case["parts"]], case


def test_speech_probabilities_of_clips_are_faster_whispers() -> None:
    """Half of the tolerance is for the rounding of the stored numbers.

    The other half is five times the largest observed float32 error. The last chunk is not compared:
    faster-whisper overwrites its last 64 samples with zeros through a view, and Silero does not.
    """
    for name in all_clips():
        expected = np.array(answers()["clips"][name]["probabilities"]) / SCALE
        np.testing.assert_allclose(
            speech_probabilities(all_clips()[name].samples)[:-1], expected[:-1], rtol=0, atol=1 / SCALE
        )


def test_speech_parts_of_clips_are_faster_whispers() -> None:
    """The tolerance is 0.2 s.

    Parts are usually equal. But if a probability is close to a threshold, sums in a different order
    may move it to the other side.
    """
    for name in all_clips():
        for answer in answers()["clips"][name]["answers"]:
            parts = find_speech(all_clips()[name].samples, VadOptions.of(answer["options"])).parts
            assert len(parts) == len(answer["parts"]), (name, answer["options"])
            np.testing.assert_allclose(np.array(parts), np.array(answer["parts"]), rtol=0, atol=0.2 * SAMPLE_RATE)


@pytest.mark.parametrize("n_samples", [0, 1, 511, 512, 513, 512 * 512 + 1])
def test_every_chunk_has_a_probability(n_samples: int) -> None:
    probabilities = speech_probabilities(np.zeros(n_samples, np.float32))
    assert probabilities.shape == (n_samples // 512 + 1,)
    assert (probabilities < 0.1).all()


def test_probabilities_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = packaged_clips()["beckett"].samples
    together = speech_probabilities(samples)
    monkeypatch.setattr("maxwhisper.transcription.silero._BLOCK", 7)
    np.testing.assert_allclose(
        speech_probabilities(samples), together, rtol=0, atol=1e-4
    )  # for sums in a different order


class Fields(NamedTuple):
    threshold: float
    max_speech_duration_s: float


@dataclass
class FasterWhisperOptions:  # a copy of faster-whisper's class
    threshold: float = 0.5
    neg_threshold: float = None  # type: ignore[assignment]  # as in faster-whisper
    min_speech_duration_ms: int = 0
    max_speech_duration_s: float = float("inf")
    min_silence_duration_ms: int = 2000
    speech_pad_ms: int = 400


@dataclass(slots=True)
class Slots:
    threshold: float = 0.25


class Settings:
    threshold = 0.25


def test_names_and_defaults_are_faster_whispers() -> None:
    assert list(vars(VadOptions()).items()) == list(vars(FasterWhisperOptions()).items())


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        (None, VadOptions()),
        ({}, VadOptions()),
        ({"threshold": 0.25, "neg_threshold": None}, VadOptions(threshold=0.25)),
        (MappingProxyType({"speech_pad_ms": np.float32(30)}), VadOptions(speech_pad_ms=30)),
        (FasterWhisperOptions(), VadOptions()),
        (FasterWhisperOptions(max_speech_duration_s=30), VadOptions(max_speech_duration_s=30)),
        (VadOptions(threshold=0.25), VadOptions(threshold=0.25)),
        (Fields(0.25, 30), VadOptions(threshold=0.25, max_speech_duration_s=30)),
        (SimpleNamespace(min_silence_duration_ms=np.int16(2000)), VadOptions()),
        (argparse.Namespace(min_speech_duration_ms=Decimal(250)), VadOptions(min_speech_duration_ms=250)),
        (Slots(), VadOptions(threshold=0.25)),
        (Settings(), VadOptions(threshold=0.25)),
    ],
)
def test_vad_options_are_a_mapping_or_an_object(parameters: object, options: VadOptions) -> None:
    assert VadOptions.of(parameters) == options
    assert speech_parts([0.9] * 9, 9 * CHUNK, VadOptions.of(parameters)) == [(0, 9 * CHUNK)]


@pytest.mark.parametrize("name", list(vars(VadOptions())))
@pytest.mark.parametrize(
    "value",
    [
        -1,
        -1e-9,
        float("nan"),
        float("-inf"),
        "0.5",
        "many",
        b"1",
        True,
        np.bool_(True),
        [1],
        {},
        1j,
        np.ones(2),
        10**400,
        object(),
    ],
)
def test_unusable_vad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name} .* is not a"):
        VadOptions.of({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 2),
        ("neg_threshold", 1.5),
        ("threshold", None),
        ("max_speech_duration_s", None),
        ("speech_pad_ms", None),
        ("min_silence_duration_ms", float("inf")),
    ],
)
def test_vad_values_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name} {value} is not a"):
        VadOptions(**{name: value})


@pytest.mark.parametrize(
    ("parameters", "unknown"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 0.5, "window_size_samples": 512}, "window_size_samples"),
        ({3: 4}, 3),
        (SimpleNamespace(threshold=0.5, onset=0.4), "onset"),
        ({"__class__": 1}, "__class__"),
    ],
)
def test_unknown_vad_options_are_named_with_the_valid_ones(parameters: object, unknown: object) -> None:
    with pytest.raises(OptionError, match=f"{unknown!r}.*threshold, neg_threshold.*max_speech_duration_s"):
        VadOptions.of(parameters)


@pytest.mark.parametrize(
    "parameters", [0.5, 1, True, "threshold=0.5", "", [], [0.5], [("threshold", 0.5)], VadOptions, object(), len, {1}]
)
def test_vad_parameters_without_fields_are_refused(parameters: object) -> None:
    with pytest.raises(OptionError, match=r"^vad_parameters .*threshold, neg_threshold"):
        VadOptions.of(parameters)


@pytest.mark.parametrize(
    "options", [dict.fromkeys(["speech_pad_ms", "min_silence_duration_ms", "max_speech_duration_s"], 1e308)]
)
def test_very_large_vad_values_act_as_infinite(options: dict[str, float]) -> None:
    assert speech_parts([0.1, 0.9, 0.1, 0.1], 4 * CHUNK, VadOptions.of(options)) == [(0, 4 * CHUNK)]


def test_vad_options_are_checked_before_a_recording_is_read() -> None:
    model: Any = None  # options are refused before the model is used
    wrong: dict[str, Any] = {"vad_filter": True, "vad_parameters": {"treshold": 0.5}}
    with pytest.raises(OptionError, match="treshold"):
        iter_segments(model, "missing.wav", **wrong)
    with pytest.raises(OptionError, match="treshold"):
        transcribe_batched(model, ["missing.wav"], **wrong)


PAUSE = 20  # seconds


def speech_between_silences() -> np.ndarray:
    """Return two clips with pauses before, between and after them: float32 [n_samples]."""
    silence = 1e-3 * np.random.default_rng(0).standard_normal(PAUSE * SAMPLE_RATE).astype(np.float32)
    return np.concatenate(
        [silence, packaged_clips()["en/counting"].samples, silence, packaged_clips()["en/hello_world"].samples, silence]
    )


def test_speech_is_found_between_silences() -> None:
    first, second = (len(packaged_clips()[name].samples) for name in ("en/counting", "en/hello_world"))
    pause, slack = PAUSE * SAMPLE_RATE, SAMPLE_RATE
    parts = find_speech(speech_between_silences(), VadOptions()).parts
    assert len(parts) == 2
    assert pause - slack < parts[0][0] < parts[0][1] < pause + first + slack
    assert 2 * pause + first - slack < parts[1][0] < parts[1][1] < 2 * pause + first + second + slack


@pytest.mark.parametrize("word_timestamps", [False, True])
def test_speech_between_silences_is_transcribed_at_its_time(word_timestamps: bool, tiny_en: Implementations) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "vad_filter": True, "word_timestamps": word_timestamps}
    iterator, info = iter_segments(tiny_en.model, speech_between_silences(), **options)
    segments = list(iterator)
    first, second = (len(packaged_clips()[name].samples) / SAMPLE_RATE for name in ("en/counting", "en/hello_world"))
    assert info.duration == pytest.approx(3 * PAUSE + first + second)
    assert info.duration_after_vad < first + second + 2
    text = "".join(segment["text"] for segment in segments).lower()
    assert "one" in text or "1" in text
    assert "hello" in text
    assert segments[0]["start"] > PAUSE - 1
    assert 2 * PAUSE + first - 1 < segments[-1]["end"] < 2 * PAUSE + first + second + 1
    (batched,) = transcribe_batched(tiny_en.model, [speech_between_silences()], **options)
    assert not isinstance(batched, AudioError)
    assert batched["segments"][-1]["end"] == pytest.approx(segments[-1]["end"], abs=0.5)
    only = transcribe(tiny_en.model, speech_between_silences(), clip_timestamps=[0, PAUSE + first + 2], **options)
    assert "hello" not in only["text"].lower()


def test_a_silent_recording_is_not_encoded(tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_en.model, "embed_audio", None)
    assert transcribe(tiny_en.model, np.zeros(40 * SAMPLE_RATE, np.float32), vad_filter=True)["segments"] == []
    (batched,) = transcribe_batched(tiny_en.model, [np.zeros(40 * SAMPLE_RATE, np.float32)], vad_filter=True)
    assert not isinstance(batched, AudioError) and batched["text"] == ""
