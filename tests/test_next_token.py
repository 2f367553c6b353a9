"""In-graph decoding chooses the same tokens as the filters and greedy decoder on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, TensorType

from maxwhisper import decode, log_mel_spectrogram
from maxwhisper.audio import N_FRAMES, pad_or_trim
from maxwhisper.decoding import ApplyTimestampRules, DecodingTask, SuppressTokens
from maxwhisper.decoding.search import GreedyDecoder, logsumexp, top_k
from maxwhisper.engine.compiled import compiling_for, cpu_level
from maxwhisper.engine.ops import cpu as cpu_ops
from maxwhisper.engine.ops import kernels, portable
from maxwhisper.tokenizer import get_tokenizer
from reference.clips import packaged_clips
from tests.support.decoding import SUM_ERROR
from tests.support.implementations import Implementations

TOKENIZER = get_tokenizer(False)
N_VOCAB, N_CTX = 51864, 24
PROMPT = [TOKENIZER.sot]
NEVER = SuppressTokens([*TOKENIZER.non_speech_tokens, TOKENIZER.sot, TOKENIZER.no_speech])
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], tuple[list[int], int]]


def mask_and_rules(timestamps: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the token mask, float32 [n_vocab], and the rules, int64 [3], that both ops take.

    The rules are the prompt's length, the end-of-text token and the first timestamp.
    """
    mask = np.zeros(N_VOCAB, np.float32)
    mask[NEVER.suppress_tokens] = -np.inf
    mask[TOKENIZER.no_timestamps] = -np.inf if timestamps else 0
    return mask, np.array([len(PROMPT), TOKENIZER.eot, TOKENIZER.timestamp_begin if timestamps else N_VOCAB])


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


def _history(draw: st.DrawFn) -> list[int]:
    """Draw sampled tokens: text, and non-decreasing timestamps, single or in pairs."""
    tokens = list[int]()
    timestamp = TOKENIZER.timestamp_begin
    for kind in draw(st.lists(st.sampled_from(["text", "timestamp", "pair"]), min_size=1, max_size=6)):
        if kind == "text":
            tokens.append(draw(st.integers(0, TOKENIZER.eot - 1)))
            continue
        timestamp = min(timestamp + draw(st.integers(0, 700)), N_VOCAB - 1)
        tokens += [timestamp] * (2 if kind == "pair" else 1)
    return tokens


@st.composite
def histories(draw: st.DrawFn) -> list[list[int]]:
    """Draw one to three sequences of equal length, padded with the end-of-text token."""
    sequences = draw(st.lists(st.composite(_history)(), min_size=1, max_size=3))
    n = max(map(len, sequences))
    return [sequence + [TOKENIZER.eot] * (n - len(sequence)) for sequence in sequences]


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


@given(
    sampled=histories(),
    seed=st.integers(0, 2**16),
    timestamp_bias=st.sampled_from([-8.0, -1.0, 0.0, 1.0, 8.0]),
    timestamps=st.booleans(),
)
@settings(max_examples=200)
def test_top_k_tokens_are_the_most_likely_that_filters_allow(
    top_k_tokens: Any, sampled: list[list[int]], seed: int, timestamp_bias: float, timestamps: bool
) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(sampled), N_VOCAB)).astype(np.float32)
    logits[:, TOKENIZER.timestamp_begin :] += timestamp_bias
    tokens = np.array([[*PROMPT, *sequence] for sequence in sampled])
    top_tokens, logprobs = top_k_tokens(logits, tokens, timestamps)
    NEVER.apply(logits, tokens)
    if timestamps:
        ApplyTimestampRules(TOKENIZER, len(PROMPT), 50).apply(logits, tokens)
    allowed = np.isfinite(logits).any(axis=1)  # after the last possible timestamp no token may be left
    expected = top_k(logits, len(sampled) + 1)
    expected_logprobs = np.take_along_axis(logits, expected, axis=-1) - logsumexp(logits)[:, None]
    assert top_tokens[allowed].tolist() == expected[allowed].tolist()
    assert np.allclose(logprobs[allowed], expected_logprobs[allowed], rtol=0, atol=SUM_ERROR)


@given(
    sampled=histories(),
    seed=st.integers(0, 2**16),
    timestamp_bias=st.sampled_from([-8.0, -1.0, 0.0, 1.0, 8.0]),
    timestamps=st.booleans(),
)
@settings(max_examples=200)
def test_the_next_token_is_that_of_the_filters_and_the_greedy_decoder(
    next_token: Step, sampled: list[list[int]], seed: int, timestamp_bias: float, timestamps: bool
) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(sampled), N_VOCAB)).astype(np.float32)
    logits[:, TOKENIZER.timestamp_begin :] += timestamp_bias  # makes timestamps more or less likely than text
    logits[:, TOKENIZER.eot] += 8 * (seed % 2)
    tokens = np.array([[*PROMPT, *sequence] for sequence in sampled])
    sums, expected_sums = np.full(len(sampled), -1.5), np.full(len(sampled), -1.5)
    chosen, n_unfinished = next_token(logits, tokens, sums, timestamps)
    filtered = logits.copy()
    NEVER.apply(filtered, tokens)
    if timestamps:
        ApplyTimestampRules(TOKENIZER, len(PROMPT), 50).apply(filtered, tokens)
    if not np.isfinite(filtered).any(axis=1).all():
        return  # after the last possible timestamp no token may be allowed
    new_tokens, completed = GreedyDecoder(0.0, TOKENIZER.eot, np.random.default_rng(0)).update(
        tokens, filtered, expected_sums
    )
    assert chosen == new_tokens[:, -1].tolist()
    assert (n_unfinished == 0) == completed
    assert np.allclose(sums, expected_sums, rtol=0, atol=SUM_ERROR)


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
