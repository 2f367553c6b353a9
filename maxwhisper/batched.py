"""Many windows at once, of one recording or of many: not OpenAI Whisper's algorithm.

OpenAI's goes through a recording window by window, for where one ends says where the next begins, and what was said in one is the prompt
of the next. Here recordings are cut beforehand, where they are quietest, into pieces that know nothing of each other, and many pieces are
decoded at once, so that weights are read once for all. A sentence that is cut in two may read otherwise.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np

from maxwhisper.audio import N_FRAMES, N_SAMPLES, pad_or_trim
from maxwhisper.decoding import DecodingOptions, DecodingResult, DecodingTask
from maxwhisper.errors import AudioError, OptionError
from maxwhisper.model import Whisper
from maxwhisper.tokenizer import Tokenizer, get_tokenizer
from maxwhisper.transcribe import Thresholds, language_of, options_for_each, segments_of, split_at_timestamps
from maxwhisper.utils import Transcript

EARLIEST_CUT = N_FRAMES * 13 // 15  # late, for a piece costs the encoder as much as a whole window
PAUSE = 30  # frames, as long as a pause between words


@dataclass(frozen=True)
class Piece:
    """Some frames of a recording, log-mel [n_mels, n_frames], of at most 30 s."""

    recording: int
    seek: int
    mel: np.ndarray
    language: str

    def after(self, n_frames: int) -> "Piece":
        """What is left behind so many frames."""
        return replace(self, seek=self.seek + n_frames, mel=self.mel[:, n_frames:])


@dataclass
class Recording:
    """A recording under way: how many pieces are still to be decoded, and what was found in the others."""

    language: str
    n_left: int
    segments: list[dict[str, Any]] = field(default_factory=list)


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

    Arguments and results are those of `transcribe`, but that every piece has the same prompt, `initial_prompt`. Where a recording can't be
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
    under_way: dict[int, Recording | AudioError] = {}  # those that are begun and not yielded yet, in order

    def pieces() -> Iterator[Piece]:
        for i, recording in enumerate(recordings):
            try:
                mel = model.log_mel_spectrogram(recording, padding=N_SAMPLES)
            except AudioError as error:
                under_way[i] = error
                continue
            language = language_of(model, mel, attempts[0].language)
            cuts = cut(mel[:, :-N_FRAMES])
            under_way[i] = Recording(language, len(cuts) - 1)
            yield from (Piece(i, seek, mel[:, seek:end], language) for seek, end in pairwise(cuts))

    def finished() -> Iterator[Transcript | AudioError]:
        for i, recording in list(under_way.items()):
            if isinstance(recording, Recording) and recording.n_left:
                return
            del under_way[i]
            yield recording if isinstance(recording, AudioError) else _transcript(recording, tokenizer_for(recording.language))

    def tokenizer_for(language: str) -> Tokenizer:
        return get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=attempts[0].task)

    new, rests = pieces(), list[Piece]()
    while batch := [*rests, *islice(new, max(0, batch_size - len(rests)))]:
        batch, rests = batch[:batch_size], batch[batch_size:]
        for piece, result in zip(batch, _decode(model, batch, attempts, thresholds, rng)):
            recording = under_way[piece.recording]
            assert isinstance(recording, Recording)
            n_frames = advance = piece.mel.shape[1]
            if not thresholds.call_silent(result):
                tokenizer = tokenizer_for(piece.language)
                spans, advance = split_at_timestamps(result.tokens, tokenizer.timestamp_begin, n_frames, model.dims.n_audio_ctx)
                recording.segments += segments_of(tokenizer, piece.seek, spans, result)
            if 0 < advance < n_frames:
                rests.append(piece.after(advance))
            else:
                recording.n_left -= 1
        yield from finished()
    yield from finished()


def cut(mel: np.ndarray) -> list[int]:
    """The frames where windows of a log-mel spectrogram [n_mels, n_frames] begin, and its end: at most 30 s apart, and in the middle
    of the quietest 0.3 s of what a cut may be in, the last 4 s of a window.
    """
    loudness, n_frames = mel.mean(axis=0), mel.shape[1]
    cuts = [0]
    while n_frames - cuts[-1] > N_FRAMES:
        earliest = cuts[-1] + EARLIEST_CUT
        around = np.convolve(loudness[earliest : cuts[-1] + N_FRAMES], np.ones(PAUSE), mode="valid")
        cuts.append(earliest + int(np.argmin(around)) + PAUSE // 2)
    return [*cuts, n_frames]


def _decode(
    model: Whisper, batch: Sequence[Piece], attempts: Sequence[DecodingOptions], thresholds: Thresholds, rng: np.random.Generator
) -> list[DecodingResult]:
    """Decode pieces together; those whose text is no good again, at the next temperature."""
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


def _transcript(recording: Recording, tokenizer: Tokenizer) -> Transcript:
    said = (segment for segment in recording.segments if segment["text"].strip() and segment["start"] < segment["end"])
    segments = [{"id": i, **segment} for i, segment in enumerate(sorted(said, key=lambda segment: segment["start"]))]
    text = tokenizer.decode([token for segment in segments for token in segment["tokens"]])
    return {"text": text, "segments": segments, "language": recording.language}
