"""What programs import from `whisper.utils`: small helpers, and the writers of transcripts."""

import sys

from maxwhisper.decoding.task import compression_ratio
from maxwhisper.transcript import format_timestamp, get_end, get_start
from maxwhisper.writers import (
    ResultWriter,
    SubtitlesWriter,
    WriteJSON,
    WriteSRT,
    WriteTSV,
    WriteTXT,
    WriteVTT,
    get_writer,
)

__all__ = [
    "ResultWriter",
    "SubtitlesWriter",
    "WriteJSON",
    "WriteSRT",
    "WriteTSV",
    "WriteTXT",
    "WriteVTT",
    "compression_ratio",
    "exact_div",
    "format_timestamp",
    "get_end",
    "get_start",
    "get_writer",
    "make_safe",
    "optional_float",
    "optional_int",
    "str2bool",
    "system_encoding",
]

system_encoding = sys.getdefaultencoding()


def make_safe(string: str) -> str:
    """Replace characters that the system's encoding lacks; Python's is UTF-8, which lacks none."""
    return string.encode(system_encoding, errors="replace").decode(system_encoding)


def exact_div(x: int, y: int) -> int:
    """Return x / y. Raises ValueError if there is a remainder."""
    if x % y:
        raise ValueError(f"{x} is no multiple of {y}")
    return x // y


def str2bool(string: str) -> bool:
    """Parse "True" or "False". Raises ValueError for everything else."""
    if string not in ("True", "False"):
        raise ValueError(f"expected True or False, got {string}")
    return string == "True"


def optional_int(string: str) -> int | None:
    """Parse a number or "None"."""
    return None if string == "None" else int(string)


def optional_float(string: str) -> float | None:
    """Parse a number or "None"."""
    return None if string == "None" else float(string)
