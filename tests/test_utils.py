"""Transcripts are written in the same bytes as by OpenAI Whisper."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import whisper
from hypothesis import given
from hypothesis import strategies as st

from maxwhisper import OptionError, OutputError, utils
from maxwhisper.utils import compression_ratio, format_timestamp, get_writer
from maxwhisper.writers import FORMATS

RESULT = {
    "text": " One --> two.\tThree.",
    "language": "en",
    "segments": [
        {"id": 0, "start": 0.0, "end": 2.4996, "text": " One --> two."},
        {"id": 1, "start": 2.5, "end": 2.5, "text": ""},
        {"id": 2, "start": 3599.9996, "end": 7322.04, "text": "\tThree: drei, трі, 三\tand four. "},
    ],
}


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("result", [RESULT, {"text": "", "language": "en", "segments": []}])
def test_every_format_is_openais_to_the_byte(result: dict, extension: str, tmp_path: Path) -> None:
    whisper.utils.get_writer(extension, str(tmp_path))(result, "talk.mp3")
    expected = (tmp_path / f"talk.{extension}").read_bytes()
    (tmp_path / "ours").mkdir()
    get_writer(extension, tmp_path / "ours")(result, "recordings/talk.mp3")
    assert (tmp_path / "ours" / f"talk.{extension}").read_bytes() == expected


def test_all_formats_at_once(tmp_path: Path) -> None:
    get_writer("all", tmp_path)(RESULT, "talk.mp3")
    assert {path.name for path in tmp_path.iterdir()} == {f"talk.{extension}" for extension in FORMATS}
    assert json.loads((tmp_path / "talk.json").read_text()) == RESULT


words = st.lists(
    st.tuples(
        st.sampled_from([" one", " two", " -->", "ish", " (three)", " four,", " ", "five"]),
        st.integers(0, 500),
        st.integers(0, 60),
    ),
    max_size=8,
)


def timed(texts: list[list[tuple[str, int, int]]]) -> dict[str, Any]:
    """Return a transcript with words from texts, pauses and durations in 10 ms."""
    segments, now = list[dict[str, Any]](), 0
    for segment_words in texts:
        timings = []
        for text, pause, duration in segment_words:
            timings.append({"word": text, "start": (now + pause) / 100, "end": (now + pause + duration) / 100})
            now += pause + duration
        text = "".join(text for text, _, _ in segment_words)
        segments.append(
            {"start": timings[0]["start"] if timings else now, "end": now / 100, "text": text, "words": timings}
        )
    return {"segments": segments}


@given(
    texts=st.lists(words, max_size=4),
    layout=st.fixed_dictionaries(
        {
            "max_line_width": st.sampled_from([None, 5, 12, 40]),
            "max_line_count": st.sampled_from([None, 1, 2]),
            "highlight_words": st.booleans(),
            "max_words_per_line": st.sampled_from([None, 1, 3]),
        }
    ),
    how=st.sampled_from(["options", "keywords"]),
)
def test_subtitles_of_words_are_openais(
    texts: list[list[tuple[str, int, int]]], layout: dict[str, Any], how: str
) -> None:
    arguments: dict[str, Any] = {"options": {**layout, "word_timestamps": True}} if how == "options" else layout
    for name in ("WriteSRT", "WriteVTT"):
        written = []
        for module in (utils, whisper.utils):
            file = io.StringIO()
            getattr(module, name)("").write_result(timed(texts), file, **arguments)
            written.append(file.getvalue())
        assert written[0] == written[1]


def test_a_segment_without_text_does_not_hide_the_others() -> None:
    """Its list `words` is empty. Upstream then takes the word times of all segments."""
    segments = [{"start": 0.0, "end": 0.0, "text": "", "words": []}, {"start": 0.0, "end": 1.0, "text": " One."}]
    file = io.StringIO()
    result: Any = {"segments": segments}
    utils.WriteVTT("").write_result(result, file)
    assert "One." in file.getvalue()


@given(seconds=st.floats(0, 1e6), hours=st.booleans(), marker=st.sampled_from([".", ","]))
def test_timestamps_are_openais(seconds: float, hours: bool, marker: str) -> None:
    assert format_timestamp(seconds, hours, marker) == whisper.utils.format_timestamp(seconds, hours, marker)


def test_negative_times_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        format_timestamp(-1)


@given(text=st.text())
def test_compression_ratio_is_openais(text: str) -> None:
    assert compression_ratio(text) == whisper.utils.compression_ratio(text)


def test_unknown_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^output format 'pdf' is none of txt, vtt, srt, tsv, json, all$"):
        get_writer("pdf", tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="--output_dir"):
        get_writer("txt", tmp_path / "missing")(RESULT, "talk.mp3")

    (tmp_path / "talk.txt").write_text("an older transcript")

    def write_text(path: Path, data: str, **_: object) -> int:
        with open(path, "w") as file:
            file.write(data[:3])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OutputError, match=r"talk\.txt can't be written \(No space left"):
        get_writer("txt", tmp_path)(RESULT, "talk.mp3")
    assert (tmp_path / "talk.txt").read_text() == "an older transcript"
    assert [path.name for path in tmp_path.iterdir()] == ["talk.txt"]
