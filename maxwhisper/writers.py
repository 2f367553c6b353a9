"""Writers of transcripts to files, which equal those of OpenAI Whisper byte for byte."""

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from maxwhisper.errors import OptionError, OutputError
from maxwhisper.subtitles import Layout, subtitles
from maxwhisper.transcript import Transcript, format_timestamp


class ResultWriter:
    """Writes transcripts to `output_dir/<name of the audio file>.<extension>` in one format."""

    extension: str

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = output_dir

    def __call__(
        self,
        result: Transcript,
        audio_path: str | os.PathLike[str],
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the transcript of an audio file. The new file appears complete or not at all.

        Args:
            result: The transcript.
            audio_path: The audio file, whose name the new file gets.
            options: Fields of `maxwhisper.subtitles.Layout`.
            kwargs: The same fields as keywords.

        Raises:
            OutputError: The file can't be written.
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

    def write_result(
        self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a transcript to an open file."""
        raise NotImplementedError


class WriteTXT(ResultWriter):
    """Plain text, a line for each segment."""

    extension = "txt"

    def write_result(
        self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        file.writelines(f"{segment['text'].strip()}\n" for segment in result["segments"])


class SubtitlesWriter(ResultWriter):
    """Writes subtitles; the base of both formats."""

    always_include_hours: bool
    decimal_marker: str

    def iterate_result(
        self, result: Transcript, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> Iterator[tuple[str, str, str]]:
        """Yield the formatted start and end, and the text, of each subtitle."""
        names = {field.name for field in fields(Layout)}
        layout_options = {name: value for name, value in (options or {}).items() if name in names}
        layout = Layout(**{**layout_options, **{name: value for name, value in kwargs.items() if value}})
        for start, end, text in subtitles(result["segments"], layout):
            yield self.format_timestamp(start), self.format_timestamp(end), text

    def format_timestamp(self, seconds: float) -> str:
        return format_timestamp(seconds, self.always_include_hours, self.decimal_marker)


class WriteVTT(SubtitlesWriter):
    """WebVTT."""

    extension = "vtt"
    always_include_hours = False
    decimal_marker = "."

    def write_result(
        self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        file.write("WEBVTT\n\n")
        file.writelines(
            f"{start} --> {end}\n{text}\n\n" for start, end, text in self.iterate_result(result, options, **kwargs)
        )


class WriteSRT(SubtitlesWriter):
    """SubRip."""

    extension = "srt"
    always_include_hours = True
    decimal_marker = ","

    def write_result(
        self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        numbered = enumerate(self.iterate_result(result, options, **kwargs), start=1)
        file.writelines(f"{i}\n{start} --> {end}\n{text}\n\n" for i, (start, end, text) in numbered)


class WriteTSV(ResultWriter):
    """Tab-separated values, with times in milliseconds, rounded to integers."""

    extension = "tsv"

    def write_result(
        self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        file.write("start\tend\ttext\n")
        for segment in result["segments"]:
            text = segment["text"].strip().replace("\t", " ")
            file.write(f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}\t{text}\n")


class WriteJSON(ResultWriter):
    """JSON, with everything that `transcribe` returned."""

    extension = "json"

    def write_result(
        self, result: Transcript, file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        json.dump(result, file)


FORMATS: dict[str, type[ResultWriter]] = {
    writer.extension: writer for writer in (WriteTXT, WriteVTT, WriteSRT, WriteTSV, WriteJSON)
}


def get_writer(output_format: str, output_dir: str | os.PathLike[str]) -> Callable[..., None]:
    """Return a function that writes transcripts as `ResultWriter.__call__`.

    Args:
        output_format: One of `FORMATS`, or "all" for a file in each.
        output_dir: The folder for the files.

    Raises:
        OptionError: The format is unknown.
    """
    if output_format not in (*FORMATS, "all"):
        raise OptionError(f"output format {output_format!r} is none of {', '.join(FORMATS)}, all")
    if output_format != "all":
        return FORMATS[output_format](output_dir)

    def write_all(
        result: Transcript, audio_path: str | os.PathLike[str], options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        for writer in FORMATS.values():
            writer(output_dir)(result, audio_path, options, **kwargs)

    return write_all
