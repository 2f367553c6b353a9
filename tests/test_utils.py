"""Transcripts are written as OpenAI Whisper writes them."""

import json
import os
from pathlib import Path

import pytest
import whisper
from hypothesis import given
from hypothesis import strategies as st

from maxwhisper import OptionError, OutputError
from maxwhisper.utils import FORMATS, compression_ratio, format_timestamp, write_transcript

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
    assert write_transcript(result, "recordings/talk.mp3", tmp_path / "ours", extension) == [tmp_path / "ours" / f"talk.{extension}"]
    assert (tmp_path / "ours" / f"talk.{extension}").read_bytes() == expected


def test_all_formats_at_once(tmp_path: Path) -> None:
    write_transcript(RESULT, "talk.mp3", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"talk.{extension}" for extension in FORMATS}
    assert json.loads((tmp_path / "talk.json").read_text()) == RESULT


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
        write_transcript(RESULT, "talk.mp3", tmp_path, "pdf")


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="--output_dir"):
        write_transcript(RESULT, "talk.mp3", tmp_path / "missing", "txt")

    (tmp_path / "talk.txt").write_text("what was here before")

    def write_text(path: Path, data: str, **_: object) -> int:
        with open(path, "w") as file:
            file.write(data[:3])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OutputError, match=r"talk\.txt can't be written \(No space left"):
        write_transcript(RESULT, "talk.mp3", tmp_path, "txt")
    assert (tmp_path / "talk.txt").read_text() == "what was here before"
    assert [path.name for path in tmp_path.iterdir()] == ["talk.txt"]
