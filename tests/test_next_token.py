"""In-graph decoding chooses the same tokens as the filters and greedy decoder on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, TensorType

from maxwhisper import decode, log_mel_spectrogram
from maxwhisper.audio import N_FRAMES, pad_or_trim
from maxwhisper.decoding import DecodingTask
from maxwhisper.engine.compiled import compiling_for, cpu_level
from maxwhisper.engine.ops import cpu as cpu_ops
from maxwhisper.engine.ops import kernels, portable
from reference.clips import packaged_clips
from tests.support.decoding import SUM_ERROR
from tests.support.implementations import Implementations
from tests.support.next_token import Question, check_next_token, check_top_k, mask_and_rules, questions

N_CTX = 24
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], tuple[list[int], int]]


@pytest.fixture(scope="module", params=[cpu_ops.next_token, portable.next_token], ids=["fused", "portable"])
def next_token(device: str, request: pytest.FixtureRequest) -> Step:
    """Compile the op alone, in the CPU's and the portable backend. The latter is used on GPUs.

    The function takes logits, float32 [n_seq, n_vocab], tokens so far, int64 [n_seq, n], and sums
    of log-probabilities, float64 [n_seq], which it updates. It returns the chosen tokens and the
    number of unfinished sequences.
    """
    cpu = DeviceRef.CPU()
    types = [
        TensorType(DType.float32, ["n_seq", "n_vocab"], cpu),
        BufferType(DType.int64, ["n_seq", 1, N_CTX + 1], cpu),
        BufferType(DType.float64, ["n_seq", 1], cpu),
        TensorType(DType.float32, ["n_vocab"], cpu),
        TensorType(DType.int64, [3], cpu),
        TensorType(DType.int64, [1], cpu),
    ]
    with Graph("next_token", input_types=types, custom_extensions=kernels()) as graph:
        logits, tokens, sums, *rest = graph.inputs
        graph.output(*request.param(logits.tensor, tokens.buffer, sums.buffer, *(value.tensor for value in rest)))
    with compiling_for(cpu_level()):
        model = InferenceSession(devices=[CPU()]).load(graph)

    def step(logits: np.ndarray, tokens: np.ndarray, sums: np.ndarray, timestamps: bool) -> tuple[list[int], int]:
        n = tokens.shape[1]
        padded = np.zeros((len(tokens), 1, N_CTX + 1), np.int64)
        padded[:, 0, :n] = tokens
        token_buffer, sum_buffer = Buffer.from_numpy(padded), Buffer.from_numpy(sums[:, None].copy())
        chosen, n_unfinished = model.execute(
            logits, token_buffer, sum_buffer, *mask_and_rules(timestamps), np.array([n])
        )
        sums[:] = sum_buffer.to_numpy()[:, 0]
        assert np.array_equal(token_buffer.to_numpy()[:, 0, : n + 1], np.column_stack([tokens, chosen.to_numpy()]))
        return chosen.to_numpy().tolist(), int(n_unfinished.to_numpy()[0])

    return step


@pytest.fixture(scope="module")
def top_k_tokens(device: str) -> Callable[[np.ndarray, np.ndarray, bool], tuple[np.ndarray, np.ndarray]]:
    """Compile `ops.top_k_tokens` alone.

    The function takes logits, float32 [n_seq, n_vocab], and tokens so far, int64 [n_seq, n], of one
    window. It returns the n_seq + 1 likeliest tokens of each sequence and their log-probabilities.
    """
    cpu = DeviceRef.CPU()
    types = [
        TensorType(DType.float32, ["n_seq", "n_vocab"], cpu),
        TensorType(DType.int64, [1, "n_seq", "n"], cpu),
        TensorType(DType.float32, ["n_vocab"], cpu),
        TensorType(DType.int64, [3], cpu),
    ]
    with Graph("top_k_tokens", input_types=types, custom_extensions=kernels()) as graph:
        graph.output(*cpu_ops.top_k_tokens(*(value.tensor for value in graph.inputs)))
    with compiling_for(cpu_level()):
        model = InferenceSession(devices=[CPU()]).load(graph)

    def find(logits: np.ndarray, tokens: np.ndarray, timestamps: bool) -> tuple[np.ndarray, np.ndarray]:
        top_tokens, logprobs = model.execute(logits, tokens[None], *mask_and_rules(timestamps))
        return top_tokens.to_numpy(), logprobs.to_numpy()

    return find


@given(question=questions())
@settings(max_examples=200)
def test_top_k_tokens_are_the_most_likely_that_filters_allow(top_k_tokens: Any, question: Question) -> None:
    check_top_k(question, *top_k_tokens(question.logits, question.tokens, question.timestamps))


@given(question=questions())
@settings(max_examples=200)
def test_the_next_token_is_that_of_the_filters_and_the_greedy_decoder(next_token: Step, question: Question) -> None:
    sums = np.full(len(question.tokens), -1.5)
    chosen, n_unfinished = next_token(question.logits, question.tokens, sums, question.timestamps)
    check_next_token(question, chosen, n_unfinished, sums, before=-1.5)


@pytest.mark.parametrize(
    "options", [{}, {"without_timestamps": True}, {"suppress_tokens": None}, {"sample_len": 7}, {"prompt": [400] * 220}]
)
def test_decoding_in_the_graph_gives_the_tokens_of_step_by_step_decoding(
    tiny_en: Implementations, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows are decoded at once, one of them silent. Their log-probabilities agree too."""
    speech = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)
    audio = tiny_en.model.embed_audio(np.stack([speech, np.full_like(speech, -1.0)]))
    in_graph = decode(tiny_en.model, audio, **options)
    monkeypatch.setattr(DecodingTask, "_rules", lambda task: None)
    step_by_step = decode(tiny_en.model, audio, **options)
    assert isinstance(in_graph, list) and isinstance(step_by_step, list)
    for a, b in zip(in_graph, step_by_step, strict=True):
        assert a.tokens == b.tokens and a.no_speech_prob == b.no_speech_prob
        assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=SUM_ERROR)
