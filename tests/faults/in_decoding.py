"""Mistakes in what is made of logits: rules, tokens, times, and the way through a recording."""

from typing import Any

import numpy as np

from maxwhisper.tokenizer import Tokenizer, get_encoding, get_tokenizer
from tests.faults.plant import Fault, instead


def skipped(right: Any) -> Any:
    """A rule that forbids nothing."""
    return lambda rule, logits, tokens: None


def english_tokenizer(right: Any) -> Any:
    """Special tokens numbered as in English-only models, one too low for the others."""

    def get(
        multilingual: bool, *, num_languages: int = 99, language: str | None = None, task: str | None = None
    ) -> Tokenizer:
        return Tokenizer(get_encoding("gpt2", num_languages), num_languages, language or "en", task or "transcribe")

    return get


def end_not_counted(right: Any) -> Any:
    """The probability that the text ends is left out of its likelihood."""

    def update(
        decoder: Any, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        before = sum_logprobs.copy()
        tokens, completed = right(decoder, tokens, logits, sum_logprobs)
        ended = tokens[:, -1] == decoder.eot
        sum_logprobs[ended] = before[ended]
        return tokens, completed

    return update


def whole_window(right: Any) -> Any:
    """Goes on 30 seconds later, whatever was cut off at the end."""

    def split(tokens: list[int], timestamp_begin: int, segment_size: int, n_audio_ctx: int) -> Any:
        return right(tokens, timestamp_begin, segment_size, n_audio_ctx)[0], segment_size

    return split


FAULTS = [
    Fault(
        "timestamp rules skipped",
        "decoding.step.0.allowed",
        "decoding by argmax alone, as most ports do",
        {"decoding.rules.ApplyTimestampRules.apply": skipped},
    ),
    Fault(
        "any first timestamp",
        "decoding.step.0.allowed",
        "max_initial_timestamp parsed and forgotten",
        {"decoding.task.CHUNK_LENGTH": instead(1)},
    ),
    Fault(
        "suppression list of the other vocabulary",
        "decoding.step.1.allowed",  # the first is a timestamp
        "ids copied from a multilingual model's generation_config.json",
        {"tokenizer.Tokenizer.non_speech_tokens": lambda right: property(lambda _: right.func(get_tokenizer(True)))},
    ),
    Fault(
        "multilingual token offsets wrong",
        "transcribe.window.0.prompt",
        "50257 for <|startoftranscript|>, which is so in English-only models",
        {
            "decoding.language.get_tokenizer": english_tokenizer,
            "decoding.task.get_tokenizer": english_tokenizer,
            "transcription.sequential.get_tokenizer": english_tokenizer,
        },
        model="base",
    ),
    Fault(
        "text before the window forgotten",
        "transcribe.window.1.prompt",
        "windows transcribed one by one",
        {"transcription.window.replace": lambda right: lambda options, prompt: right(options, prompt=[])},
    ),
    Fault(
        "on by a whole window always",
        "transcribe.window.1.log_mel",
        "windows cut beforehand",
        {"transcription.window.split_at_timestamps": whole_window},
    ),
    Fault(
        "timestamps taken for 10 ms",
        "transcribe.segments",
        "frames of the spectrogram taken for the encoder's",
        {"transcription.segments.CHUNK_LENGTH": lambda right: right // 2},
    ),
    Fault(
        "the end's probability not counted",
        "transcribe.segments",
        "a loop that stops before it adds",
        {"decoding.search.GreedyDecoder.update": end_not_counted},
    ),
]
