"""Comparison of the word times of two models."""

import numpy as np

from maxwhisper import DecodingResult, Whisper, log_mel_spectrogram, pad_or_trim
from maxwhisper.audio import N_FRAMES, TOKENS_PER_SECOND
from maxwhisper.tokenizer import get_tokenizer
from maxwhisper.transcription.timing import find_alignment
from reference.clips import packaged_clips


def time_shifts(model: Whisper, reference: Whisper) -> np.ndarray:
    """Return by how much the words of ten seconds of speech move between two models.

    Args:
        model: The model whose word times are examined.
        reference: The model that decodes the text and whose word times are correct.

    Returns:
        Absolute shifts of all starts and ends, in frames of 20 ms, sorted: float64 [2 * n_words].
    """
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)
    tokenizer = get_tokenizer(False)
    result = reference.decode(mel)
    assert isinstance(result, DecodingResult)
    text = [token for token in result.tokens if token < tokenizer.eot]
    actual, expected = (
        np.array([(word.start, word.end) for word in find_alignment(aligner, tokenizer, text, mel, 1000)])
        for aligner in (model, reference)
    )
    return np.sort(np.rint(TOKENS_PER_SECOND * np.abs(actual - expected)), axis=None)
