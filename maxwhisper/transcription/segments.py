"""From a window's tokens to segments, by the rules of OpenAI Whisper's `transcribe.py`."""

from collections.abc import Sequence

from maxwhisper.audio import CHUNK_LENGTH, FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from maxwhisper.decoding import DecodingResult
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcript import Segment

Span = tuple[float, float, list[int]]  # start and end in seconds from the window's start, and the tokens


def split_at_timestamps(
    tokens: list[int], timestamp_begin: int, segment_size: int, n_audio_ctx: int
) -> tuple[list[Span], int]:
    """Split a window's tokens into segments where two timestamps meet.

    Args:
        tokens: The window's sampled tokens.
        timestamp_begin: The token of the timestamp 0.00.
        segment_size: The number of the window's frames that hold audio.
        n_audio_ctx: The number of audio positions of the model.

    Returns:
        The segments, and the number of frames to move on: to the last pair of timestamps, since the
        text after it may be cut off; by the whole window if there is no pair, or if the tokens end
        with a single timestamp.
    """
    seconds = CHUNK_LENGTH / n_audio_ctx
    is_timestamp = [token >= timestamp_begin for token in tokens]
    single_ending = single_timestamp_ending(tokens, timestamp_begin)
    cuts = [i for i in range(1, len(tokens)) if is_timestamp[i - 1] and is_timestamp[i]]

    if not cuts:
        timestamps = [token for token, is_one in zip(tokens, is_timestamp) if is_one]
        duration = segment_size / FRAMES_PER_SECOND
        if timestamps and timestamps[-1] != timestamp_begin:
            duration = (timestamps[-1] - timestamp_begin) * seconds
        return [(0.0, duration, tokens)], segment_size

    if single_ending:
        cuts.append(len(tokens))
    spans = []
    for begin, end in zip([0, *cuts], cuts):
        piece = tokens[begin:end]
        spans.append(((piece[0] - timestamp_begin) * seconds, (piece[-1] - timestamp_begin) * seconds, piece))
    if single_ending:
        return spans, segment_size
    return spans, (tokens[cuts[-1] - 1] - timestamp_begin) * (N_FRAMES // n_audio_ctx)


def single_timestamp_ending(tokens: list[int], timestamp_begin: int) -> bool:
    """Tell whether only the last of the two last tokens is a timestamp."""
    return [token >= timestamp_begin for token in tokens[-2:]] == [False, True]


def segments_of(tokenizer: Tokenizer, seek: int, spans: Sequence[Span], result: DecodingResult) -> list[Segment]:
    """Return the segments of a window that begins at frame `seek`, without `id`."""
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
