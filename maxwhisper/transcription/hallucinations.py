"""Detection of hallucinated text: anomalous words amid silence, as in OpenAI Whisper."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxwhisper.audio import FRAMES_PER_SECOND, N_FRAMES
from maxwhisper.transcript import Segment, Word
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS


@dataclass(frozen=True)
class WindowPosition:
    """The position of a window in a recording."""

    seek: int  # its first frame
    segment_size: int  # the number of its frames that hold audio
    content_frames: int  # the number of the recording's frames

    @property
    def start(self) -> float:
        """When the window begins, in seconds."""
        return self.seek / FRAMES_PER_SECOND

    @property
    def end(self) -> float:
        """When the window ends, in seconds, whether it is filled with audio or not."""
        return (self.seek + N_FRAMES) / FRAMES_PER_SECOND


def skip_hallucinations(
    segments: list[Segment], position: WindowPosition, seek: int, threshold: float, last_speech_timestamp: float
) -> tuple[list[Segment] | None, int]:
    """Leave out segments whose text may be hallucinated.

    Args:
        segments: The segments of a window, with words.
        position: The window's position.
        seek: The frame to continue at if all segments are kept.
        threshold: Text is doubted only next to silence longer than this, in seconds.
        last_speech_timestamp: When the last word before these segments ended, in seconds.

    Returns:
        The segments to keep, and the frame to continue at. None if the window begins with silence
        to skip first.
    """
    first = _next_with_words(segments)
    if first is not None and is_anomalous(first):
        gap = first["start"] - position.start
        if gap > threshold:
            return None, position.seek + round(gap * FRAMES_PER_SECOND)
    last_end = last_speech_timestamp
    for i, segment in enumerate(segments):
        if not segment["words"]:
            continue
        if is_anomalous(segment):
            following = _next_with_words(segments[i + 1 :])
            next_start = (
                following["words"][0]["start"]
                if following
                else (position.seek + position.segment_size) / FRAMES_PER_SECOND
            )
            start, end = segment["start"], segment["end"]
            silence_before = start - last_end > threshold or start < threshold or start - position.start < 2.0
            silence_after = next_start - end > threshold or position.end - end < 2.0
            if silence_before and (silence_after or (following is not None and is_anomalous(following))):
                seek = round(max(position.start + 1, segment["start"]) * FRAMES_PER_SECOND)
                if position.content_frames / FRAMES_PER_SECOND - segment["end"] < threshold:
                    seek = position.content_frames
                return segments[:i], seek
        last_end = segment["end"]
    return segments, seek


def is_anomalous(segment: Segment) -> bool:
    """Tell whether the first words of a segment suggest that it is hallucinated.

    Such words are improbable, very short or very long.
    """
    words = [word for word in segment["words"] if word["word"] not in PREPEND_PUNCTUATIONS + APPEND_PUNCTUATIONS][:8]
    score = sum(map(_anomaly_score, words))
    return bool(segment["words"]) and (score >= 3 or score + 0.01 >= len(words))


def _anomaly_score(word: Word) -> float:
    duration = word["end"] - word["start"]
    return (word["probability"] < 0.15) + 15 * max(0.0, 0.133 - duration) + max(0.0, duration - 2.0)


def _next_with_words(segments: Sequence[Segment]) -> Segment | None:
    return next((segment for segment in segments if segment["words"]), None)
