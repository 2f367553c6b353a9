"""Many windows at once: cut where it is quiet, decoded as they would be alone, put together in order."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Trio
from maxwhisper import AudioError, OptionError, transcribe, transcribe_batched
from maxwhisper.audio import N_FRAMES, SAMPLE_RATE
from maxwhisper.cli import main
from maxwhisper.transcript import Segment
from maxwhisper.transcription.batched import cut, keep_within
from reference.clips import packaged_clips
from tests.test_audio import write_audio

ENGLISH = [clip.samples for clip in packaged_clips().values() if clip.language == "en"]
LONG = np.concatenate([*ENGLISH, *ENGLISH])


def texts(trio: Trio, recordings: list, batch_size: int) -> list[str]:
    results = list(transcribe_batched(trio.model, recordings, batch_size, temperature=0.0))
    assert not any(isinstance(result, AudioError) for result in results)
    return [result["text"] for result in results if not isinstance(result, AudioError)]


@pytest.mark.parametrize("n_frames", [0, 1, 2999, 3000, 3001, 6000, 20000])
def test_cuts_are_at_most_a_window_apart(n_frames: int, rng: np.random.Generator) -> None:
    cuts = cut(rng.random((80, n_frames), np.float32))
    assert cuts[0] == 0 and cuts[-1] == n_frames
    lengths = np.diff(cuts)
    assert (lengths <= N_FRAMES).all()
    assert (lengths[:-1] >= 2000).all()


def test_cuts_are_where_it_is_quiet(rng: np.random.Generator) -> None:
    mel = rng.random((80, 7000), np.float32)
    mel[:, 2700:2750] -= 1  # 0.5 s
    mel[:, 2800:2805] -= 3  # shorter than a pause
    mel[:, 1000:1100] -= 5  # long, but early
    assert 2715 <= cut(mel)[1] <= 2735  # in the middle of 30 frames, all of them in the pause


def test_a_recording_of_one_window_is_transcribed_as_ever(tiny_en: Trio) -> None:
    (batched,) = transcribe_batched(tiny_en.model, [packaged_clips()["beckett"].samples], temperature=0.0)
    alone = transcribe(tiny_en.model, packaged_clips()["beckett"].samples, temperature=0.0)
    assert not isinstance(batched, AudioError)
    assert batched["text"] == alone["text"]
    assert [(s["start"], s["end"], s["text"]) for s in batched["segments"]] == [
        (s["start"], s["end"], s["text"]) for s in alone["segments"]
    ]


def test_words_of_a_batch_are_those_of_pieces_alone(tiny_en: Trio) -> None:
    """Whatever is known of their neighbours by then."""
    one_by_one, together = (
        list(transcribe_batched(tiny_en.model, [LONG, ENGLISH[0]], n, temperature=0.0, word_timestamps=True))
        for n in (1, 8)
    )
    for alone, some in zip(one_by_one, together, strict=True):
        assert not isinstance(alone, AudioError) and not isinstance(some, AudioError)
        words, others = (
            [word for segment in result["segments"] for word in segment["words"]] for result in (alone, some)
        )
        assert [(w["word"], w["start"], w["end"]) for w in words] == [(w["word"], w["start"], w["end"]) for w in others]
        assert all(w["start"] <= w["end"] for w in words)


def test_clips_of_a_batch_come_in_the_order_that_is_asked_for(tiny_en: Trio) -> None:
    (batched,) = transcribe_batched(tiny_en.model, [LONG], temperature=0.0, clip_timestamps="10,20,0,10")
    assert not isinstance(batched, AudioError)
    starts = [segment["start"] for segment in batched["segments"]]
    assert starts[0] >= 10 and starts[-1] < 10


def test_a_batch_changes_nothing(tiny_en: Trio) -> None:
    """Recordings of several windows and of one, in batches that end within a recording."""
    recordings = [LONG, ENGLISH[0], ENGLISH[1]]
    one_by_one = texts(tiny_en, recordings, 1)
    assert texts(tiny_en, recordings, 3) == one_by_one == texts(tiny_en, recordings, 100)


def test_nothing_is_lost_at_cuts(tiny_en: Trio) -> None:
    windowed = str(transcribe(tiny_en.model, LONG, temperature=0.0)["text"])
    (batched,) = texts(tiny_en, [LONG], 8)
    assert jiwer.wer(windowed.lower(), batched.lower()) < 0.1


def test_segments_are_in_order_and_where_they_were_said(tiny_en: Trio) -> None:
    (result,) = transcribe_batched(tiny_en.model, [LONG], 8, temperature=0.0)
    assert not isinstance(result, AudioError)
    segments = result["segments"]
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    assert all(0 <= s["start"] < s["end"] <= len(LONG) / SAMPLE_RATE + 0.02 for s in segments)
    assert all(a["start"] <= b["start"] for a, b in pairwise(segments))
    assert result["text"] == "".join(segment["text"] for segment in segments)


edges_in_order = st.lists(st.integers(800, 2200).map(lambda i: i / 100), min_size=2, max_size=9).map(sorted)


@given(segments=st.lists(st.tuples(edges_in_order, edges_in_order)))
def test_whatever_a_model_says_nothing_reaches_out_of_its_piece_or_into_another_segment(segments: list) -> None:
    """Segments in any order, with words that follow each other but need not lie in them."""
    made: list[Any] = [
        {
            "start": edges[0],
            "end": edges[-1],
            "words": [{"start": start, "end": end} for start, end in zip(words[::2], words[1::2])],
        }
        for edges, words in segments
    ]
    keep_within(made, 10.0, 20.0)
    check_times(made, 10.0, 20.0)
    inside: list[Any] = [
        {"start": 11.0, "end": 12.0},
        {"start": 12.0, "end": 12.5, "words": [{"start": 12.0, "end": 12.5}]},
    ]
    kept = copy.deepcopy(inside)
    keep_within(kept, 10.0, 20.0)
    assert kept == inside


def check_times(segments: list[Segment], start: float, end: float) -> None:
    """Each within these times, none before the one before it has ended, words in the segment they are of."""
    edges = [start, *(segment[edge] for segment in segments for edge in ("start", "end")), end]
    assert all(a <= b + 1e-9 for a, b in pairwise(edges)), edges  # less than a microsecond is the sum's own
    for segment in segments:
        for word in segment.get("words", []):
            assert segment["start"] <= word["start"] <= word["end"] <= segment["end"], (segment, word)


@pytest.mark.parametrize("vad_filter", [False, True])
@pytest.mark.parametrize("word_timestamps", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_segment_overlaps_the_next(batch_size: int, word_timestamps: bool, vad_filter: bool, tiny_en: Trio) -> None:
    """Where pieces are cut in mid-sentence, too: each recording begins elsewhere, so that cuts fall on other words.

    The model lets a segment of the second one end a second after its piece.
    """
    recordings = [LONG[round(start * SAMPLE_RATE) :] for start in (0, 2.5, 6, 9)]
    options: dict[str, Any] = {"temperature": 0.0, "word_timestamps": word_timestamps, "vad_filter": vad_filter}
    for result in transcribe_batched(tiny_en.model, recordings, batch_size, **options):
        assert not isinstance(result, AudioError) and result["segments"]
        check_times(result["segments"], 0.0, np.inf)  # the last may end after its recording, as OpenAI Whisper's do


def test_the_language_is_each_recordings_own(base: Trio) -> None:
    clips = {clip.language: clip for clip in packaged_clips().values() if clip.language in ("de", "fr", "en")}
    results = list(transcribe_batched(base.model, [clip.samples for clip in clips.values()], 8, temperature=0.0))
    assert [result["language"] for result in results if not isinstance(result, AudioError)] == list(clips)


def test_what_can_not_be_read_does_not_stop_the_others(tiny_en: Trio, tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    first, second, third = transcribe_batched(tiny_en.model, [missing, ENGLISH[0], missing], 8, temperature=0.0)
    assert isinstance(first, AudioError) and isinstance(third, AudioError)
    assert not isinstance(second, AudioError) and second["text"]


def test_options_are_looked_at_before_any_work() -> None:
    with pytest.raises(OptionError, match="batch_size 0"):
        transcribe_batched(None, [], 0)  # type: ignore[arg-type]  # refused before a model is looked at
    with pytest.raises(OptionError, match="beam_size"):
        transcribe_batched(None, [], beam_size=0)  # type: ignore[arg-type]  # likewise


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    for i in range(2):
        write_audio(tmp_path / f"{i}.wav", ENGLISH[i][None], SAMPLE_RATE)
    names = [str(tmp_path / name) for name in ("0.wav", "missing.wav", "1.wav")]
    assert main(["transcribe", *names, "--batch_size", "4", "-o", str(tmp_path), "-f", "txt", "--device", device]) == 1
    printed = capsys.readouterr()
    assert "missing.wav" in printed.err
    for i in range(2):
        assert (tmp_path / f"{i}.txt").read_text().splitlines()[0] in printed.out
    with pytest.raises(SystemExit):
        main(["transcribe", *names, "--batch_size", "0"])
