"""Batched transcription cuts recordings at pauses and changes no text."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxwhisper import AudioError, OptionError, transcribe, transcribe_batched
from maxwhisper.audio import N_FRAMES, SAMPLE_RATE
from maxwhisper.cli import main
from maxwhisper.transcript import Segment
from maxwhisper.transcription.batched import cut, keep_within
from reference.clips import packaged_clips
from tests.support.audio import write_audio
from tests.support.implementations import Implementations

ENGLISH = [clip.samples for clip in packaged_clips().values() if clip.language == "en"]
LONG = np.concatenate([*ENGLISH, *ENGLISH])


def texts(implementations: Implementations, recordings: list, batch_size: int) -> list[str]:
    results = list(transcribe_batched(implementations.model, recordings, batch_size, temperature=0.0))
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
    assert 2715 <= cut(mel)[1] <= 2735  # the centre of 30 frames that are all in the pause


def test_a_recording_of_one_window_is_transcribed_as_by_transcribe(tiny_en: Implementations) -> None:
    (batched,) = transcribe_batched(tiny_en.model, [packaged_clips()["beckett"].samples], temperature=0.0)
    alone = transcribe(tiny_en.model, packaged_clips()["beckett"].samples, temperature=0.0)
    assert not isinstance(batched, AudioError)
    assert batched["text"] == alone["text"]
    assert [(s["start"], s["end"], s["text"]) for s in batched["segments"]] == [
        (s["start"], s["end"], s["text"]) for s in alone["segments"]
    ]


def test_words_do_not_depend_on_the_batch_size(tiny_en: Implementations) -> None:
    """Words are equal whether a batch holds one piece or eight."""
    one_by_one, together = (
        list(transcribe_batched(tiny_en.model, [LONG, ENGLISH[0]], n, temperature=0.0, word_timestamps=True))
        for n in (1, 8)
    )
    for alone, batched in zip(one_by_one, together, strict=True):
        assert not isinstance(alone, AudioError) and not isinstance(batched, AudioError)
        words, expected = (
            [word for segment in result["segments"] for word in segment["words"]] for result in (batched, alone)
        )
        assert [(w["word"], w["start"], w["end"]) for w in words] == [
            (w["word"], w["start"], w["end"]) for w in expected
        ]
        assert all(w["start"] <= w["end"] for w in words)


def test_clips_come_in_the_requested_order(tiny_en: Implementations) -> None:
    (batched,) = transcribe_batched(tiny_en.model, [LONG], temperature=0.0, clip_timestamps="10,20,0,10")
    assert not isinstance(batched, AudioError)
    starts = [segment["start"] for segment in batched["segments"]]
    assert starts[0] >= 10 and starts[-1] < 10


def test_texts_do_not_depend_on_the_batch_size(tiny_en: Implementations) -> None:
    """Recordings have several windows or one, and a batch may end within a recording."""
    recordings = [LONG, ENGLISH[0], ENGLISH[1]]
    one_by_one = texts(tiny_en, recordings, 1)
    assert texts(tiny_en, recordings, 3) == one_by_one == texts(tiny_en, recordings, 100)


def test_nothing_is_lost_at_cuts(tiny_en: Implementations) -> None:
    windowed = str(transcribe(tiny_en.model, LONG, temperature=0.0)["text"])
    (batched,) = texts(tiny_en, [LONG], 8)
    assert jiwer.wer(windowed.lower(), batched.lower()) < 0.1


def test_segments_are_in_order_and_within_the_recording(tiny_en: Implementations) -> None:
    (result,) = transcribe_batched(tiny_en.model, [LONG], 8, temperature=0.0)
    assert not isinstance(result, AudioError)
    segments = result["segments"]
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    assert all(0 <= s["start"] < s["end"] <= len(LONG) / SAMPLE_RATE + 0.02 for s in segments)
    assert all(a["start"] <= b["start"] for a, b in pairwise(segments))
    assert result["text"] == "".join(segment["text"] for segment in segments)


edges_in_order = st.lists(st.integers(800, 2200).map(lambda i: i / 100), min_size=2, max_size=9).map(sorted)


@given(segments=st.lists(st.tuples(edges_in_order, edges_in_order)))
def test_segments_stay_in_their_piece_and_never_overlap(segments: list) -> None:
    """Segments are in any order. Their words are in order, but may lie outside their segment."""
    changed: list[Any] = [
        {
            "start": edges[0],
            "end": edges[-1],
            "words": [{"start": start, "end": end} for start, end in zip(words[::2], words[1::2])],
        }
        for edges, words in segments
    ]
    keep_within(changed, 10.0, 20.0)
    check_times(changed, 10.0, 20.0)
    inside: list[Any] = [
        {"start": 11.0, "end": 12.0},
        {"start": 12.0, "end": 12.5, "words": [{"start": 12.0, "end": 12.5}]},
    ]
    unchanged = copy.deepcopy(inside)
    keep_within(unchanged, 10.0, 20.0)
    assert unchanged == inside


def check_times(segments: list[Segment], start: float, end: float) -> None:
    """Assert that segments are in order between two times in seconds, and words within segments."""
    edges = [start, *(segment[edge] for segment in segments for edge in ("start", "end")), end]
    assert all(a <= b + 1e-9 for a, b in pairwise(edges)), edges  # 1e-9 s allows for rounding
    for segment in segments:
        for word in segment.get("words", []):
            assert segment["start"] <= word["start"] <= word["end"] <= segment["end"], (segment, word)


@pytest.mark.parametrize("vad_filter", [False, True])
@pytest.mark.parametrize("word_timestamps", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_segment_overlaps_the_next(
    batch_size: int, word_timestamps: bool, vad_filter: bool, tiny_en: Implementations
) -> None:
    """Segments do not overlap even if pieces are cut in the middle of a sentence.

    The recordings begin at different times, so that cuts fall on different words. In the second
    recording, the model lets a segment end a second after its piece.
    """
    recordings = [LONG[round(start * SAMPLE_RATE) :] for start in (0, 2.5, 6, 9)]
    options: dict[str, Any] = {"temperature": 0.0, "word_timestamps": word_timestamps, "vad_filter": vad_filter}
    for result in transcribe_batched(tiny_en.model, recordings, batch_size, **options):
        assert not isinstance(result, AudioError) and result["segments"]
        check_times(
            result["segments"], 0.0, np.inf
        )  # the last segment may end after its recording, as in OpenAI Whisper


def test_the_language_is_each_recordings_own(base: Implementations) -> None:
    clips = {clip.language: clip for clip in packaged_clips().values() if clip.language in ("de", "fr", "en")}
    results = list(transcribe_batched(base.model, [clip.samples for clip in clips.values()], 8, temperature=0.0))
    assert [result["language"] for result in results if not isinstance(result, AudioError)] == list(clips)


def test_an_unreadable_recording_does_not_stop_the_batch(tiny_en: Implementations, tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    first, second, third = transcribe_batched(tiny_en.model, [missing, ENGLISH[0], missing], 8, temperature=0.0)
    assert isinstance(first, AudioError) and isinstance(third, AudioError)
    assert not isinstance(second, AudioError) and second["text"]


def test_options_are_checked_before_any_work() -> None:
    with pytest.raises(OptionError, match="batch_size 0"):
        transcribe_batched(None, [], 0)  # type: ignore[arg-type]  # refused before the model is used
    with pytest.raises(OptionError, match="beam_size"):
        transcribe_batched(None, [], beam_size=0)  # type: ignore[arg-type]


def test_the_command_line_transcribes_in_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
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
