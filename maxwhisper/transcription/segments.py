"""From a window's tokens to the segments of a transcript, by the rules of OpenAI Whisper's `transcribe.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxwhisper.audio import CHUNK_LENGTH, FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from maxwhisper.decoding import DecodingResult
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcript import Segment

Span = tuple[float, float, list[int]]  # start and end in seconds from the window's start, and the tokens between


@dataclass(frozen=True)
class Thresholds:
    """When a window's text is taken as it is, and when there is none; see `maxwhisper.iter_segments`."""

    compression_ratio: float | None
    logprob: float | None
    no_speech: float | None

    def accept(self, result: DecodingResult) -> bool:
        """Whether it need not be decoded again."""
        unlikely = self.logprob is not None and result.avg_logprob < self.logprob
        repetitive = self.compression_ratio is not None and result.compression_ratio > self.compression_ratio
        silent = self.no_speech is not None and result.no_speech_prob > self.no_speech
        return (unlikely and silent) or not (unlikely or repetitive)

    def call_silent(self, result: DecodingResult) -> bool:
        """Whether nothing was said."""
        silent = self.no_speech is not None and result.no_speech_prob > self.no_speech
        return silent and (self.logprob is None or result.avg_logprob <= self.logprob)


def split_at_timestamps(tokens: list[int], timestamp_begin: int, segment_size: int, n_audio_ctx: int) -> tuple[list[Span], int]:
    """Cut a window's tokens into segments where two timestamps meet, and say by how many frames to move on.

    segment_size: how many frames of the window hold audio. After a pair of timestamps, transcription goes on from the last of them, for
    what follows may be cut short; it moves on by the whole window where there is no pair, or nothing was said after the last timestamp.
    """
    seconds = CHUNK_LENGTH / n_audio_ctx
    is_timestamp = [token >= timestamp_begin for token in tokens]
    nothing_follows = ends_alone(tokens, timestamp_begin)
    cuts = [i for i in range(1, len(tokens)) if is_timestamp[i - 1] and is_timestamp[i]]

    if not cuts:
        timestamps = [token for token, is_one in zip(tokens, is_timestamp) if is_one]
        duration = segment_size / FRAMES_PER_SECOND
        if timestamps and timestamps[-1] != timestamp_begin:
            duration = (timestamps[-1] - timestamp_begin) * seconds
        return [(0.0, duration, tokens)], segment_size

    if nothing_follows:
        cuts.append(len(tokens))
    spans = []
    for begin, end in zip([0, *cuts], cuts):
        piece = tokens[begin:end]
        spans.append(((piece[0] - timestamp_begin) * seconds, (piece[-1] - timestamp_begin) * seconds, piece))
    if nothing_follows:
        return spans, segment_size
    return spans, (tokens[cuts[-1] - 1] - timestamp_begin) * (N_FRAMES // n_audio_ctx)


def ends_alone(tokens: list[int], timestamp_begin: int) -> bool:
    """Whether the last token is a timestamp, and the one before is none: nothing was said after it."""
    return [token >= timestamp_begin for token in tokens[-2:]] == [False, True]


def segments_of(tokenizer: Tokenizer, seek: int, spans: Sequence[Span], result: DecodingResult) -> list[Segment]:
    """The segments of a window that begins at frame `seek`, as they stand in a transcript but for their `id`."""
    offset = seek * HOP_LENGTH / SAMPLE_RATE
    return [
        {
            "seek": seek,
            "start": offset + start,
            "end": offset + end,
            "text": tokenizer.decode([token for token in tokens if token < tokenizer.eot]),
            "tokens": tokens,
            "temperature": result.temperature,
            "avg_logprob": result.avg_logprob,
            "compression_ratio": result.compression_ratio,
            "no_speech_prob": result.no_speech_prob,
        }
        for start, end, tokens in spans
    ]
