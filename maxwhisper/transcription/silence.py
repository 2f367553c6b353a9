"""Finding speech in a recording with Silero's voice activity detector, to leave out silence.

Parameters and defaults are those of faster-whisper 1.2.1.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count, pairwise
from typing import Any, SupportsFloat

import numpy as np

from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.errors import OptionError
from maxwhisper.transcript import Segment, Word
from maxwhisper.transcription.silero import WINDOW, speech_probabilities


@dataclass(frozen=True)
class VadOptions:
    """Options of voice activity detection; names, order, meaning and defaults are faster-whisper's.

    Raises:
        OptionError: A value can't be used.
    """

    threshold: float = 0.5  # speech begins when its probability reaches this
    neg_threshold: float | None = None  # and ends when it falls below this; `threshold` less 0.15 by default
    min_speech_duration_ms: float = 0  # shorter speech is dropped
    max_speech_duration_s: float = np.inf  # longer speech is cut, in its last pause above 98 ms if there is one
    min_silence_duration_ms: float = 2000  # shorter pauses are kept
    speech_pad_ms: float = 400  # this much audio around speech is kept

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            highest, allowed = _ALLOWED[name]
            if not 0 <= _number(value) <= highest and not (value is None and name == "neg_threshold"):
                raise OptionError(f"{name} {value!r} is not {allowed}")

    @classmethod
    def of(cls, parameters: object) -> "VadOptions":
        """Make options from the argument `vad_parameters`.

        Args:
            parameters: A mapping, or an object with some of the fields, such as faster-whisper's
                own; None for the defaults.

        Raises:
            OptionError: A name or a value can't be used.
        """
        names = [field.name for field in fields(cls)]
        values = parameters if isinstance(parameters, Mapping) else _fields_of(parameters, names)
        for name in values:
            if name not in names:
                raise OptionError(f"vad_parameters has no {name!r}, only {', '.join(names)}")
        return cls(**values)


_PROBABILITY = (1.0, "a number from 0 to 1")
_MILLISECONDS = (sys.float_info.max, "a finite number of milliseconds, 0 or more")
_ALLOWED = {  # the highest value of each field; the lowest is 0
    "threshold": _PROBABILITY,
    "neg_threshold": _PROBABILITY,
    "min_speech_duration_ms": _MILLISECONDS,
    "max_speech_duration_s": (np.inf, "a number of seconds, 0 or more"),
    "min_silence_duration_ms": _MILLISECONDS,
    "speech_pad_ms": _MILLISECONDS,
}


def _number(value: object) -> float:
    """Convert a value to float; return NaN if it is not a number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsFloat):
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _fields_of(parameters: object, option_names: Sequence[str]) -> dict[str, Any]:
    """Return the options that an object has, and any other public fields that it declares."""
    if parameters is None:
        return {}
    declared = (name for kind in ("_fields", "__slots__", "__dict__") for name in getattr(parameters, kind, ()))
    names = dict.fromkeys(
        name for name in (*option_names, *declared) if not name.startswith("_") and hasattr(parameters, name)
    )
    if isinstance(parameters, type) or not names:
        raise OptionError(
            f"vad_parameters {parameters!r} is neither a mapping nor an object with any of {', '.join(option_names)}"
        )
    return {name: getattr(parameters, name) for name in names}


Part = tuple[int, int]  # the first sample, and the one after the last


@dataclass(frozen=True)
class Speech:
    """The parts of a recording that hold speech; they are joined and transcribed."""

    parts: Sequence[Part]  # in order

    def within(self, clips: Sequence[Part]) -> "Speech":
        """Return the speech that lies within clips of the recording."""
        return Speech([(max(a, c), min(b, d)) for c, d in clips for a, b in self.parts if max(a, c) < min(b, d)])

    def joined(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples of all parts, joined, float32 [n].

        Args:
            samples: The recording, float32 [n_samples].
        """
        return np.concatenate([np.empty(0, np.float32), *(samples[start:end] for start, end in self.parts)])

    def part_of(self, seconds: float, is_end: bool = False) -> int:
        """Return the index of the part in which a time of the joined samples lies.

        Args:
            seconds: The time.
            is_end: Where two parts meet, choose the earlier one instead of the later one.
        """
        ends = np.cumsum([end - start for start, end in self.parts])
        index = np.searchsorted(ends, round(seconds * SAMPLE_RATE), side="left" if is_end else "right")
        return min(int(index), len(self.parts) - 1)

    def original(self, seconds: float, part: int) -> float:
        """Convert a time of the joined samples to one of the recording, limited to a part.

        Args:
            seconds: The time.
            part: The index of the part in which it lies.
        """
        before = sum(end - start for start, end in self.parts[:part])
        start, end = self.parts[part]
        return round(min(max(seconds + (start - before) / SAMPLE_RATE, start / SAMPLE_RATE), end / SAMPLE_RATE), 2)

    def restore(self, segment: Segment) -> Segment:
        """Return a segment of the joined samples with the times of the recording."""
        words = list[Word]()
        for word in segment.get("words", []):
            part = self.part_of((word["start"] + word["end"]) / 2)
            words.append({**word, "start": self.original(word["start"], part), "end": self.original(word["end"], part)})
        if words:
            return {**segment, "start": words[0]["start"], "end": words[-1]["end"], "words": words}
        first = self.part_of(segment["start"])
        last = max(first, self.part_of(segment["end"], is_end=True))
        return {**segment, "start": self.original(segment["start"], first), "end": self.original(segment["end"], last)}


def find_speech(samples: np.ndarray, options: VadOptions) -> Speech:
    """Find the speech in samples, float32 [n_samples] at 16 kHz."""
    return Speech(speech_parts(speech_probabilities(samples), len(samples), options))


def speech_parts(probabilities: Iterable[float], n_samples: int, options: VadOptions) -> list[Part]:
    """Find where speech begins and ends, as `faster_whisper.vad.get_speech_timestamps`.

    Args:
        probabilities: The probability of speech for each 512 samples.
        n_samples: The number of samples.
        options: The options.
    """
    threshold = float(options.threshold)
    low = max(threshold - 0.15, 0.01) if options.neg_threshold is None else float(options.neg_threshold)
    shortest, pause, pad = (
        float(ms) * SAMPLE_RATE / 1000
        for ms in (options.min_speech_duration_ms, options.min_silence_duration_ms, options.speech_pad_ms)
    )
    longest = float(options.max_speech_duration_s) * SAMPLE_RATE - WINDOW - 2 * pad
    parts = list[Part]()
    start: int | None = None  # the start of the current speech
    quiet: int | None = None  # the start of the silence that may end it
    gap: int | None = None  # the start of its last pause in which it may be cut
    resumed: int | None = None  # the end of that pause
    for at, probability in zip(count(0, WINDOW), probabilities):
        if probability >= threshold:
            if quiet is not None and gap is not None and resumed is None:
                resumed = at
            quiet = None
            if start is None:
                start = at
                continue
        if start is not None and at - start > longest:
            parts.append((start, at if gap is None else gap))
            start, quiet, gap, resumed, uncut = resumed, None, None, None, gap is None
            if uncut:
                continue
        if probability < low and start is not None:
            quiet = at if quiet is None else quiet
            if at - quiet > _CUT_PAUSE:
                gap, resumed = quiet, None
            if at - quiet >= pause:
                if quiet - start > shortest:
                    parts.append((start, quiet))
                start = quiet = gap = resumed = None
    if start is not None and n_samples - start > shortest:
        parts.append((start, n_samples))
    return _padded(parts, n_samples, pad)


def _padded(parts: Sequence[Part], n_samples: int, pad: float) -> list[Part]:
    """Extend parts by `pad` samples on both sides, but at most by half the pause between them."""
    if not parts:
        return []
    between = [min(pad, (start - end) / 2) for (_, end), (start, _) in pairwise(parts)]
    before = [min(pad, parts[0][0]), *between]
    after = [*between, min(pad, n_samples - parts[-1][1])]
    return [(int(start - earlier), int(end + later)) for (start, end), earlier, later in zip(parts, before, after)]


_CUT_PAUSE = 0.098 * SAMPLE_RATE  # samples; speech that is too long is cut in a longer pause
