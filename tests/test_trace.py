"""A trace records the steps of a transcription without changing it."""

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import maxwhisper
from maxwhisper import iter_segments, timing, transcribe, transcribe_batched
from maxwhisper.tokenizer import get_tokenizer
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.timing import (
    AlignmentInput,
    assign_words,
    dtw,
    find_alignments,
    median_filter,
    standardized,
)
from reference.parity.observe import Recorder, transcribe_with_max
from tests.support.random_models import MODELS, SEVERAL_WINDOWS
from tests.support.torch_model import TorchModel


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": (0.0, 0.7), "best_of": 2, "logprob_threshold": 0.0, "no_speech_threshold": None},
        {"temperature": 0.0, "beam_size": 3},
        {"temperature": 0.0, "initial_prompt": "Worstward Ho.", "carry_initial_prompt": True},
        {"temperature": 0.0, "multilingual": True},
    ],
)
def test_a_trace_sees_every_decoding_and_changes_none(options: dict[str, Any]) -> None:
    model, options = TorchModel(MODELS[True]), {"sample_len": 12, **options}
    recorded = transcribe_with_max(model, SEVERAL_WINDOWS, **options)
    assert recorded.result == transcribe(model, SEVERAL_WINDOWS, **options)
    n_attempts = len(TranscriptionOptions.of(**options).fallback_options)
    assert len(recorded.windows) > 2 * n_attempts
    assert {window.temperature for window in recorded.windows} == {
        o.temperature for o in TranscriptionOptions.of(**options).fallback_options
    }
    begin, eot = get_tokenizer(True).timestamp_begin, get_tokenizer(True).eot
    for window in recorded.windows:
        if window.search is not None:
            assert window.search.differences == {}
            continue
        assert len(window.logits) == len(window.allowed) == 12 or len(window.logits) > len(window.tokens)
        allowed = np.unpackbits(np.array(window.allowed), axis=1, count=len(window.logits[0])).astype(bool)
        assert allowed[0, begin:].any() and not allowed[0, :begin].any()  # a transcript begins with a timestamp
        assert np.isfinite(window.logits).all()  # filters are not yet applied
        if window.temperature == 0:
            chosen = np.where(allowed, window.logits, -np.inf).argmax(axis=1).tolist()
            assert chosen[: len(window.tokens)] == window.tokens
            assert chosen[len(window.tokens) :] in ([], [eot])


def test_a_trace_sees_each_stage_of_an_alignment() -> None:
    """Two windows are aligned as a batch, one of them without text."""
    rng, tokenizer = np.random.default_rng(0), get_tokenizer(False)
    text = tokenizer.encode(" Try again. Fail better.")
    n, n_vocab = len(tokenizer.sot_sequence) + 1 + len(text) + 1, 51864

    def alignment(tokens: np.ndarray, rows: Any, heads: Any) -> tuple[np.ndarray, np.ndarray]:
        assert tokens.shape == (2, 1, n)
        logits = rng.standard_normal((2, 1, len(rows), n_vocab)).astype(np.float32)
        return logits, rng.standard_normal((2, 3, n, 1500)).astype(np.float32)

    features = np.zeros((2, 1500, 4), np.float32)
    audio: Any = SimpleNamespace(to_numpy=lambda: features)
    model: Any = SimpleNamespace(decoder=lambda audio: SimpleNamespace(alignment=alignment), alignment_heads=())
    windows = [AlignmentInput(tokenizer, [], 3000), AlignmentInput(tokenizer, text, 400)]
    recorder = Recorder(steps=False)
    no_words, words = find_alignments(model, windows, audio, trace=recorder)
    (recorded,) = (timed.alignment for timed in recorder.alignments)
    assert no_words == [] and recorded.window is windows[1] and recorded.words == words
    assert (
        recorded.scores.shape == (3, n, 1500)
        and recorded.weights.shape == (3, n, 200)
        and recorded.features.shape == (1, 1500, 4)
    )
    assert np.array_equal(recorded.standardized, standardized(recorded.weights))
    assert np.array_equal(recorded.filtered, median_filter(recorded.standardized, 7))
    assert np.array_equal(recorded.path, dtw(-recorded.matrix))
    assert recorded.matrix.shape == (len(text) + 1, 200) and recorded.logits.shape == (len(text), tokenizer.eot)
    assert len(recorded.probabilities) == len(text)

    segments: list[Any] = [{"seek": 0, "start": 0.0, "end": 4.0, "tokens": text}]
    assign_words(segments, words, tokenizer.eot, ("", "."), 0.0, recorder)
    assignment = recorder.alignments[0].assignment
    assert assignment is not None
    assert assignment.alignment == recorded.words != words  # punctuation is joined in place
    assert "words" not in assignment.segments[0] and assignment.result == segments


@pytest.mark.parametrize(
    "function",
    [
        iter_segments,
        transcribe,
        transcribe_batched,
        maxwhisper.decode,
        timing.find_alignment,
        timing.add_word_timestamps,
    ],
)
def test_public_functions_take_no_trace(function: Any) -> None:
    assert "trace" not in inspect.signature(function).parameters
