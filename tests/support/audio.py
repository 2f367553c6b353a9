"""Writers of sound files.

Most files are encoded by the FFmpeg that also reads them. Files that no encoder writes are written
byte by byte.
"""

import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
# Default codecs, by file extension.
CODECS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "ogg": "libopus",
    "m4a": "aac",
    "mp4": "aac",
    "webm": "libopus",
}
# FFmpeg's channel layouts, by number of channels.
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 7: "6.1", 8: "7.1", 16: "9.1.6"}


def ffmpeg(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    """Run FFmpeg, overwriting existing files, and return its standard output."""
    command = [FFMPEG, "-hide_banner", "-v", "error", "-y", "-bitexact", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def write_audio(
    path: Path,
    samples: np.ndarray,
    rate: int,
    layout: str = "mono",
    with_video: bool = False,
    options: tuple[str, ...] = (),
) -> Path:
    """Write samples to a sound file, whose extension determines its format.

    Args:
        path: Where to write the file.
        samples: Samples in [-1, 1], float [n_channels, n_samples].
        rate: The sample rate in Hz.
        layout: FFmpeg's name of the channel layout.
        with_video: Also write a video track of five seconds.
        options: FFmpeg's options for the output.

    Returns:
        The path.
    """
    packed = np.ascontiguousarray((samples.T * 32767).round().astype("<i2"))
    sound = ("-f", "s16le", "-ar", str(rate), "-ch_layout", layout, "-i", "-")
    video = (
        "-f",
        "lavfi",
        "-i",
        "color=size=32x32:rate=10:duration=5",
        "-c:v",
        "mjpeg" if path.suffix != ".webm" else "libvpx",
    )
    codec = ("-c:a", CODECS[path.suffix[1:]]) if path.suffix[1:] in CODECS and "-c:a" not in options else ()
    ffmpeg(*sound, *(video if with_video else ()), *codec, *options, path, stdin=packed.tobytes())
    return path


def chirp(seconds: float, rate: int) -> np.ndarray:
    """Return a tone of rising frequency, float64 [n_samples]."""
    t = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * t + 300 * t**2))


def write_caf(path: Path, samples: np.ndarray, rate: int, labels: tuple[int, ...]) -> Path:
    """Write a Core Audio file whose channels have a given order.

    Args:
        path: Where to write the file.
        samples: Samples, int16 [n_channels, n_samples].
        rate: The sample rate in Hz.
        labels: Core Audio's label of each channel.

    Returns:
        The path.
    """
    n = len(samples)
    description = struct.pack(">d4sIIIII", rate, b"lpcm", 2, 2 * n, 1, n, 16)  # flag 2: little-endian
    layout = struct.pack(">III", 0, 0, n) + b"".join(struct.pack(">II12x", label, 0) for label in labels)
    data = bytes(4) + np.ascontiguousarray(samples.T.astype("<i2")).tobytes()
    chunks = ((b"desc", description), (b"chan", layout), (b"data", data))
    path.write_bytes(
        b"caff"
        + struct.pack(">HH", 1, 0)
        + b"".join(name + struct.pack(">Q", len(body)) + body for name, body in chunks)
    )
    return path


def write_padded_wav(path: Path, samples: np.ndarray, rate: int, n_bits: int, n_valid: int) -> Path:
    """Write a WAV file (WAVE_FORMAT_EXTENSIBLE) whose integers do not fill their containers.

    Args:
        path: Where to write the file.
        samples: Samples in [-1, 1], float [n_samples].
        rate: The sample rate in Hz.
        n_bits: The size of a container in bits.
        n_valid: The size of an integer in bits.

    Returns:
        The path.
    """
    # Integers are in the high bits of their containers.
    integers = np.round(samples * (2 ** (n_valid - 1) - 1)).astype("<i4") << (32 - n_valid)
    data = integers.view("u1").reshape(-1, 4)[:, 4 - n_bits // 8 :].tobytes()
    block = n_bits // 8
    sub_format = bytes.fromhex("0100000000001000800000aa00389b71")
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, rate, rate * block, block, n_bits, 22, n_valid, 4) + sub_format
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path
