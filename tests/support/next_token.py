"""What the next token must be, by the filters and decoders on the host."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from maxwhisper.decoding import ApplyTimestampRules, SuppressTokens
from maxwhisper.decoding.search import GreedyDecoder, logsumexp, top_k
from maxwhisper.tokenizer import get_tokenizer
from tests.support.decoding import SUM_ERROR

TOKENIZER = get_tokenizer(False)
N_VOCAB = 51864
PROMPT = [TOKENIZER.sot]
NEVER = SuppressTokens([*TOKENIZER.non_speech_tokens, TOKENIZER.sot, TOKENIZER.no_speech])


def mask_and_rules(timestamps: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the token mask, float32 [n_vocab], and the rules, int64 [3], that both ops take.

    The rules are the prompt's length, the end-of-text token and the first timestamp.
    """
    mask = np.zeros(N_VOCAB, np.float32)
    mask[NEVER.suppress_tokens] = -np.inf
    mask[TOKENIZER.no_timestamps] = -np.inf if timestamps else 0
    return mask, np.array([len(PROMPT), TOKENIZER.eot, TOKENIZER.timestamp_begin if timestamps else N_VOCAB])


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


class Question(NamedTuple):
    """Logits after some tokens."""

    logits: np.ndarray  # float32 [n_seq, n_vocab]
    tokens: np.ndarray  # int64 [n_seq, n]
    timestamps: bool

    def filtered(self) -> np.ndarray:
        """Return the logits, -inf for tokens that are not allowed."""
        logits = self.logits.copy()
        NEVER.apply(logits, self.tokens)
        if self.timestamps:
            ApplyTimestampRules(TOKENIZER, len(PROMPT), 50).apply(logits, self.tokens)
        return logits


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Draw logits of which timestamps, or the end of text, are more or less likely than text."""
    sampled, seed = draw(histories()), draw(st.integers(0, 2**16))
    logits = 3 * np.random.default_rng(seed).standard_normal((len(sampled), N_VOCAB)).astype(np.float32)
    logits[:, TOKENIZER.timestamp_begin :] += draw(st.sampled_from([-8.0, -1.0, 0.0, 1.0, 8.0]))
    logits[:, TOKENIZER.eot] += 8 * (seed % 2)
    return Question(logits, np.array([[*PROMPT, *sequence] for sequence in sampled]), draw(st.booleans()))


def check_next_token(question: Question, chosen: list[int], n_unfinished: int, sums: np.ndarray, before: float) -> None:
    """Assert that the tokens are those of the greedy decoder.

    Args:
        question: the logits.
        chosen: a token for each sequence.
        n_unfinished: the number of sequences that have not ended.
        sums: of log-probabilities, float64 [n_seq].
        before: what the sums were.
    """
    filtered = question.filtered()
    if not np.isfinite(filtered).any(axis=1).all():
        return  # after the last possible timestamp no token may be allowed
    expected_sums = np.full(len(sums), before)
    decoder = GreedyDecoder(0.0, TOKENIZER.eot, np.random.default_rng(0))
    new_tokens, _ = decoder.update(question.tokens, filtered, expected_sums)
    assert chosen == new_tokens[:, -1].tolist()
    assert n_unfinished == (new_tokens[:, -1] != TOKENIZER.eot).sum()
    assert np.allclose(sums, expected_sums, rtol=0, atol=SUM_ERROR)


def check_top_k(question: Question, tokens: np.ndarray, logprobs: np.ndarray) -> None:
    """Assert that the tokens are the likeliest that are allowed, and the log-probabilities theirs.

    Args:
        question: the logits.
        tokens: int64 [n_seq, k].
        logprobs: float32 [n_seq, k].
    """
    filtered = question.filtered()
    allowed = np.isfinite(filtered).any(axis=1)  # after the last possible timestamp no token may be left
    expected = top_k(filtered, tokens.shape[1])
    expected_logprobs = np.take_along_axis(filtered, expected, axis=-1) - logsumexp(filtered)[:, None]
    assert tokens[allowed].tolist() == expected[allowed].tolist()
    assert np.allclose(logprobs[allowed], expected_logprobs[allowed], rtol=0, atol=SUM_ERROR)
