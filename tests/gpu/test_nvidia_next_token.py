"""The likeliest tokens by the kernels for NVIDIA GPUs, interpreted, are those of the host."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwhisper.engine.ops import nvidia
from tests.gpu.emulated import Gpu, emulated_gpu
from tests.support.next_token import (
    N_VOCAB,
    PROMPT,
    TOKENIZER,
    Question,
    check_next_token,
    check_top_k,
    mask_and_rules,
    questions,
)

N_CTX = 24


def append(gpu: Gpu, question: Question, sums: np.ndarray) -> tuple[list[int], int]:
    """Append a token to each sequence; return the tokens, and how many sequences have not ended."""
    n_seq, n = question.tokens.shape
    tokens = np.zeros((n_seq, 1, N_CTX + 1), np.int64)
    tokens[:, 0, :n] = question.tokens
    n_tokens = np.array([n])
    with emulated_gpu(gpu):
        values: list[Any] = [
            question.logits,
            tokens,
            sums.reshape(n_seq, 1),
            n_tokens,
            *mask_and_rules(question.timestamps),
        ]
        n_unfinished = nvidia.append_token(*values)
    assert n_tokens == n + bool(gpu.launched)
    assert np.array_equal(tokens[:, 0, :n], question.tokens) and not tokens[:, 0, n + 1 :].any()
    return tokens[:, 0, n].tolist(), int(np.asarray(n_unfinished)[0])


def rank(gpu: Gpu, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """Return the n_seq + 1 likeliest tokens of each sequence, and their log-probabilities."""
    with emulated_gpu(gpu):
        tokens = question.tokens[None]
        values: list[Any] = [question.logits, tokens, np.array([tokens.shape[2]]), *mask_and_rules(question.timestamps)]
        ranked, logprobs = nvidia.rank_tokens(*values)
    return np.asarray(ranked), np.asarray(logprobs)


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    """Return a GPU with the kernels compiled."""
    gpu, question = Gpu(), Question(np.zeros((1, N_VOCAB), np.float32), np.array([PROMPT]), False)
    with gpu.noting():
        append(gpu, question, np.zeros(1))
        rank(gpu, question)
    return gpu


@given(question=questions(), seed=st.integers(0, 2**16))
@settings(max_examples=50)
def test_the_next_token_is_that_of_the_greedy_decoder(gpu: Gpu, question: Question, seed: int) -> None:
    gpu.seed, sums = seed, np.full(len(question.tokens), -1.5)
    chosen, n_unfinished = append(gpu, question, sums)
    check_next_token(question, chosen, n_unfinished, sums, before=-1.5)


@given(question=questions(), seed=st.integers(0, 2**16))
@settings(max_examples=50)
def test_ranked_tokens_are_the_most_likely(gpu: Gpu, question: Question, seed: int) -> None:
    gpu.seed = seed
    check_top_k(question, *rank(gpu, question))


def test_more_sequences_than_warps_have_their_own_tokens(gpu: Gpu, rng: np.random.Generator) -> None:
    logits = 3 * rng.standard_normal((37, N_VOCAB), np.float32)
    logits[::5, TOKENIZER.eot] += 40
    question, sums = Question(logits, np.array([[*PROMPT, 5]] * 37), True), np.zeros(37)
    check_next_token(question, *append(gpu, question, sums), sums, before=0.0)


def test_where_few_tokens_are_allowed_forbidden_ones_follow(gpu: Gpu) -> None:
    """They are the lowest numbers, as the CPU's kernel has them."""
    logits = np.full((4, N_VOCAB), -np.inf, np.float32)
    logits[:, [2000, 1000]] = 2.0, 1.0
    tokens, logprobs = rank(gpu, Question(logits, np.array([[*PROMPT, 5]] * 4), False))
    assert tokens.tolist() == [[2000, 1000, 0, 1, 2]] * 4
    assert np.isneginf(logprobs[:, 2:]).all() and np.isfinite(logprobs[:, :2]).all()
