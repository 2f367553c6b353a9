"""The graph chooses the tokens that the filters of `maxwhisper.decoding` and its greedy decoder choose, and ends where they do."""

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

from conftest import Trio
from maxwhisper import decode, log_mel_spectrogram
from maxwhisper.audio import N_FRAMES, pad_or_trim
from maxwhisper.decoding import ApplyTimestampRules, DecodingTask, SuppressTokens
from maxwhisper.decoding.search import GreedyDecoder, logsumexp, top_k
from maxwhisper.engine.compiled import HOST, compiling_for, cpu_level
from maxwhisper.engine.ops import cpu as cpu_ops
from maxwhisper.engine.ops import kernels, portable
from maxwhisper.tokenizer import get_tokenizer
from reference.clips import packaged_clips

TOKENIZER = get_tokenizer(False)
N_VOCAB, N_CTX = 51864, 24
PROMPT = [TOKENIZER.sot]
NEVER = SuppressTokens([*TOKENIZER.non_speech_tokens, TOKENIZER.sot, TOKENIZER.no_speech])
# Of a log-probability. Each lane of a vector adds up its share of exponentials, of sixteen 3,242, which γ allows to be off by 1.9e-4; half
# of that.
LANES = {"x86-64-v3": 8, HOST: 4}.get(cpu_level(), 16)
SUM_ERROR = N_VOCAB / LANES * 2**-24 / 2
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], tuple[list[int], int]]


def mask_and_rules(timestamps: bool) -> tuple[np.ndarray, np.ndarray]:
    """What either op is told of the vocabulary."""
    mask = np.zeros(N_VOCAB, np.float32)
    mask[NEVER.suppress_tokens] = -np.inf
    mask[TOKENIZER.no_timestamps] = -np.inf if timestamps else 0
    return mask, np.array([len(PROMPT), TOKENIZER.eot, TOKENIZER.timestamp_begin if timestamps else N_VOCAB])


@pytest.fixture(scope="module", params=[cpu_ops.next_token, portable.next_token], ids=["whole", "by steps"])
def next_token(device: str, request: pytest.FixtureRequest) -> Step:
    """The op alone: logits [n_seq, n_vocab], tokens so far [n_seq, n], sums of log-probabilities; by steps as on a GPU."""
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
        room = np.zeros((len(tokens), 1, N_CTX + 1), np.int64)
        room[:, 0, :n] = tokens
        written, added = Buffer.from_numpy(room), Buffer.from_numpy(sums[:, None].copy())
        chosen, n_unfinished = model.execute(logits, written, added, *mask_and_rules(timestamps), np.array([n]))
        sums[:] = added.to_numpy()[:, 0]
        assert np.array_equal(written.to_numpy()[:, 0, : n + 1], np.column_stack([tokens, chosen.to_numpy()]))
        return chosen.to_numpy().tolist(), int(n_unfinished.to_numpy()[0])

    return step


def _history(draw: st.DrawFn) -> list[int]:
    """Sampled tokens: text, timestamps that never fall, alone and in pairs, and the end."""
    begin, said = TOKENIZER.timestamp_begin, list[int]()
    now = begin
    for kind in draw(st.lists(st.sampled_from(["text", "timestamp", "pair"]), min_size=1, max_size=6)):
        if kind == "text":
            said.append(draw(st.integers(0, TOKENIZER.eot - 1)))
            continue
        now = min(now + draw(st.integers(0, 700)), N_VOCAB - 1)
        said += [now] * (2 if kind == "pair" else 1)
    return said


@st.composite
def histories(draw: st.DrawFn) -> list[list[int]]:
    """Of as many sequences, all equally long; one that has ended goes on ending."""
    sequences = draw(st.lists(st.composite(_history)(), min_size=1, max_size=3))
    n = max(map(len, sequences))
    return [sequence + [TOKENIZER.eot] * (n - len(sequence)) for sequence in sequences]


@pytest.fixture(scope="module")
def likeliest(device: str) -> Callable[[np.ndarray, np.ndarray, bool], tuple[np.ndarray, np.ndarray]]:
    """`ops.top_k_tokens` alone: logits [n_seq, n_vocab] and tokens so far [n_seq, n], of one window."""
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
        found, logprobs = model.execute(logits, tokens[None], *mask_and_rules(timestamps))
        return found.to_numpy(), logprobs.to_numpy()

    return find


@given(
    said=histories(),
    seed=st.integers(0, 2**16),
    lean=st.sampled_from([-8.0, -1.0, 0.0, 1.0, 8.0]),
    timestamps=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_it_finds_the_likeliest_that_filters_allow(
    likeliest: Any, said: list[list[int]], seed: int, lean: float, timestamps: bool
) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(said), N_VOCAB)).astype(np.float32)
    logits[:, TOKENIZER.timestamp_begin :] += lean
    tokens = np.array([[*PROMPT, *sequence] for sequence in said])
    found, logprobs = likeliest(logits, tokens, timestamps)
    NEVER.apply(logits, tokens)
    if timestamps:
        ApplyTimestampRules(TOKENIZER, len(PROMPT), 50).apply(logits, tokens)
    allowed = np.isfinite(logits).any(axis=1)  # after the last timestamp of all there may be none left
    expected = top_k(logits, len(said) + 1)
    expected_logprobs = np.take_along_axis(logits, expected, axis=-1) - logsumexp(logits)[:, None]
    assert found[allowed].tolist() == expected[allowed].tolist()
    assert np.allclose(logprobs[allowed], expected_logprobs[allowed], rtol=0, atol=SUM_ERROR)


@given(
    said=histories(),
    seed=st.integers(0, 2**16),
    lean=st.sampled_from([-8.0, -1.0, 0.0, 1.0, 8.0]),
    timestamps=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_it_chooses_as_the_filters_do(
    next_token: Step, said: list[list[int]], seed: int, lean: float, timestamps: bool
) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(said), N_VOCAB)).astype(np.float32)
    logits[:, TOKENIZER.timestamp_begin :] += lean  # so that timestamps now win over text, now lose
    logits[:, TOKENIZER.eot] += 8 * (seed % 2)
    tokens = np.array([[*PROMPT, *sequence] for sequence in said])
    sums, expected_sums = np.full(len(said), -1.5), np.full(len(said), -1.5)
    chosen, n_unfinished = next_token(logits, tokens, sums, timestamps)
    filtered = logits.copy()
    NEVER.apply(filtered, tokens)
    if timestamps:
        ApplyTimestampRules(TOKENIZER, len(PROMPT), 50).apply(filtered, tokens)
    if not np.isfinite(filtered).any(axis=1).all():
        return  # after the last timestamp of all there may be none left, and then nothing is allowed
    grown, completed = GreedyDecoder(0.0, TOKENIZER.eot, np.random.default_rng(0)).update(
        tokens, filtered, expected_sums
    )
    assert chosen == grown[:, -1].tolist()
    assert (n_unfinished == 0) == completed
    assert np.allclose(sums, expected_sums, rtol=0, atol=SUM_ERROR)


@pytest.mark.parametrize(
    "options", [{}, {"without_timestamps": True}, {"suppress_tokens": None}, {"sample_len": 7}, {"prompt": [400] * 220}]
)
def test_a_whole_window_in_one_call(tiny_en: Trio, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two windows at once, one of them silent: the same tokens as step by step, and likelihoods."""
    speech = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)
    audio = tiny_en.model.embed_audio(np.stack([speech, np.full_like(speech, -1.0)]))
    fast = decode(tiny_en.model, audio, **options)
    monkeypatch.setattr(DecodingTask, "_rules", lambda task: None)
    slow = decode(tiny_en.model, audio, **options)
    assert isinstance(fast, list) and isinstance(slow, list)
    for a, b in zip(fast, slow, strict=True):
        assert a.tokens == b.tokens and a.no_speech_prob == b.no_speech_prob
        assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=SUM_ERROR)
