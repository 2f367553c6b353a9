"""Decoding sound and video files with FFmpeg's program, as OpenAI Whisper does.

FFmpeg runs in its own process, so a file that crashes a decoder does not crash this process.
"""

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import imageio_ffmpeg
import numpy as np

from maxwhisper.errors import AudioError, AudioWarning
from maxwhisper.wav_header import WavHeader, read_wav_header

# Formats whose header states the duration, which tells a truncated file from a short one.
_EXACT_DURATION = {"flac", "mov", "mp4", "matroska", "webm"}
# Audio may be so much shorter than its header says: encoders add padding, and decoders remove it.
_CUT_SECONDS = 0.5


def read_samples(source: str | BinaryIO, rate: int, track: int | None = None) -> np.ndarray:
    """Read a file's samples, as `maxwhisper.load_audio`.

    Args:
        source: A path, a URL, or an open binary file.
        rate: The sample rate of the result, in Hz.
        track: The index of the file's sound track; None to let FFmpeg choose.

    Returns:
        float32 [n_samples] in [-1, 1].

    Raises:
        AudioError: The file can't be read as audio.
    """
    name = source if isinstance(source, str) else str(getattr(source, "name", "the audio"))
    with _on_disk(source, name) as path:
        header = read_wav_header(path)
        decoded = _decode(name, _url(path), rate, track, header.decoder)
        problems = list(_problems(decoded, header, rate))
    for problem in problems:
        warnings.warn(f"{name} {problem}", AudioWarning, stacklevel=2)
    samples = decoded.samples.astype(np.float32)
    samples /= 32768.0
    return samples


@dataclass(frozen=True)
class _Decoded:
    """The result of running FFmpeg on an input."""

    source: Sequence[str]  # the arguments that select the input
    samples: np.ndarray  # int16 [n_samples]
    status: int  # the exit status
    log: str  # the text that FFmpeg wrote to stderr
    remedy: str | None  # how a problem of the input was worked around, for a warning

    @property
    def failed(self) -> bool:
        return self.status != 0 and len(self.samples) == 0

    @property
    def header(self) -> str:
        """The part of the log that describes the input."""
        return self.log.partition("\nStream mapping:")[0].partition("\nOutput #0")[0]

    @property
    def n_tracks(self) -> int:
        """The number of the input's sound tracks."""
        return len(re.findall(r"^ {2,4}Stream #0:\d+.*?: Audio:", self.header, re.MULTILINE))


def _decode(name: str, url: str, rate: int, track: int | None, decoder: str | None) -> _Decoded:
    """Decode a file, with other arguments if FFmpeg fails for a reason that they avoid.

    Args:
        name: The file's name in messages.
        url: The file's name for FFmpeg.
        rate: The sample rate of the result, in Hz.
        track: The index of the file's sound track; None to let FFmpeg choose.
        decoder: FFmpeg's decoder to use; None to let FFmpeg choose.

    Raises:
        AudioError: Nothing can be read.
    """
    source = [*(["-c:a", decoder] if decoder else []), "-i", url]
    chosen = [*source, *([] if track is None else ["-map", f"0:a:{track}"])]
    decoded = _run(chosen, rate)
    if decoded.failed and (unknown := re.search(r"Rematrix is needed between (\d+) channels", decoded.log)):
        n = int(unknown[1])
        mean = "aformat=fltp,pan=mono|c0=" + "+".join(f"{1 / n}*c{i}" for i in range(n))
        decoded = _run([*chosen, "-af", mean], rate, f"has {n} channels of unknown layout; their mean is used")
    if decoded.failed and track is None and "no decoder found" in decoded.log:
        for other in range(decoded.n_tracks):
            remedy = f"has a sound track that can't be decoded; track {other} is read, --audio_track selects one"
            decoded_track = _run([*source, "-map", f"0:a:{other}"], rate, remedy)
            if not decoded_track.failed:
                return decoded_track
    if not decoded.failed:
        return decoded
    if "Input #0" in decoded.header and decoded.n_tracks == 0:
        raise AudioError(f"{name} holds no audio; give a sound or video file")
    if track is not None and track >= decoded.n_tracks > 0:
        raise AudioError(
            f"{name} has no sound track {track}, only {decoded.n_tracks}, counted from 0; choose one of them"
        )
    reasons = re.findall(r"^Error [^\n]*: ([^\n:]+)$", decoded.log, re.MULTILINE)
    reason = reasons[-1] if reasons else f"FFmpeg ended with status {decoded.status}"
    raise AudioError(f"{name} can't be read as audio ({reason}); give a sound or video file that plays")


def _run(source: Sequence[str], rate: int, remedy: str | None = None) -> _Decoded:
    """Decode an input with OpenAI Whisper's arguments of FFmpeg.

    Args:
        source: The arguments that select the input.
        rate: The sample rate of the result, in Hz.
        remedy: How `source` works around a problem of the input.
    """
    process = _ffmpeg(*source, "-f", "s16le", "-ac", "1", "-acodec", "pcm_s16le", "-ar", str(rate), "-")
    samples = np.frombuffer(process.stdout, np.int16, len(process.stdout) // 2)
    return _Decoded(source, samples, process.returncode, process.stderr.decode(errors="replace"), remedy)


def _ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run FFmpeg: the program named by `IMAGEIO_FFMPEG_EXE`, else that of imageio-ffmpeg.

    Raises:
        AudioError: The program can't be started, or there is none.
    """
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-threads", "0", *arguments]
        environment = {**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"}  # the log is parsed
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment)
    except (OSError, RuntimeError) as error:  # OSError: it can't be started; RuntimeError: there is none
        raise AudioError(
            f"FFmpeg can't be run ({error}); pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to a program"
        ) from error


def _problems(decoded: _Decoded, header: WavHeader, rate: int) -> Iterator[str]:
    """Yield a warning for each problem of the decoded samples."""
    if decoded.remedy:
        yield decoded.remedy
    seconds = len(decoded.samples) / rate
    expected = seconds + header.missing_seconds if header.missing_seconds else _header_seconds(decoded)
    if seconds < expected - _CUT_SECONDS:
        yield f"may be cut short: {expected:.1f} s by its header, {seconds:.1f} s are there"
    if decoded.status != 0:
        yield f"is damaged: FFmpeg gave up after {seconds:.1f} s"
    if _FLOATS.search(decoded.log) and (n := _count_not_finite(decoded.source)):
        yield f"has {n} samples that are NaN or infinite; they are clipped"


# Decoders that return the stored floats, NaN and infinite ones too.
_FLOATS = re.compile(r"^  Stream #0:\d+ -> #0:0 \((pcm_f|wavpack)", re.MULTILINE)


def _count_not_finite(source: Sequence[str]) -> int:
    """Count the stored samples that are NaN or infinite."""
    statistics = "astats=measure_perchannel=none:measure_overall=Number_of_NaNs+Number_of_Infs"
    log = _ffmpeg(*source, "-vn", "-sn", "-dn", "-af", statistics, "-f", "null", "-").stderr.decode(errors="replace")
    return round(sum(map(float, re.findall(r"Number of (?:NaNs|Infs): ([\d.]+)", log))))


def _header_seconds(decoded: _Decoded) -> float:
    """Return the duration of the audio by the file's header, in seconds; 0 if it is not there."""
    log = decoded.header
    kinds = re.search(r"^Input #0, (\S+), from", log, re.MULTILINE)
    times = re.search(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+), start: ([-\d.]+)", log, re.MULTILINE)
    has_video = re.search(r"^ {2,4}Stream #0:\d+.*?: Video:(?!.*\(attached pic\))", log, re.MULTILINE)
    is_only_track = decoded.n_tracks == 1 and not has_video  # else the duration is that of the longest track
    if not kinds or not times or not is_only_track or _EXACT_DURATION.isdisjoint(kinds[1].split(",")):
        return 0.0
    hours, minutes, seconds, start = map(float, times.groups())
    return 3600 * hours + 60 * minutes + seconds - max(0.0, start)


@contextmanager
def _on_disk(source: str | BinaryIO, name: str) -> Iterator[str]:
    """Provide the path of a file on disk, where FFmpeg can seek.

    An open file is copied to a temporary one, since many formats can't be decoded without seeking.

    Raises:
        AudioError: The name can't be that of a file, or the open file can't be read.
    """
    if isinstance(source, str):
        if "\0" in source:
            raise AudioError(f"{source!r} can't be a file name, because it contains a NUL; name the audio file")
        if os.path.isdir(source):
            raise AudioError(f"{name} is a folder; name the audio files in it")
        yield source
        return
    with tempfile.NamedTemporaryFile(prefix="maxwhisper-") as file:
        try:
            shutil.copyfileobj(source, file)
            file.flush()
        except (OSError, ValueError, TypeError) as error:  # a full disk; a closed file; a file of text
            raise AudioError(f"{name} can't be read ({error}); give a file that is open for reading bytes") from error
        yield file.name


def _url(path: str) -> str:
    """Return the name of a file for FFmpeg.

    It starts with a protocol, so that FFmpeg does not interpret a colon or a dash. URLs of other
    protocols are returned as they are.
    """
    is_file = os.path.exists(path) or not re.match(r"[A-Za-z][A-Za-z0-9+.]*:", path)
    return f"file:{path}" if is_file else path
