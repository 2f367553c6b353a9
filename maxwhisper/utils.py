"""Small things that transcripts need, and the writers of their file formats, as OpenAI Whisper's `utils.py`."""

import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from maxwhisper.errors import OptionError, OutputError
from maxwhisper.subtitles import Layout, subtitles

Transcript = dict[str, Any]


def n_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache(name: str) -> Path | None:
    """The folder of that name among those in which a user's programs keep what can be had again; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", name)
    except RuntimeError:
        return None


def compression_ratio(text: str) -> float:
    """How much shorter zlib makes the text: high where it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def format_timestamp(seconds: float, always_include_hours: bool = False, decimal_marker: str = ".") -> str:
    """`[hh:]mm:ss.mmm`; hours where there are any, or always. Raises ValueError for negative times."""
    if seconds < 0:
        raise ValueError(f"a timestamp can't be negative, but {seconds} is")
    milliseconds = round(seconds * 1000)
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, milliseconds = divmod(milliseconds, 1_000)
    prefix = f"{hours:02d}:" if always_include_hours or hours > 0 else ""
    return f"{prefix}{minutes:02d}:{whole:02d}{decimal_marker}{milliseconds:03d}"


system_encoding = sys.getdefaultencoding()


def make_safe(string: str) -> str:
    """What the system's encoding lacks becomes a question mark; Python's is UTF-8, which lacks nothing."""
    return string.encode(system_encoding, errors="replace").decode(system_encoding)


def exact_div(x: int, y: int) -> int:
    """x / y. Raises ValueError where a remainder is left."""
    if x % y:
        raise ValueError(f"{x} is no multiple of {y}")
    return x // y


def str2bool(string: str) -> bool:
    """Raises ValueError for all but "True" and "False"."""
    if string not in ("True", "False"):
        raise ValueError(f"expected True or False, got {string}")
    return string == "True"


def optional_int(string: str) -> int | None:
    """A number, or "None"."""
    return None if string == "None" else int(string)


def optional_float(string: str) -> float | None:
    """A number, or "None"."""
    return None if string == "None" else float(string)


def get_start(segments: Sequence[dict[str, Any]]) -> float | None:
    """When the first word, or else the first segment, begins; None where there is none."""
    return next((word["start"] for segment in segments for word in segment["words"]), segments[0]["start"] if segments else None)


def get_end(segments: Sequence[dict[str, Any]]) -> float | None:
    """When the last word, or else the last segment, ends; None where there is none."""
    words = (word for segment in reversed(segments) for word in reversed(segment["words"]))
    return next((word["end"] for word in words), segments[-1]["end"] if segments else None)


class ResultWriter:
    """Writes transcripts to `output_dir/<audio's name>.<extension>`, in one format."""

    extension: str

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = output_dir

    def __call__(
        self, result: Transcript, audio_path: str | os.PathLike[str], options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write the transcript of an audio file; the new file appears whole or not at all. options, or keywords: those of `Layout`.

        Raises OutputError where the folder can't be written.
        """
        path = Path(self.output_dir) / f"{Path(audio_path).stem}.{self.extension}"
        partial = path.with_name(f".{os.getpid()}.{self.extension}.partial")
        text = io.StringIO()
        self.write_result(result, text, options, **kwargs)
        try:
            partial.write_text(text.getvalue(), encoding="utf-8", newline="\n")
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path} can't be written ({error.strerror}); choose another --output_dir") from error
        finally:
            partial.unlink(missing_ok=True)

    def write_result(self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write to a file that is open."""
        raise NotImplementedError


class WriteTXT(ResultWriter):
    """A line for each segment."""

    extension = "txt"

    def write_result(self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        file.writelines(f"{segment['text'].strip()}\n" for segment in result["segments"])


class SubtitlesWriter(ResultWriter):
    """Subtitles, numbered or not."""

    always_include_hours: bool
    decimal_marker: str

    def iterate_result(self, result: Transcript, options: dict[str, Any] | None = None, **kwargs: Any) -> Iterator[tuple[str, str, str]]:
        """Start, end and text of each subtitle."""
        known = {field.name for field in fields(Layout)}
        asked = {name: value for name, value in (options or {}).items() if name in known}
        layout = Layout(**{**asked, **{name: value for name, value in kwargs.items() if value}})
        for start, end, text in subtitles(result["segments"], layout):
            yield self.format_timestamp(start), self.format_timestamp(end), text

    def format_timestamp(self, seconds: float) -> str:
        return format_timestamp(seconds, self.always_include_hours, self.decimal_marker)


class WriteVTT(SubtitlesWriter):
    """WebVTT."""

    extension = "vtt"
    always_include_hours = False
    decimal_marker = "."

    def write_result(self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        file.write("WEBVTT\n\n")
        file.writelines(f"{start} --> {end}\n{text}\n\n" for start, end, text in self.iterate_result(result, options, **kwargs))


class WriteSRT(SubtitlesWriter):
    """SubRip."""

    extension = "srt"
    always_include_hours = True
    decimal_marker = ","

    def write_result(self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        found = enumerate(self.iterate_result(result, options, **kwargs), start=1)
        file.writelines(f"{i}\n{start} --> {end}\n{text}\n\n" for i, (start, end, text) in found)


class WriteTSV(ResultWriter):
    """Tab-separated values; times in whole milliseconds, which no locale writes differently."""

    extension = "tsv"

    def write_result(self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        file.write("start\tend\ttext\n")
        for segment in result["segments"]:
            text = segment["text"].strip().replace("\t", " ")
            file.write(f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}\t{text}\n")


class WriteJSON(ResultWriter):
    """Everything that `transcribe` returned."""

    extension = "json"

    def write_result(self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        json.dump(result, file)


FORMATS: dict[str, type[ResultWriter]] = {writer.extension: writer for writer in (WriteTXT, WriteVTT, WriteSRT, WriteTSV, WriteJSON)}


def get_writer(output_format: str, output_dir: str | os.PathLike[str]) -> Callable[..., None]:
    """What writes a transcript in one of `FORMATS`, or in "all" of them: called with `transcribe`'s result, the audio's path, and how to
    lay out subtitles (`maxwhisper.subtitles.Layout`).

    Raises OptionError for another format.
    """
    if output_format not in (*FORMATS, "all"):
        raise OptionError(f"output format {output_format!r} is none of {', '.join(FORMATS)}, all")
    if output_format != "all":
        return FORMATS[output_format](output_dir)

    def write_all(result: Transcript, audio_path: str | os.PathLike[str], options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        for writer in FORMATS.values():
            writer(output_dir)(result, audio_path, options, **kwargs)

    return write_all
