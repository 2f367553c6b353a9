"""Reading from a WAV file's header what FFmpeg ignores or misreads."""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

_EXTENSIBLE = 0xFFFE  # WAVE_FORMAT_EXTENSIBLE
_PCM = 1  # WAVE_FORMAT_PCM; also the start of the sub-format of an extensible header
_UNKNOWN_SIZE = 0x7FFFF000  # programs that write to a pipe write this size or a larger one
_CONTAINERS = {8: "pcm_u8", 16: "pcm_s16le", 24: "pcm_s24le", 32: "pcm_s32le"}  # FFmpeg's decoders, by bits


@dataclass(frozen=True)
class WavHeader:
    """What a header says about the file's samples."""

    # The duration by the header less that of the samples in the file; 0 if the header has no valid
    # size, as in a file written through a pipe.
    missing_seconds: float = 0.0
    decoder: str | None = None  # FFmpeg's decoder to read them with; None if FFmpeg selects it correctly


def read_wav_header(path: str) -> WavHeader:
    """Read the header of a WAV file; return an empty one for any other file.

    The format is that of Microsoft, *Multiple channel audio data and WAVE files*, 2007.
    """
    with suppress(OSError):  # FFmpeg will report why the file can't be opened
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
    """Return the decoder of integers that don't fill their containers, such as 24 bits in 32.

    FFmpeg would read them as a different format. None for all other samples.
    """
    if len(fmt) < 40:
        return None
    tag, _channels, _rate, _byte_rate, _block, n_bits, _size, n_valid, _mask, sub_format = struct.unpack(
        "<HHIIHHHHIH", fmt[:26]
    )
    padded = (tag, sub_format) == (_EXTENSIBLE, _PCM) and 0 < n_valid < n_bits
    return _CONTAINERS.get(n_bits) if padded else None
