"""Small things that transcripts need, and the writers of their file formats, as OpenAI Whisper's `utils.py`."""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maxwhisper.errors import OptionError, OutputError

Transcript = dict[str, Any]


def n_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def to_txt(result: Transcript) -> str:
    """A line for each segment."""
    return "".join(f"{segment['text'].strip()}\n" for segment in result["segments"])


def to_vtt(result: Transcript) -> str:
    """WebVTT subtitles."""
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in _subtitles(result, False, "."))


def to_srt(result: Transcript) -> str:
    """SubRip subtitles."""
    subtitles = enumerate(_subtitles(result, True, ","), start=1)
    return "".join(f"{i}\n{start} --> {end}\n{text}\n\n" for i, (start, end, text) in subtitles)


def to_tsv(result: Transcript) -> str:
    """Tab-separated values; times in whole milliseconds, which no locale writes differently."""
    rows = (
        f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}\t{segment['text'].strip().replace(chr(9), ' ')}\n"
        for segment in result["segments"]
    )
    return "start\tend\ttext\n" + "".join(rows)


def to_json(result: Transcript) -> str:
    """Everything that `transcribe` returned."""
    return json.dumps(result)


def _subtitles(result: Transcript, always_include_hours: bool, decimal_marker: str) -> Iterator[tuple[str, str, str]]:
    for segment in result["segments"]:
        start, end = (format_timestamp(segment[key], always_include_hours, decimal_marker) for key in ("start", "end"))
        yield start, end, segment["text"].strip().replace("-->", "->")


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "vtt": to_vtt,
    "srt": to_srt,
    "tsv": to_tsv,
    "json": to_json,
}


def write_transcript(result: Transcript, audio_path: str, output_dir: str | os.PathLike[str], output_format: str = "all") -> list[Path]:
    """Write `output_dir/<audio's name>.<format>`, in one format or in all, and return what was written.

    A file appears whole or not at all. Raises OptionError for an unknown format, OutputError where the folder can't be written.
    """
    if output_format not in (*FORMATS, "all"):
        raise OptionError(f"output format {output_format!r} is none of {', '.join(FORMATS)}, all")
    formats = FORMATS if output_format == "all" else {output_format: FORMATS[output_format]}
    written = []
    for extension, to_text in formats.items():
        path = Path(output_dir) / f"{Path(audio_path).stem}.{extension}"
        partial = path.with_name(f".{os.getpid()}.{extension}.partial")
        try:
            partial.write_text(to_text(result), encoding="utf-8", newline="\n")
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path} can't be written ({error.strerror}); choose another --output_dir") from error
        finally:
            partial.unlink(missing_ok=True)
        written.append(path)
    return written
