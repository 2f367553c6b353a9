"""Recordings of any length, window by window, by the rules of OpenAI Whisper's `transcribe.py`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from maxwhisper.audio import CHUNK_LENGTH, FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE, pad_or_trim
from maxwhisper.decoding import DecodingOptions, DecodingResult, DecodingTask, detect_language, likeliest
from maxwhisper.errors import OptionError
from maxwhisper.languages import LANGUAGES
from maxwhisper.model import AudioFeatures, Whisper
from maxwhisper.tokenizer import Tokenizer, get_tokenizer, language_code
from maxwhisper.utils import Transcript, format_timestamp

# Above this temperature, what was decoded is no good prompt for the next window.
_TRUSTED_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Thresholds:
    """When a window's text is taken as it is, and when there is none; see `transcribe`."""

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


def transcribe(
    model: Whisper,
    audio: str | os.PathLike[str] | np.ndarray,
    *,
    verbose: bool | None = None,
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    rng: np.random.Generator | None = None,
    **decode_options: Any,
) -> Transcript:
    """Transcribe a file, or float samples [n_samples] at 16 kHz, of any length; as `whisper.transcribe`.

    verbose: True prints segments as they come, False shows only a progress bar, None neither.
    temperature: tried in this order, until the text neither repeats itself more than `compression_ratio_threshold` allows nor is
    on average less likely than `logprob_threshold`. A window whose no-speech probability exceeds `no_speech_threshold`, and whose text
    is no likelier than `logprob_threshold`, is silence.
    condition_on_previous_text: prompt each window with what was said before; initial_prompt: what was said before the first.
    rng: where sampling draws from, the same sequence each time by default. The rest are the fields of `DecodingOptions`.

    Returns `text`, `language` and `segments`, each with `id`, `seek`, `start`, `end`, `text`, `tokens`, `temperature`,
    `avg_logprob`, `compression_ratio` and `no_speech_prob`; times are in seconds.

    Raises AudioError where the audio can't be used, OptionError for options that can't.
    """
    attempts = options_for_each(temperature, decode_options)
    thresholds = Thresholds(compression_ratio_threshold, logprob_threshold, no_speech_threshold)
    rng = rng or np.random.default_rng(0)
    mel = model.log_mel_spectrogram(audio, padding=N_SAMPLES)  # padded, so that the last window is whole
    content_frames = mel.shape[-1] - N_FRAMES

    language = language_of(model, mel, attempts[0].language, verbose)
    tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=attempts[0].task)

    def decode_with_fallback(window: AudioFeatures, prompt: list[int]) -> DecodingResult:
        for options in attempts:
            (result,) = DecodingTask(model, replace(options, prompt=prompt, language=language), rng).run(window)
            if thresholds.accept(result):
                break
        return result

    prompt_tokens = tokenizer.encode(" " + initial_prompt.strip()) if initial_prompt is not None else []
    all_tokens = list(prompt_tokens)
    all_segments: list[dict[str, Any]] = []
    prompt_begin = 0
    seek = 0
    with tqdm(total=content_frames, unit="frames", disable=None if verbose is not None else True) as progress:
        while seek < content_frames:
            segment_size = min(N_FRAMES, content_frames - seek)
            window = pad_or_trim(mel[:, seek : seek + segment_size], N_FRAMES)
            result = decode_with_fallback(model.embed_audio(window), all_tokens[prompt_begin:])
            progress.update(segment_size)

            if thresholds.call_silent(result):
                seek += segment_size
                continue

            spans, advance = split_at_timestamps(result.tokens, tokenizer.timestamp_begin, segment_size, model.dims.n_audio_ctx)
            segments = segments_of(tokenizer, seek, spans, result)
            if verbose:
                for segment in segments:
                    progress.write(segment_line(segment))
            for segment in segments:
                if segment["start"] == segment["end"] or not segment["text"].strip():
                    segment.update(text="", tokens=[], words=[])
            all_segments += [{"id": i, **segment} for i, segment in enumerate(segments, start=len(all_segments))]
            all_tokens += [token for segment in segments for token in segment["tokens"]]
            if not condition_on_previous_text or result.temperature > _TRUSTED_TEMPERATURE:
                prompt_begin = len(all_tokens)
            progress.update(advance - segment_size)
            seek += advance

    return {"text": tokenizer.decode(all_tokens[len(prompt_tokens) :]), "segments": all_segments, "language": language}


def options_for_each(temperature: float | Sequence[float], decode_options: dict[str, Any]) -> list[DecodingOptions]:
    """The options of each attempt at a window, one for each temperature.

    Raises OptionError where there is no temperature, or options can't be used.
    """
    temperatures = np.atleast_1d(np.asarray(temperature, float)).tolist()
    if not temperatures:
        raise OptionError("no temperature is given to decode at; give one or several")
    searched = {**decode_options, "best_of": None}  # where nothing is sampled, there is nothing to choose from
    sampled = {**decode_options, "beam_size": None, "patience": None}
    return [DecodingOptions(**(searched if t == 0 else sampled), temperature=t) for t in temperatures]


Span = tuple[float, float, list[int]]  # start and end in seconds from the window's start, and the tokens between


def split_at_timestamps(tokens: list[int], timestamp_begin: int, segment_size: int, n_audio_ctx: int) -> tuple[list[Span], int]:
    """Cut a window's tokens into segments where two timestamps meet, and say by how many frames to move on.

    segment_size: how many frames of the window hold audio. After a pair of timestamps, transcription goes on from the last of them, for
    what follows may be cut short; it moves on by the whole window where there is no pair, or nothing was said after the last timestamp.
    """
    seconds = CHUNK_LENGTH / n_audio_ctx
    is_timestamp = [token >= timestamp_begin for token in tokens]
    ends_alone = is_timestamp[-2:] == [False, True]
    cuts = [i for i in range(1, len(tokens)) if is_timestamp[i - 1] and is_timestamp[i]]

    if not cuts:
        timestamps = [token for token, is_one in zip(tokens, is_timestamp) if is_one]
        duration = segment_size / FRAMES_PER_SECOND
        if timestamps and timestamps[-1] != timestamp_begin:
            duration = (timestamps[-1] - timestamp_begin) * seconds
        return [(0.0, duration, tokens)], segment_size

    if ends_alone:
        cuts.append(len(tokens))
    spans = []
    for begin, end in zip([0, *cuts], cuts):
        piece = tokens[begin:end]
        spans.append(((piece[0] - timestamp_begin) * seconds, (piece[-1] - timestamp_begin) * seconds, piece))
    if ends_alone:
        return spans, segment_size
    return spans, (tokens[cuts[-1] - 1] - timestamp_begin) * (N_FRAMES // n_audio_ctx)


def segments_of(tokenizer: Tokenizer, seek: int, spans: Sequence[Span], result: DecodingResult) -> list[dict[str, Any]]:
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


def segment_line(segment: dict[str, Any]) -> str:
    """A segment as it is printed."""
    start, end = format_timestamp(segment["start"]), format_timestamp(segment["end"])
    return f"[{start} --> {end}] {segment['text']}"


def language_of(model: Whisper, mel: np.ndarray, asked: str | None, verbose: bool | None = None) -> str:
    """The language that is asked for, or else detected in the first window of a log-mel spectrogram.

    Raises OptionError where the model does not know it.
    """
    if not model.is_multilingual:
        if asked is not None and language_code(asked) != "en":
            raise OptionError(f"this model knows only English, not {asked!r}; use a multilingual one, such as base")
        return asked or "en"
    if asked is not None:
        language_code(asked)
        return asked
    _, probs = detect_language(model, pad_or_trim(mel, N_FRAMES))
    language = likeliest(probs)
    if verbose is not None:
        tqdm.write(f"Detected language: {LANGUAGES[language].title()}")
    return language
