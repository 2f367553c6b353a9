"""Silence is left out, and what is said keeps its time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Trio
from maxwhisper import AudioError, OptionError, iter_segments, transcribe, transcribe_batched
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.vad import Speech, VadOptions, find_speech, speech_parts
from reference.clips import packaged_clips

CHUNK = 512  # samples of which the detector says one probability
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
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9], VadOptions(0.5, None, 40, 100, 0), [(6, 9)]),  # too short
    ],
)
def test_speech_begins_and_ends(probabilities: list[float], options: VadOptions, parts: list[tuple[int, int]]) -> None:
    assert speech_parts(probabilities, CHUNK * len(probabilities), options) == [(CHUNK * start, CHUNK * end) for start, end in parts]


@given(
    probabilities=st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.9]), max_size=60),
    pause=st.sampled_from([0, 64, 300]),
    pad=st.sampled_from([0, 30, 400]),
    n_cut=st.integers(0, 511),
)
def test_no_speech_is_lost_and_none_is_there_twice(probabilities: list[float], pause: int, pad: int, n_cut: int) -> None:
    n_samples = max(0, CHUNK * len(probabilities) - n_cut)
    parts = speech_parts(probabilities, n_samples, VadOptions(min_silence_duration_ms=pause, speech_pad_ms=pad))
    edges = [edge for part in parts for edge in part]
    assert edges == sorted(edges)
    assert all(0 <= start < end <= n_samples for start, end in parts)
    for i, probability in enumerate(probabilities):
        if probability >= 0.5:
            assert any(start <= CHUNK * i < end and min(CHUNK * (i + 1), n_samples) <= end for start, end in parts)


def test_times_are_those_of_the_recording() -> None:
    speech = Speech([(SAMPLE_RATE, 3 * SAMPLE_RATE), (10 * SAMPLE_RATE, 11 * SAMPLE_RATE)])
    assert len(speech.joined(np.zeros(20 * SAMPLE_RATE, np.float32))) == 3 * SAMPLE_RATE
    whole = {"start": 0.5, "end": 2.0, "text": " One"}
    assert speech.restore(whole) == {"start": 1.5, "end": 3.0, "text": " One"}
    assert speech.restore({"start": 2.0, "end": 2.5}) == {"start": 10.0, "end": 10.5}
    words = [{"word": " One", "start": 1.8, "end": 2.1}, {"word": " two", "start": 2.1, "end": 2.4}]
    timed = speech.restore({**whole, "words": words})
    assert [(w["start"], w["end"]) for w in timed["words"]] == [(2.8, 3.0), (10.1, 10.4)]
    assert (timed["start"], timed["end"]) == (2.8, 10.4)
    beyond = speech.restore({"words": [{"word": " so", "start": 1.9, "end": 2.2}]})
    assert (beyond["start"], beyond["end"]) == (10.0, 10.2)  # most of it lies in the second part
    assert speech.restore({"start": 2.0, "end": 2.0}) == {"start": 10.0, "end": 10.0}
    assert Speech([(0, 8960), (168960, 328960)]).restore({"start": 0.5599999999999999, "end": 1.56})["start"] == 10.56
    assert speech.within([(2 * SAMPLE_RATE, 10 * SAMPLE_RATE + 5)]).parts == [
        (2 * SAMPLE_RATE, 3 * SAMPLE_RATE),
        (10 * SAMPLE_RATE, 10 * SAMPLE_RATE + 5),
    ]


@pytest.mark.parametrize("options", [{"threshold": 2}, {"min_silence_duration_ms": -1}, {"threshold": float("nan")}])
def test_options_that_can_not_be_used_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        VadOptions(**options)


def test_a_detector_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maxwhisper.vad.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"maxwhisper\[vad\]"):
        find_speech(np.zeros(SAMPLE_RATE, np.float32), VadOptions())


PAUSE = 20  # seconds


def amid_silence() -> np.ndarray:
    silence = 1e-3 * np.random.default_rng(0).standard_normal(PAUSE * SAMPLE_RATE).astype(np.float32)
    return np.concatenate([silence, packaged_clips()["en/counting"].samples, silence, packaged_clips()["en/hello_world"].samples, silence])


def test_speech_is_found_amid_silence() -> None:
    first, second = (len(packaged_clips()[name].samples) for name in ("en/counting", "en/hello_world"))
    pause, slack = PAUSE * SAMPLE_RATE, SAMPLE_RATE
    parts = find_speech(amid_silence(), VadOptions()).parts
    assert len(parts) == 2
    assert pause - slack < parts[0][0] < parts[0][1] < pause + first + slack
    assert 2 * pause + first - slack < parts[1][0] < parts[1][1] < 2 * pause + first + second + slack


@pytest.mark.parametrize("word_timestamps", [False, True])
def test_what_is_said_amid_silence(word_timestamps: bool, tiny_en: Trio) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "vad_filter": True, "word_timestamps": word_timestamps}
    found, info = iter_segments(tiny_en.model, amid_silence(), **options)
    segments = list(found)
    first, second = (len(packaged_clips()[name].samples) / SAMPLE_RATE for name in ("en/counting", "en/hello_world"))
    assert info.duration == pytest.approx(3 * PAUSE + first + second)
    assert info.duration_after_vad < first + second + 2
    text = "".join(segment["text"] for segment in segments).lower()
    assert "one" in text or "1" in text
    assert "hello" in text
    assert segments[0]["start"] > PAUSE - 1
    assert 2 * PAUSE + first - 1 < segments[-1]["end"] < 2 * PAUSE + first + second + 1
    (batched,) = transcribe_batched(tiny_en.model, [amid_silence()], **options)
    assert not isinstance(batched, AudioError)
    assert batched["segments"][-1]["end"] == pytest.approx(segments[-1]["end"], abs=0.5)
    only = transcribe(tiny_en.model, amid_silence(), clip_timestamps=[0, PAUSE + first + 2], **options)
    assert "hello" not in only["text"].lower()


def test_silence_alone_costs_nothing(tiny_en: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_en.model, "embed_audio", None)
    assert transcribe(tiny_en.model, np.zeros(40 * SAMPLE_RATE, np.float32), vad_filter=True)["segments"] == []
    (batched,) = transcribe_batched(tiny_en.model, [np.zeros(40 * SAMPLE_RATE, np.float32)], vad_filter=True)
    assert not isinstance(batched, AudioError) and batched["text"] == ""
