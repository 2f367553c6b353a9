"""Greedy decoding, sampling and beam search, as in OpenAI Whisper's `decoding.py`."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """A finished sequence that may become a window's transcript."""

    tokens: list[int]  # the sampled ones, without the end of text
    sum_logprob: float  # of these tokens and the end of text


class GreedyDecoder:
    """Take the most probable token at temperature 0, else a sampled one."""

    def __init__(self, temperature: float, eot: int, rng: np.random.Generator) -> None:
        self.temperature = temperature
        self.eot = eot
        self.rng = rng

    def update(self, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray) -> tuple[np.ndarray, bool]:
        """Append a token to each sequence, and add its log-probability to the sequence's sum.

        Args:
            tokens: int64 [n_seq, n], all tokens so far.
            logits: float32 [n_seq, n_vocab], of the next token, after the logit filters.
            sum_logprobs: float64 [n_seq], updated in place.

        Returns:
            The tokens, int64 [n_seq, n + 1], and whether all sequences have ended.
        """
        if self.temperature == 0:
            chosen = logits.argmax(axis=-1)
        else:
            chosen = sample(logits / self.temperature, self.rng.random(len(logits)))
        logprobs = np.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0] - logsumexp(logits)
        ended = tokens[:, -1] == self.eot
        sum_logprobs += np.where(ended, 0, logprobs)
        chosen = np.where(ended, self.eot, chosen)
        return np.column_stack([tokens, chosen]), bool((chosen == self.eot).all())

    def finalize(self, tokens: np.ndarray, sum_logprobs: np.ndarray, sample_begin: int) -> list[list[Candidate]]:
        """Return each window's candidates.

        Args:
            tokens: int64 [n_audio, n_group, n].
            sum_logprobs: float64 [n_audio, n_group].
            sample_begin: The number of tokens in the prompt.
        """
        return [
            [_candidate(*pair, sample_begin, self.eot) for pair in zip(*group)]
            for group in zip(tokens.tolist(), sum_logprobs)
        ]


class BeamSearchDecoder:
    """Follow the `beam_size` most probable sequences of each window.

    Args:
        beam_size: The number of beams per window.
        eot: The token that ends a text.
        rearrange: Called at each step with the beam that each new beam continues,
            int64 [n_audio, beam_size].
        patience: The search ends after `beam_size * patience` finished sequences; 1 by default.
    """

    def __init__(
        self, beam_size: int, eot: int, rearrange: Callable[[np.ndarray], None], patience: float | None = None
    ) -> None:
        self.beam_size = beam_size
        self.eot = eot
        self.rearrange = rearrange
        self.sources: np.ndarray | None = None  # of the last step: the beam that each beam continues
        self.max_candidates = round(beam_size * (patience or 1.0))
        self.finished: list[dict[tuple[int, ...], float]] = []
        # For each finished window: the tokens and sums of its unfinished beams.
        self.left: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def update(self, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray) -> tuple[np.ndarray, bool]:
        """Extend the beams [n_audio * beam_size, n] as `GreedyDecoder.update`."""
        top_tokens = top_k(logits, self.beam_size + 1)
        logprobs = np.take_along_axis(logits, top_tokens, axis=-1) - logsumexp(logits)[:, None]
        return self.follow(tokens, top_tokens, logprobs, sum_logprobs)

    def follow(
        self, tokens: np.ndarray, top_tokens: np.ndarray, logprobs: np.ndarray, sum_logprobs: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """Extend the beams as `update`, given the most probable tokens instead of logits.

        Args:
            tokens: int64 [n_audio * beam_size, n], all tokens so far.
            top_tokens: int64 [n_audio * beam_size, beam_size + 1], the most probable first.
            logprobs: Their log-probabilities, float32 [n_audio * beam_size, beam_size + 1].
            sum_logprobs: float64 [n_audio * beam_size], updated in place.

        Returns:
            The tokens, int64 [n_audio * beam_size, n + 1], and whether the search has ended.
        """
        n_audio = len(tokens) // self.beam_size
        self.finished = self.finished or [{} for _ in range(n_audio)]
        totals = sum_logprobs[:, None] + logprobs
        sources = np.empty((n_audio, self.beam_size), np.int64)
        next_tokens = np.empty((n_audio, self.beam_size), np.int64)

        # Step 1: choose each window's most probable continuations, and set aside finished ones.
        for i in range(n_audio):
            group = slice(i * self.beam_size, (i + 1) * self.beam_size)
            n_chosen = 0
            for total, beam, token in self._ranked(tokens[group], top_tokens[group], totals[group]):
                if token == self.eot:
                    if len(self.finished[i]) < self.max_candidates:
                        self.finished[i][(*tokens[group][beam].tolist(), token)] = total
                    continue
                sources[i, n_chosen] = beam
                next_tokens[i, n_chosen] = token
                sum_logprobs[group][n_chosen] = total
                n_chosen += 1
                if n_chosen == self.beam_size:
                    break

        # Step 2: let each beam continue the one that it was chosen from.
        self.sources = sources
        self.rearrange(sources)
        continued = np.take_along_axis(tokens.reshape(n_audio, self.beam_size, -1), sources[:, :, None], axis=1)
        extended = np.concatenate([continued, next_tokens[:, :, None]], axis=-1)

        # Step 3: a window is done when enough of its sequences have ended; the others may go on.
        sums = sum_logprobs.reshape(n_audio, -1)
        for i, finished in enumerate(self.finished):
            if len(finished) >= self.max_candidates and i not in self.left:
                self.left[i] = extended[i], sums[i].copy()
        return extended.reshape(len(tokens), -1), len(self.left) == n_audio

    def _ranked(
        self, tokens: np.ndarray, top_tokens: np.ndarray, totals: np.ndarray
    ) -> Iterator[tuple[float, int, int]]:
        """Yield the sum, beam and token of each possible continuation, the most probable first.

        Duplicates are left out: at the first step all beams are equal.
        """
        seen = set[tuple[int, ...]]()
        for at in np.argsort(-totals, axis=None, kind="stable"):
            row, place = divmod(int(at), totals.shape[1])
            sequence = (*tokens[row].tolist(), int(top_tokens[row, place]))
            if sequence not in seen:
                seen.add(sequence)
                yield float(totals[row, place]), row, sequence[-1]

    def finalize(self, tokens: np.ndarray, sum_logprobs: np.ndarray, sample_begin: int) -> list[list[Candidate]]:
        """Return each window's finished sequences, and if they are too few, its best beams."""
        for i, finished in enumerate(self.finished):
            group, sums = self.left.get(i, (tokens[i], sum_logprobs[i]))
            for j in np.argsort(-sums, kind="stable")[: max(0, self.beam_size - len(finished))]:
                finished[(*group[j].tolist(), self.eot)] = float(sums[j])
        return [
            [_candidate(list(tokens), total, sample_begin, self.eot) for tokens, total in finished.items()]
            for finished in self.finished
        ]


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k largest logits of each row, int64 [n_seq, k], the largest first.

    `numpy.argpartition` takes 20 times as long if many logits are -inf.
    """
    lowest = np.finfo(logits.dtype).min
    rest = np.maximum(logits, lowest)  # so that no index is taken twice, even if all other logits are -inf
    indices = np.empty((len(logits), k), np.int64)
    for i in range(k):
        indices[:, i] = rest.argmax(axis=-1)
        np.put_along_axis(rest, indices[:, i : i + 1], -np.inf, axis=-1)
    return indices


def _candidate(tokens: list[int], sum_logprob: float, sample_begin: int, eot: int) -> Candidate:
    sampled = tokens[sample_begin:]
    return Candidate(sampled[: sampled.index(eot)] if eot in sampled else sampled, float(sum_logprob))


def sample(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Sample a token for each row by inverting its cumulative distribution.

    Args:
        logits: float [n_seq, n_vocab].
        draws: float64 [n_seq], uniform in [0, 1).

    Returns:
        int64 [n_seq].
    """
    cumulative = np.cumsum(np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)), axis=-1)
    return np.array([np.searchsorted(row, draw * row[-1], side="right") for row, draw in zip(cumulative, draws)])


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """Return `log(sum(exp(logits)))` over the last dimension; -inf if all logits are."""
    largest = logits.max(axis=-1)
    shift = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(logits - shift[..., None]).sum(axis=-1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return `exp(logits) / sum(exp(logits))` over the last dimension."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
