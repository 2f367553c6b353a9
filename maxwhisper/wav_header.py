"""Read what a WAV file's header promises, where FFmpeg doesn't say it or takes it for something else."""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

_EXTENSIBLE = 0xFFFE  # WAVE_FORMAT_EXTENSIBLE
_PCM = 1  # WAVE_FORMAT_PCM, and how the sub-format of an extensible header begins
_UNKNOWN_SIZE = 0x7FFFF000  # programs that write to pipes put this or more
_CONTAINERS = {8: "pcm_u8", 16: "pcm_s16le", 24: "pcm_s24le", 32: "pcm_s32le"}  # bits: FFmpeg's decoder


@dataclass(frozen=True)
class WavHeader:
    """What a header says of the samples behind it.

    missing_seconds: how much longer than what is there they are; 0 if the writer didn't know their size, as in a pipe.
    decoder: FFmpeg's name of the decoder that reads them right; None if FFmpeg finds it by itself.
    """

    missing_seconds: float = 0.0
    decoder: str | None = None


def read_wav_header(path: str) -> WavHeader:
    """Read a file's header (Microsoft, *Multiple channel audio data and WAVE files*, 2007); of any other kind of file, an empty one."""
    with suppress(OSError):  # FFmpeg says why a file can't be opened
        if os.path.isfile(path):  # a pipe can be read only once
            with open(path, "rb") as file:
                magic = file.read(12)
                return _read_chunks(file) if magic[:4] == b"RIFF" and magic[8:] == b"WAVE" else WavHeader()
    return WavHeader()


def _read_chunks(file: BinaryIO) -> WavHeader:
    decoder, byte_rate = None, 0
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        begin = file.tell()
        if name == b"fmt ":
            fmt = file.read(min(size, 40))
            decoder, byte_rate = _decoder(fmt), int.from_bytes(fmt[8:12], "little")
        elif name == b"data":
            missing = size - (file.seek(0, os.SEEK_END) - begin) if 0 < size < _UNKNOWN_SIZE else 0
            return WavHeader(max(0, missing) / byte_rate if byte_rate else 0.0, decoder)
        file.seek(begin + size + size % 2)
    return WavHeader(decoder=decoder)


def _decoder(fmt: bytes) -> str | None:
    """The decoder of integers that don't fill their containers, as 24 bits in 32, which FFmpeg takes for another format."""
    if len(fmt) < 40:
        return None
    tag, _channels, _rate, _byte_rate, _block, n_bits, _size, n_valid, _mask, sub_format = struct.unpack(
        "<HHIIHHHHIH", fmt[:26]
    )
    padded = (tag, sub_format) == (_EXTENSIBLE, _PCM) and 0 < n_valid < n_bits
    return _CONTAINERS.get(n_bits) if padded else None
