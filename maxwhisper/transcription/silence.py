"""Which parts of a recording hold speech, by Silero's voice activity detector, with parameters and defaults of faster-whisper 1.2.1."""

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
    """What counts as speech; names, order, meaning and defaults as faster-whisper's. Raises OptionError for values that can't be used."""

    threshold: float = 0.5  # speech begins where it is at least as likely as this
    neg_threshold: float | None = None  # and ends where it is less likely than this, 0.15 below by default
    min_speech_duration_ms: float = 0  # shorter speech is dropped
    max_speech_duration_s: float = np.inf  # longer speech is cut, in its last pause of more than 98 ms if it has one
    min_silence_duration_ms: float = 2000  # shorter pauses stay
    speech_pad_ms: float = 400  # is kept around speech

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            highest, allowed = _ALLOWED[name]
            if not 0 <= _number(value) <= highest and not (value is None and name == "neg_threshold"):
                raise OptionError(f"{name} {value!r} is not {allowed}")

    @classmethod
    def of(cls, parameters: object) -> "VadOptions":
        """Options of a mapping, or of an object with such fields, faster-whisper's own for example; of None the defaults.

        Raises OptionError for names and values that can't be used.
        """
        known = [field.name for field in fields(cls)]
        values = parameters if isinstance(parameters, Mapping) else _fields_of(parameters, known)
        for name in values:
            if name not in known:
                raise OptionError(f"vad_parameters has no {name!r}, only {', '.join(known)}")
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
    """As a float; NaN for what is no number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsFloat):
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _fields_of(parameters: object, known: Sequence[str]) -> dict[str, Any]:
    """What an object has of the known fields, and what else it declares."""
    if parameters is None:
        return {}
    declared = (name for kind in ("_fields", "__slots__", "__dict__") for name in getattr(parameters, kind, ()))
    names = dict.fromkeys(
        name for name in (*known, *declared) if not name.startswith("_") and hasattr(parameters, name)
    )
    if isinstance(parameters, type) or not names:
        raise OptionError(
            f"vad_parameters {parameters!r} is neither a mapping nor an object with any of {', '.join(known)}"
        )
    return {name: getattr(parameters, name) for name in names}


Part = tuple[int, int]  # the first sample, and the one behind the last


@dataclass(frozen=True)
class Speech:
    """The parts of a recording that are kept, in order; joined, they are what is transcribed."""

    parts: Sequence[Part]

    def within(self, clips: Sequence[Part]) -> "Speech":
        """What of it lies in these parts of the recording."""
        return Speech([(max(a, c), min(b, d)) for c, d in clips for a, b in self.parts if max(a, c) < min(b, d)])

    def joined(self, samples: np.ndarray) -> np.ndarray:
        """What lies in the parts, float32 [n]."""
        return np.concatenate([np.empty(0, np.float32), *(samples[start:end] for start, end in self.parts)])

    def part_of(self, seconds: float, is_end: bool = False) -> int:
        """In which part a time of the joined samples lies. Where two meet it is the earlier one's end, or the later one's start."""
        ends = np.cumsum([end - start for start, end in self.parts])
        found = np.searchsorted(ends, round(seconds * SAMPLE_RATE), side="left" if is_end else "right")
        return min(int(found), len(self.parts) - 1)

    def original(self, seconds: float, part: int) -> float:
        """When in the recording that was, in seconds, by the part it lies in; what reaches beyond that is cut there."""
        before = sum(end - start for start, end in self.parts[:part])
        start, end = self.parts[part]
        return round(min(max(seconds + (start - before) / SAMPLE_RATE, start / SAMPLE_RATE), end / SAMPLE_RATE), 2)

    def restore(self, segment: Segment) -> Segment:
        """A segment of the joined samples at the times of the recording."""
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
    """The parts of float32 samples [n_samples] at 16 kHz that hold speech."""
    return Speech(speech_parts(speech_probabilities(samples), len(samples), options))


def speech_parts(probabilities: Iterable[float], n_samples: int, options: VadOptions) -> list[Part]:
    """Where speech begins and ends, by the likelihood of each 512 samples; as `faster_whisper.vad.get_speech_timestamps`."""
    threshold = float(options.threshold)
    low = max(threshold - 0.15, 0.01) if options.neg_threshold is None else float(options.neg_threshold)
    shortest, pause, pad = (
        float(ms) * SAMPLE_RATE / 1000
        for ms in (options.min_speech_duration_ms, options.min_silence_duration_ms, options.speech_pad_ms)
    )
    longest = float(options.max_speech_duration_s) * SAMPLE_RATE - WINDOW - 2 * pad
    found = list[Part]()
    start: int | None = None  # of the speech that is under way
    quiet: int | None = None  # since when it is, perhaps, over
    gap: int | None = None  # where its last pause begins that it may be cut in
    resumed: int | None = None  # and where that ends
    for at, probability in zip(count(0, WINDOW), probabilities):
        if probability >= threshold:
            if quiet is not None and gap is not None and resumed is None:
                resumed = at
            quiet = None
            if start is None:
                start = at
                continue
        if start is not None and at - start > longest:
            found.append((start, at if gap is None else gap))
            start, quiet, gap, resumed, uncut = resumed, None, None, None, gap is None
            if uncut:
                continue
        if probability < low and start is not None:
            quiet = at if quiet is None else quiet
            if at - quiet > _CUT_PAUSE:
                gap, resumed = quiet, None
            if at - quiet >= pause:
                if quiet - start > shortest:
                    found.append((start, quiet))
                start = quiet = gap = resumed = None
    if start is not None and n_samples - start > shortest:
        found.append((start, n_samples))
    return _padded(found, n_samples, pad)


def _padded(parts: Sequence[Part], n_samples: int, pad: float) -> list[Part]:
    """Parts with so many samples around them, or half the pause where that is short."""
    if not parts:
        return []
    between = [min(pad, (start - end) / 2) for (_, end), (start, _) in pairwise(parts)]
    before = [min(pad, parts[0][0]), *between]
    behind = [*between, min(pad, n_samples - parts[-1][1])]
    return [(int(start - earlier), int(end + later)) for (start, end), earlier, later in zip(parts, before, behind)]


_CUT_PAUSE = 0.098 * SAMPLE_RATE  # samples; speech that is too long is cut in pauses longer than this
