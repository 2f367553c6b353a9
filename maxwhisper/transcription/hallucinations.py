"""Text that was not said: found by words that are improbable, or far too long or short, amid silence; by the rules of OpenAI Whisper."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxwhisper.audio import FRAMES_PER_SECOND, N_FRAMES
from maxwhisper.transcript import Segment, Word
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS


@dataclass(frozen=True)
class Place:
    """Where in a recording a window lies: its first frame, how many hold audio, and how many the recording has."""

    seek: int
    segment_size: int
    content_frames: int

    @property
    def start(self) -> float:
        return self.seek / FRAMES_PER_SECOND

    @property
    def end(self) -> float:
        """Of the whole window, audio or not."""
        return (self.seek + N_FRAMES) / FRAMES_PER_SECOND


def skip_hallucinations(
    segments: list[Segment], place: Place, seek: int, threshold: float, last_speech_timestamp: float
) -> tuple[list[Segment] | None, int]:
    """The segments with words that may be believed, and the frame to go on from; None where there is a silence to be skipped first.

    seek: where to go on by timestamps; threshold: the longest silence, in seconds, that is no reason for doubt; last_speech_timestamp: when
    the last word before these segments ended.
    """
    first = _next_with_words(segments)
    if first is not None and is_anomalous(first):
        gap = first["start"] - place.start
        if gap > threshold:
            return None, place.seek + round(gap * FRAMES_PER_SECOND)
    last_end = last_speech_timestamp
    for i, segment in enumerate(segments):
        if not segment["words"]:
            continue
        if is_anomalous(segment):
            following = _next_with_words(segments[i + 1 :])
            next_start = following["words"][0]["start"] if following else (place.seek + place.segment_size) / FRAMES_PER_SECOND
            silence_before = segment["start"] - last_end > threshold or segment["start"] < threshold or segment["start"] - place.start < 2.0
            silence_behind = next_start - segment["end"] > threshold or place.end - segment["end"] < 2.0
            if silence_before and (silence_behind or (following is not None and is_anomalous(following))):
                seek = round(max(place.start + 1, segment["start"]) * FRAMES_PER_SECOND)
                if place.content_frames / FRAMES_PER_SECOND - segment["end"] < threshold:
                    seek = place.content_frames
                return segments[:i], seek
        last_end = segment["end"]
    return segments, seek


def is_anomalous(segment: Segment) -> bool:
    """Whether the first words of a segment are so strange that it may not have been said."""
    words = [word for word in segment["words"] if word["word"] not in PREPEND_PUNCTUATIONS + APPEND_PUNCTUATIONS][:8]
    score = sum(map(_strangeness, words))
    return bool(segment["words"]) and (score >= 3 or score + 0.01 >= len(words))


def _strangeness(word: Word) -> float:
    duration = word["end"] - word["start"]
    return (word["probability"] < 0.15) + 15 * max(0.0, 0.133 - duration) + max(0.0, duration - 2.0)


def _next_with_words(segments: Sequence[Segment]) -> Segment | None:
    return next((segment for segment in segments if segment["words"]), None)
