"""Many windows at once, of one recording or of many: not OpenAI Whisper's algorithm, but several times its throughput.

OpenAI's goes through a recording window by window, for where one ends says where the next begins, and what was said in one is the prompt
of the next. Here recordings are cut beforehand, where they are quietest, into windows that know nothing of each other. So a decoder reads
its weights once for many windows; a sentence that is cut in two may read otherwise.
"""

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from maxwhisper.audio import FRAMES_PER_SECOND, N_FRAMES, N_SAMPLES, log_mel_spectrogram, pad_or_trim
from maxwhisper.decoding import DecodingOptions, DecodingResult, DecodingTask
from maxwhisper.errors import AudioError, OptionError
from maxwhisper.model import Whisper
from maxwhisper.tokenizer import Tokenizer, get_tokenizer
from maxwhisper.transcribe import Span, Thresholds, language_of, options_for_each, segments_of, split_at_timestamps
from maxwhisper.utils import Transcript

EARLIEST_CUT = N_FRAMES * 2 // 3
PAUSE = 30  # frames, as long as a pause between words


@dataclass(frozen=True)
class Window:
    """Some frames of a recording, log-mel [n_mels, n_frames]."""

    recording: int
    seek: int
    mel: np.ndarray
    language: str


def transcribe_batched(
    model: Whisper,
    recordings: Iterable[str | os.PathLike[str] | np.ndarray],
    batch_size: int = 8,
    *,
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    initial_prompt: str | None = None,
    rng: np.random.Generator | None = None,
    **decode_options: Any,
) -> Iterator[Transcript | AudioError]:
    """Transcribe files, or float samples [n_samples] at 16 kHz, `batch_size` windows at a time, and yield results in their order.

    Arguments and results are those of `transcribe`, but that every window has the same prompt, `initial_prompt`. Where a recording can't be
    used there is an AudioError in place of its transcript; the others are done.

    Raises OptionError for options that can't be used.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size {batch_size} is less than 1")
    attempts = options_for_each(temperature, {**decode_options, "prompt": initial_prompt})
    thresholds = Thresholds(compression_ratio_threshold, logprob_threshold, no_speech_threshold)
    return _transcribe(model, recordings, batch_size, attempts, thresholds, rng or np.random.default_rng(0))


def _transcribe(
    model: Whisper,
    recordings: Iterable[str | os.PathLike[str] | np.ndarray],
    batch_size: int,
    attempts: Sequence[DecodingOptions],
    thresholds: Thresholds,
    rng: np.random.Generator,
) -> Iterator[Transcript | AudioError]:
    begun: deque[tuple[int, str] | AudioError] = deque()  # each recording's number of windows and language, while it is not yielded
    decoded: defaultdict[int, list[tuple[Window, DecodingResult]]] = defaultdict(list)
    n_yielded = 0

    def windows() -> Iterator[Window]:
        for i, recording in enumerate(recordings):
            try:
                mel = log_mel_spectrogram(recording, model.dims.n_mels, padding=N_SAMPLES)
            except AudioError as error:
                begun.append(error)
                continue
            language = language_of(model, mel, attempts[0].language)
            cuts = cut(mel[:, :-N_FRAMES])
            begun.append((len(cuts) - 1, language))
            yield from (Window(i, seek, mel[:, seek:end], language) for seek, end in pairwise(cuts))

    def finished() -> Iterator[Transcript | AudioError]:
        nonlocal n_yielded
        while begun and (isinstance(begun[0], AudioError) or len(decoded[n_yielded]) == begun[0][0]):
            first = begun.popleft()
            yield (
                first
                if isinstance(first, AudioError)
                else _transcript(model, decoded.pop(n_yielded, []), first[1], attempts[0].task, thresholds)
            )
            n_yielded += 1

    waiting = windows()
    while batch := list(islice(waiting, batch_size)):
        for window, result in zip(batch, _decode(model, batch, attempts, thresholds, rng)):
            decoded[window.recording].append((window, result))
        yield from finished()
    yield from finished()


def cut(mel: np.ndarray) -> list[int]:
    """The frames where windows of a log-mel spectrogram [n_mels, n_frames] begin, and its end: at most 30 s apart, and in the middle
    of the quietest 0.3 s of what a cut may be in, the last 10 s of a window.
    """
    loudness, n_frames = mel.mean(axis=0), mel.shape[1]
    cuts = [0]
    while n_frames - cuts[-1] > N_FRAMES:
        earliest = cuts[-1] + EARLIEST_CUT
        around = np.convolve(loudness[earliest : cuts[-1] + N_FRAMES], np.ones(PAUSE), mode="valid")
        cuts.append(earliest + int(np.argmin(around)) + PAUSE // 2)
    return [*cuts, n_frames]


def _decode(
    model: Whisper, batch: Sequence[Window], attempts: Sequence[DecodingOptions], thresholds: Thresholds, rng: np.random.Generator
) -> list[DecodingResult]:
    """Decode windows together; those whose text is no good again, at the next temperature."""
    results: dict[int, DecodingResult] = {}
    todo = list(range(len(batch)))
    for options in attempts:
        features = model.embed_audio(np.stack([pad_or_trim(batch[i].mel, N_FRAMES) for i in todo]))
        again = DecodingTask(model, options, rng).run(features, [batch[i].language for i in todo])
        results |= dict(zip(todo, again))
        todo = [i for i in todo if not thresholds.accept(results[i])]
        if not todo:
            break
    return [results[i] for i in range(len(batch))]


def _transcript(
    model: Whisper, decoded: Sequence[tuple[Window, DecodingResult]], language: str, task: str, thresholds: Thresholds
) -> Transcript:
    tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=task)
    segments: list[dict[str, Any]] = []
    for window, result in decoded:
        if not thresholds.call_silent(result):
            spans = spans_of_all(result.tokens, tokenizer, window.mel.shape[1], model.dims.n_audio_ctx)
            found = segments_of(tokenizer, window.seek, spans, result)
            segments += [segment for segment in found if segment["text"].strip() and segment["start"] < segment["end"]]
    tokens = [token for segment in segments for token in segment["tokens"]]
    return {
        "text": tokenizer.decode(tokens),
        "segments": [{"id": i, **segment} for i, segment in enumerate(segments)],
        "language": language,
    }


def spans_of_all(tokens: list[int], tokenizer: Tokenizer, n_frames: int, n_audio_ctx: int) -> list[Span]:
    """A window's segments, as `split_at_timestamps` cuts them, and what follows the last pair of timestamps: no later window has that."""
    spans, _ = split_at_timestamps(tokens, tokenizer.timestamp_begin, n_frames, n_audio_ctx)
    rest = tokens[sum(len(span[2]) for span in spans) :]
    if any(token < tokenizer.eot for token in rest):
        spans.append((spans[-1][1], n_frames / FRAMES_PER_SECOND, rest))
    return spans
