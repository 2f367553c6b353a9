"""Sound and video files to samples, by FFmpeg's libraries."""

import os
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO

import av
import numpy as np

from maxwhisper.errors import AudioError

# Formats whose header says how long the audio is, so that a file cut short can be told from a short one.
_EXACT_DURATION = {"flac", "mov", "mp4", "matroska", "webm"}
_CUT_SECONDS = 0.5  # how much less than the header says may come out of a sound file: encoders pad and players trim


def read_samples(source: str | BinaryIO, rate: int) -> np.ndarray:
    """As `maxwhisper.load_audio`: float32 [n_samples] in [-1, 1], one channel, `rate` Hz."""
    path = source if isinstance(source, str) else str(getattr(source, "name", "the audio"))
    if os.path.isdir(path):
        raise AudioError(f"{path} is a folder; name the audio files in it")
    try:
        with av.open(source, metadata_errors="ignore") as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise AudioError(f"{path} holds no audio; give a sound or video file")
            pieces = [np.empty(0, np.int16), *_resampled(path, container, stream, rate)]
            samples = np.concatenate(pieces)
            promised = _promised_seconds(source, container, stream, len(samples) / rate)
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{path} can't be read as audio ({error.strerror}); give a sound or video file that plays") from error
    if len(samples) == 0:
        raise AudioError(f"{path} holds no audio samples; record or export it anew")
    if len(samples) / rate < promised - _CUT_SECONDS:
        raise AudioError(
            f"{path} is cut short: {promised:.1f} s by its header, but only {len(samples) / rate:.1f} s are there; get a whole copy"
        )
    return samples.astype(np.float32) / 32768.0


def _resampled(path: str, container: Any, stream: Any, rate: int) -> Iterator[np.ndarray]:
    """The stream's samples, int16 [n_samples] at `rate` Hz, piece by piece. Rate and channels may change on the way, as in joined files."""
    resampler: Any = None
    seen = None
    for frame in _decoded(path, container, stream):
        if (frame.format.name, frame.layout.name, frame.sample_rate) != seen:
            if resampler is not None:
                yield from (out.to_ndarray()[0] for out in resampler.resample(None))
            resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
            seen = (frame.format.name, frame.layout.name, frame.sample_rate)
        yield from (out.to_ndarray()[0] for out in resampler.resample(frame))
    if resampler is not None:
        yield from (out.to_ndarray()[0] for out in resampler.resample(None))


def _decoded(path: str, container: Any, stream: Any) -> Iterator[Any]:
    """The stream's frames. Damaged packets are left out, as FFmpeg leaves them out; a file that lacks much is found by its length."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            if frame.format.name.startswith(("flt", "dbl")) and not np.isfinite(frame.to_ndarray()).all():
                where = "" if frame.time is None else f", {frame.time:.2f} s from its start"
                raise AudioError(f"{path} has samples that are no finite number{where}; repair the recording")
            yield frame


def _promised_seconds(source: str | BinaryIO, container: Any, stream: Any, found: float) -> float:
    """How long the audio is by the file's own header, or 0 where it doesn't say; `found` seconds were decoded."""
    formats = set(container.format.name.split(","))
    if "wav" in formats and (not isinstance(source, str) or os.path.isfile(source)):
        return found * _wav_bytes_promised(source)
    if formats.isdisjoint(_EXACT_DURATION):
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # else the file's duration may be that of its pictures
    return (container.duration or 0) / av.time_base if alone else 0.0


def _wav_bytes_promised(source: str | BinaryIO) -> float:
    """How many bytes of samples a wav file says it has, for each that is there; 0 where it was written to a pipe and doesn't know."""
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
        n_bytes = file.seek(0, os.SEEK_END)
        file.seek(12)  # "RIFF", a size, "WAVE"
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                there = n_bytes - file.tell()
                return size / there if there and size < _UNKNOWN_SIZE else 0.0
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0.0


_UNKNOWN_SIZE = 0x7FFFF000  # programs that write to pipes put this or more
