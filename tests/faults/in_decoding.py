"""Mistakes in decoding: token rules, tokens, times, and the order of windows."""

from typing import Any

import numpy as np

from maxwhisper.tokenizer import Tokenizer, get_encoding, get_tokenizer
from tests.faults.plant import Fault, instead


def rule_skipped(original: Any) -> Any:
    """Let a token rule forbid nothing."""
    return lambda rule, logits, tokens: None


def english_tokenizer(original: Any) -> Any:
    """Use the special tokens of English-only models, one too low for multilingual models."""

    def get(
        multilingual: bool, *, num_languages: int = 99, language: str | None = None, task: str | None = None
    ) -> Tokenizer:
        return Tokenizer(get_encoding("gpt2", num_languages), num_languages, language or "en", task or "transcribe")

    return get


def end_not_counted(original: Any) -> Any:
    """Leave the end token's probability out of the sum of log probabilities."""

    def update(
        decoder: Any, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        before = sum_logprobs.copy()
        tokens, completed = original(decoder, tokens, logits, sum_logprobs)
        ended = tokens[:, -1] == decoder.eot
        sum_logprobs[ended] = before[ended]
        return tokens, completed

    return update


def whole_window(original: Any) -> Any:
    """Advance by 30 seconds, even if a segment was cut off at the end."""

    def split(tokens: list[int], timestamp_begin: int, segment_size: int, n_audio_ctx: int) -> Any:
        return original(tokens, timestamp_begin, segment_size, n_audio_ctx)[0], segment_size

    return split


FAULTS = [
    Fault(
        "timestamp rules skipped",
        "decoding.step.0.allowed",
        "decoding by argmax alone, as most ports do",
        {"decoding.rules.ApplyTimestampRules.apply": rule_skipped},
    ),
    Fault(
        "any first timestamp",
        "decoding.step.0.allowed",
        "max_initial_timestamp parsed but never used",
        {"decoding.task.CHUNK_LENGTH": instead(1)},
    ),
    Fault(
        "suppression list of the other vocabulary",
        "decoding.step.1.allowed",  # step 0 chooses a timestamp
        "ids copied from a multilingual model's generation_config.json",
        {
            "tokenizer.Tokenizer.non_speech_tokens": lambda original: property(
                lambda _: original.func(get_tokenizer(True))
            )
        },
    ),
    Fault(
        "multilingual token offsets wrong",
        "transcribe.window.0.prompt",
        "50257 for <|startoftranscript|>, which is right only for English-only models",
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
        "windows transcribed independently",
        {"transcription.window.replace": lambda original: lambda options, prompt: original(options, prompt=[])},
    ),
    Fault(
        "on by a whole window always",
        "transcribe.window.1.log_mel",
        "a recording cut into windows in advance",
        {"transcription.window.split_at_timestamps": whole_window},
    ),
    Fault(
        "timestamps taken for 10 ms",
        "transcribe.segments",
        "spectrogram frames (10 ms) taken for encoder frames (20 ms)",
        {"transcription.segments.CHUNK_LENGTH": lambda original: original // 2},
    ),
    Fault(
        "the end's probability not counted",
        "transcribe.segments",
        "a loop that stops before it adds the last term",
        {"decoding.search.GreedyDecoder.update": end_not_counted},
    ),
]
