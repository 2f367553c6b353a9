"""The names that programs import from `whisper.utils`: small functions and transcript writers."""

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
    """Replace the characters that the system's encoding lacks; UTF-8, Python's default, has all."""
    return string.encode(system_encoding, errors="replace").decode(system_encoding)


def exact_div(x: int, y: int) -> int:
    """Return x / y.

    Raises:
        ValueError: There is a remainder.
    """
    if x % y:
        raise ValueError(f"{x} is not a multiple of {y}")
    return x // y


def str2bool(string: str) -> bool:
    """Parse "True" or "False".

    Raises:
        ValueError: The text is neither.
    """
    if string not in ("True", "False"):
        raise ValueError(f"expected True or False, got {string}")
    return string == "True"


def optional_int(string: str) -> int | None:
    """Parse an integer or "None"."""
    return None if string == "None" else int(string)


def optional_float(string: str) -> float | None:
    """Parse a number or "None"."""
    return None if string == "None" else float(string)
