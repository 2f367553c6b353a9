"""The rules for a window, shared by both transcribers, as in OpenAI Whisper's `transcribe.py`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maxwhisper.decoding import DecodingResult, DecodingTask
from maxwhisper.engine.decoder import AudioFeatures
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcript import Segment
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.segments import segments_of, split_at_timestamps
from maxwhisper.transcription.trace import Trace


def decode_with_fallback(
    model: SpeechModel,
    mel: np.ndarray,
    audio: AudioFeatures,
    languages: Sequence[str],
    prompt: str | list[int] | None,
    options: TranscriptionOptions,
    rng: np.random.Generator,
    trace: Trace | None = None,
) -> list[DecodingResult]:
    """Decode windows together, and again those whose text is not acceptable.

    Args:
        model: The model.
        mel: Log-mel windows, float32 [n_audio, n_mels, 3000].
        audio: Their audio features.
        languages: The language of each window.
        prompt: Text or tokens before the windows.
        options: The options, with a temperature for each attempt.
        rng: The source of random draws.
        trace: Receives each attempt at each window.

    Returns:
        The last result of each window.
    """
    results = dict[int, DecodingResult]()
    todo = list(range(len(mel)))
    for attempt in options.fallback_options:
        features = audio if len(todo) == len(mel) else model.embed_audio(mel[todo])
        task = DecodingTask(
            model, replace(attempt, prompt=prompt), rng, trace=trace.decoding if trace is not None else None
        )
        results |= zip(todo, task.run(features, [languages[i] for i in todo]))
        if trace is not None:
            for i in todo:
                trace.window(mel[i], task.prompts([languages[i]])[0].tolist(), results[i])
        todo = [i for i in todo if not is_acceptable(results[i], options)]
        if not todo:
            break
    return [results[i] for i in range(len(mel))]


def segments_from_result(
    result: DecodingResult,
    seek: int,
    n_frames: int,
    tokenizer: Tokenizer,
    n_audio_ctx: int,
    options: TranscriptionOptions,
) -> tuple[list[Segment], int]:
    """Make the segments of a window from its decoding result.

    Args:
        result: The decoding result.
        seek: The window's first frame in the recording.
        n_frames: The number of its frames that hold audio.
        tokenizer: The tokenizer of the window's language.
        n_audio_ctx: The number of audio positions of the model.
        options: The options, with the thresholds for silence.

    Returns:
        The segments, none if the window is silent, and the number of frames to move on.
    """
    if is_silent(result, options):
        return [], n_frames
    spans, advance = split_at_timestamps(result.tokens, tokenizer.timestamp_begin, n_frames, n_audio_ctx)
    return segments_of(tokenizer, seek, spans, result), advance


def is_acceptable(result: DecodingResult, options: TranscriptionOptions) -> bool:
    """Tell whether a window need not be decoded again.

    Its text is probable and not repetitive, or the window is silent.
    """
    logprob, ratio = options.logprob_threshold, options.compression_ratio_threshold
    improbable = logprob is not None and result.avg_logprob < logprob
    repetitive = ratio is not None and result.compression_ratio > ratio
    return (improbable and _is_no_speech(result, options)) or not (improbable or repetitive)


def is_silent(result: DecodingResult, options: TranscriptionOptions) -> bool:
    """Tell whether a window holds no speech: that is probable, and its text is not."""
    logprob = options.logprob_threshold
    return _is_no_speech(result, options) and (logprob is None or result.avg_logprob <= logprob)


def _is_no_speech(result: DecodingResult, options: TranscriptionOptions) -> bool:
    return options.no_speech_threshold is not None and result.no_speech_prob > options.no_speech_threshold
