"""Decode sound and video files with FFmpeg's own program, as OpenAI Whisper does.

It runs in a process of its own: a file that breaks a decoder can't break the process that asked for it.
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

# Formats whose header states the duration, so that a file cut short differs from a short one.
_EXACT_DURATION = {"flac", "mov", "mp4", "matroska", "webm"}
_CUT_SECONDS = 0.5  # how much less than the header says may come out: encoders pad and players trim


def read_samples(source: str | BinaryIO, rate: int, track: int | None = None) -> np.ndarray:
    """As `maxwhisper.load_audio`: float32 [n_samples] in [-1, 1], one channel, `rate` Hz."""
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
    """What FFmpeg made of an input: int16 samples [n], its exit status, and what it said.

    source: the arguments that name the input; remedy: what had to be done to read it, for a warning.
    """

    source: Sequence[str]
    samples: np.ndarray
    status: int
    log: str
    remedy: str | None

    @property
    def failed(self) -> bool:
        return self.status != 0 and len(self.samples) == 0

    @property
    def header(self) -> str:
        """What it said of the input, before it decoded anything."""
        return self.log.partition("\nStream mapping:")[0].partition("\nOutput #0")[0]

    @property
    def n_tracks(self) -> int:
        """How many sound tracks the input has."""
        return len(re.findall(r"^ {2,4}Stream #0:\d+.*?: Audio:", self.header, re.MULTILINE))


def _decode(name: str, url: str, rate: int, track: int | None, decoder: str | None) -> _Decoded:
    """Run FFmpeg, and once more if it fails for a reason that can be mended.

    Raises AudioError if nothing can be read.
    """
    source = [*(["-c:a", decoder] if decoder else []), "-i", url]
    chosen = [*source, *([] if track is None else ["-map", f"0:a:{track}"])]
    decoded = _run(chosen, rate)
    if decoded.failed and (unknown := re.search(r"Rematrix is needed between (\d+) channels", decoded.log)):
        n = int(unknown[1])
        mean = "aformat=fltp,pan=mono|c0=" + "+".join(f"{1 / n}*c{i}" for i in range(n))
        decoded = _run([*chosen, "-af", mean], rate, f"has {n} channels of no known arrangement; their mean is read")
    if decoded.failed and track is None and "no decoder found" in decoded.log:
        for other in range(decoded.n_tracks):
            remedy = f"has a sound track that can't be decoded; track {other} is read, --audio_track chooses another"
            again = _run([*source, "-map", f"0:a:{other}"], rate, remedy)
            if not again.failed:
                return again
    if not decoded.failed:
        return decoded
    if "Input #0" in decoded.header and decoded.n_tracks == 0:
        raise AudioError(f"{name} holds no audio; give a sound or video file")
    if track is not None and track >= decoded.n_tracks > 0:
        raise AudioError(f"{name} has no sound track {track}, only {decoded.n_tracks}, counted from 0; choose another")
    reasons = re.findall(r"^Error [^\n]*: ([^\n:]+)$", decoded.log, re.MULTILINE)
    reason = reasons[-1] if reasons else f"FFmpeg ended with status {decoded.status}"
    raise AudioError(f"{name} can't be read as audio ({reason}); give a sound or video file that plays")


def _run(source: Sequence[str], rate: int, remedy: str | None = None) -> _Decoded:
    """Decode with the arguments that OpenAI Whisper gives, behind those that name the input."""
    done = _ffmpeg(*source, "-f", "s16le", "-ac", "1", "-acodec", "pcm_s16le", "-ar", str(rate), "-")
    samples = np.frombuffer(done.stdout, np.int16, len(done.stdout) // 2)
    return _Decoded(source, samples, done.returncode, done.stderr.decode(errors="replace"), remedy)


def _ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run FFmpeg: the one that `IMAGEIO_FFMPEG_EXE` names, or else the one of the package imageio-ffmpeg."""
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-threads", "0", *arguments]
        environment = {**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"}  # what it says is read here
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment)
    except (OSError, RuntimeError) as error:  # it can't be started; there is none
        raise AudioError(
            f"FFmpeg can't be run ({error}); pip install imageio-ffmpeg, or name a program in IMAGEIO_FFMPEG_EXE"
        ) from error


def _problems(decoded: _Decoded, header: WavHeader, rate: int) -> Iterator[str]:
    """What somebody who gets these samples should know."""
    if decoded.remedy:
        yield decoded.remedy
    seconds = len(decoded.samples) / rate
    promised = seconds + header.missing_seconds if header.missing_seconds else _promised_seconds(decoded)
    if seconds < promised - _CUT_SECONDS:
        yield f"may be cut short: {promised:.1f} s by its header, {seconds:.1f} s are there"
    if decoded.status != 0:
        yield f"is damaged: FFmpeg gave up after {seconds:.1f} s"
    if _FLOATS.search(decoded.log) and (n := _count_not_finite(decoded.source)):
        yield f"has {n} samples that are NaN or infinite; they are clipped"


_FLOATS = re.compile(
    r"^  Stream #0:\d+ -> #0:0 \((pcm_f|wavpack)", re.MULTILINE
)  # decoders that give whatever floats are stored


def _count_not_finite(source: Sequence[str]) -> int:
    """How many of the stored samples are no finite number."""
    counted = "astats=measure_perchannel=none:measure_overall=Number_of_NaNs+Number_of_Infs"
    log = _ffmpeg(*source, "-vn", "-sn", "-dn", "-af", counted, "-f", "null", "-").stderr.decode(errors="replace")
    return round(sum(map(float, re.findall(r"Number of (?:NaNs|Infs): ([\d.]+)", log))))


def _promised_seconds(decoded: _Decoded) -> float:
    """How long the audio is by the file's own header, or 0 if it doesn't say."""
    log = decoded.header
    kinds = re.search(r"^Input #0, (\S+), from", log, re.MULTILINE)
    times = re.search(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+), start: ([-\d.]+)", log, re.MULTILINE)
    has_video = re.search(r"^ {2,4}Stream #0:\d+.*?: Video:(?!.*\(attached pic\))", log, re.MULTILINE)
    alone = decoded.n_tracks == 1 and not has_video  # else the longest of all tracks has the file's duration
    if not kinds or not times or not alone or _EXACT_DURATION.isdisjoint(kinds[1].split(",")):
        return 0.0
    hours, minutes, rest, start = map(float, times.groups())
    return 3600 * hours + 60 * minutes + rest - max(0.0, start)


@contextmanager
def _on_disk(source: str | BinaryIO, name: str) -> Iterator[str]:
    """The path of a file; what can only be read is written to a temporary one, as many formats must be read back and forth."""
    if isinstance(source, str):
        if "\0" in source:
            raise AudioError(f"{source!r} can't be a file's name, for it holds a NUL; name the audio file")
        if os.path.isdir(source):
            raise AudioError(f"{name} is a folder; name the audio files in it")
        yield source
        return
    with tempfile.NamedTemporaryFile(prefix="maxwhisper-") as file:
        try:
            shutil.copyfileobj(source, file)
            file.flush()
        except (OSError, ValueError, TypeError) as error:  # a full disk; a closed file; one that gives text
            raise AudioError(f"{name} can't be read ({error}); give a file that is open for reading bytes") from error
        yield file.name


def _url(path: str) -> str:
    """How FFmpeg names a file: with a protocol, so that a colon or a dash in its name means nothing. Other protocols pass."""
    is_file = os.path.exists(path) or not re.match(r"[A-Za-z][A-Za-z0-9+.]*:", path)
    return f"file:{path}" if is_file else path
