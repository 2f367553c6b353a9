"""Words, segments and transcripts: dicts with the keys that OpenAI Whisper's have."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from maxwhisper.tokenizer import Tokenizer


class Word(TypedDict):
    """A word of a segment."""

    word: str  # with the space before it
    start: float  # in seconds
    end: float
    probability: float  # the mean over the word's tokens


class Segment(TypedDict):
    """A part of a transcript, from one timestamp to the next."""

    id: NotRequired[int]  # the position in the transcript; missing while its window is being transcribed
    seek: int  # the first frame of the window, in hundredths of a second
    start: float  # in seconds
    end: float
    text: str
    tokens: list[int]  # token ids, including timestamps
    temperature: float  # the temperature that the window was decoded at
    avg_logprob: float  # the mean over the window's tokens
    compression_ratio: float  # how many times shorter zlib makes the window's text
    no_speech_prob: float  # the probability that the window holds no speech
    words: NotRequired[list[Word]]  # only with the option `word_timestamps`


class Transcript(TypedDict):
    """The transcript of a recording."""

    text: str
    segments: list[Segment]
    language: str


def text_tokens(segments: Sequence[Segment], eot: int) -> list[int]:
    """Return the text tokens of segments, without timestamps and other special tokens."""
    return [token for segment in segments for token in segment["tokens"] if token < eot]


def text_of(segments: Sequence[Segment], tokenizer: Tokenizer) -> str:
    """Return the text of all segments together."""
    return tokenizer.decode([token for segment in segments for token in segment["tokens"]])


def get_start(segments: Sequence[Segment]) -> float | None:
    """Return the start of the first word, or else of the first segment, if there are any."""
    words = (word for segment in segments for word in segment["words"])
    return next((word["start"] for word in words), segments[0]["start"] if segments else None)


def get_end(segments: Sequence[Segment]) -> float | None:
    """Return the end of the last word, or else of the last segment, if there are any."""
    words = (word for segment in reversed(segments) for word in reversed(segment["words"]))
    return next((word["end"] for word in words), segments[-1]["end"] if segments else None)


def format_timestamp(seconds: float, always_include_hours: bool = False, decimal_marker: str = ".") -> str:
    """Format a time as `[hh:]mm:ss.mmm`.

    Args:
        seconds: 0 or more.
        always_include_hours: Write hours even if there are none.
        decimal_marker: The mark before the milliseconds.

    Raises:
        ValueError: The time is negative.
    """
    if seconds < 0:
        raise ValueError(f"a timestamp can't be negative, but {seconds} is")
    milliseconds = round(seconds * 1000)
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    full_seconds, milliseconds = divmod(milliseconds, 1_000)
    prefix = f"{hours:02d}:" if always_include_hours or hours > 0 else ""
    return f"{prefix}{minutes:02d}:{full_seconds:02d}{decimal_marker}{milliseconds:03d}"


def segment_line(segment: Segment) -> str:
    """Format a segment as a line for the terminal: its times and its text."""
    return f"[{format_timestamp(segment['start'])} --> {format_timestamp(segment['end'])}] {segment['text']}"
