"""Comparisons of decoding results, and their tolerance."""

import pytest
import whisper

from maxwhisper import DecodingResult
from maxwhisper.engine.compiled import HOST, cpu_level

N_VOCAB = 51864  # of an English-only model
# Tolerance of a log-probability. Each lane of a vector sums N_VOCAB / LANES exponentials. For 16
# lanes that is 3,242, and γ bounds the error by 1.9e-4. The tolerance is half of the bound.
LANES = {"x86-64-v3": 8, HOST: 4}.get(cpu_level(), 16)
SUM_ERROR = N_VOCAB / LANES * 2**-24 / 2


def assert_same_result(actual: DecodingResult, openai: whisper.DecodingResult) -> None:
    """Assert that two results are equal, with probabilities and ratios equal within 1e-3."""
    for name in ("language", "tokens", "text", "temperature"):
        assert getattr(actual, name) == getattr(openai, name), name
    for name in ("avg_logprob", "no_speech_prob", "compression_ratio"):
        assert getattr(actual, name) == pytest.approx(getattr(openai, name), abs=1e-3), name
    assert actual.language_probs == openai.language_probs
