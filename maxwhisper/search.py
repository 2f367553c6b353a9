"""Which tokens are taken: the likeliest, sampled ones, or those of the likeliest sequences; as the decoders of OpenAI's `decoding.py`."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """A sequence that may be a window's transcript: its sampled tokens, without the end, and the sum of their log-probabilities."""

    tokens: list[int]
    sum_logprob: float


class GreedyDecoder:
    """The likeliest token at temperature 0, else a sampled one."""

    def __init__(self, temperature: float, eot: int, rng: np.random.Generator) -> None:
        self.temperature = temperature
        self.eot = eot
        self.rng = rng

    def update(self, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray) -> tuple[np.ndarray, bool]:
        """Append a token to each sequence and its log-probability to its sum; also tell whether all have ended.

        tokens int64 [n_seq, n]; logits float32 [n_seq, n_vocab]; sum_logprobs float64 [n_seq], updated in place.
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
        """Each window's candidates. tokens int64 [n_audio, n_group, n]; sum_logprobs float64 [n_audio, n_group]."""
        return [[_candidate(*pair, sample_begin, self.eot) for pair in zip(*group)] for group in zip(tokens.tolist(), sum_logprobs)]


class BeamSearchDecoder:
    """The sequences that are likeliest as a whole, `beam_size` at a time.

    rearrange: told, for each sequence of each window, which one of its group it goes on from, int [n_audio, beam_size].
    """

    def __init__(self, beam_size: int, eot: int, rearrange: Callable[[np.ndarray], None], patience: float | None = None) -> None:
        self.beam_size = beam_size
        self.eot = eot
        self.rearrange = rearrange
        self.max_candidates = round(beam_size * (patience or 1.0))
        self.finished: list[dict[tuple[int, ...], float]] = []
        self.left: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of windows that are done: tokens and sums of what had not ended

    def update(self, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray) -> tuple[np.ndarray, bool]:
        """As `GreedyDecoder.update`; sequences [n_audio * beam_size, n] may change places, and those that have ended leave."""
        likeliest = top(logits, self.beam_size + 1)
        return self.follow(tokens, likeliest, np.take_along_axis(logits, likeliest, axis=-1) - logsumexp(logits)[:, None], sum_logprobs)

    def follow(self, tokens: np.ndarray, likeliest: np.ndarray, logprobs: np.ndarray, sum_logprobs: np.ndarray) -> tuple[np.ndarray, bool]:
        """`update`, given each sequence's `beam_size + 1` likeliest tokens, the likeliest first, and their log-probabilities."""
        n_audio = len(tokens) // self.beam_size
        self.finished = self.finished or [{} for _ in range(n_audio)]
        totals = sum_logprobs[:, None] + logprobs
        rows, next_tokens = np.empty((n_audio, self.beam_size), np.int64), np.empty((n_audio, self.beam_size), np.int64)
        for i in range(n_audio):
            group = slice(i * self.beam_size, (i + 1) * self.beam_size)
            kept = 0
            for total, row, token in self._ranked(tokens[group], likeliest[group], totals[group]):
                if token == self.eot:
                    if len(self.finished[i]) < self.max_candidates:
                        self.finished[i][(*tokens[group][row].tolist(), token)] = total
                    continue
                rows[i, kept], next_tokens[i, kept], sum_logprobs[group][kept] = row, token, total
                kept += 1
                if kept == self.beam_size:
                    break
        self.rearrange(rows)
        before = np.take_along_axis(tokens.reshape(n_audio, self.beam_size, -1), rows[:, :, None], axis=1)
        grown = np.concatenate([before, next_tokens[:, :, None]], axis=-1)
        sums = sum_logprobs.reshape(n_audio, -1)
        for i, found in enumerate(self.finished):
            if len(found) >= self.max_candidates and i not in self.left:
                self.left[i] = grown[i], sums[i].copy()
        return grown.reshape(len(tokens), -1), len(self.left) == n_audio

    def _ranked(self, tokens: np.ndarray, likeliest: np.ndarray, totals: np.ndarray) -> Iterator[tuple[float, int, int]]:
        """Sum, row and token of each sequence that there may be next, the likeliest first, and none twice, as at first all are alike."""
        known = set[tuple[int, ...]]()
        for at in np.argsort(-totals, axis=None, kind="stable"):
            row, place = divmod(int(at), totals.shape[1])
            sequence = (*tokens[row].tolist(), int(likeliest[row, place]))
            if sequence not in known:
                known.add(sequence)
                yield float(totals[row, place]), row, sequence[-1]

    def finalize(self, tokens: np.ndarray, sum_logprobs: np.ndarray, sample_begin: int) -> list[list[Candidate]]:
        """Each window's candidates: those that ended, and the likeliest of the others where these are fewer than the beam."""
        for i, found in enumerate(self.finished):
            group, sums = self.left.get(i, (tokens[i], sum_logprobs[i]))
            for j in np.argsort(-sums, kind="stable")[: max(0, self.beam_size - len(found))]:
                found[(*group[j].tolist(), self.eot)] = float(sums[j])
        return [[_candidate(list(tokens), total, sample_begin, self.eot) for tokens, total in found.items()] for found in self.finished]


def top(logits: np.ndarray, n: int) -> np.ndarray:
    """Where each row's n largest are, int64 [n_seq, n], the largest first. `numpy.argpartition` takes 20 times as long of much -inf."""
    lowest = np.finfo(logits.dtype).min
    rest, found = np.maximum(logits, lowest), np.empty((len(logits), n), np.int64)  # none is taken twice, though all others be -inf
    for i in range(n):
        found[:, i] = rest.argmax(axis=-1)
        np.put_along_axis(rest, found[:, i : i + 1], -np.inf, axis=-1)
    return found


def _candidate(tokens: list[int], sum_logprob: float, sample_begin: int, eot: int) -> Candidate:
    sampled = tokens[sample_begin:]
    return Candidate(sampled[: sampled.index(eot)] if eot in sampled else sampled, float(sum_logprob))


def sample(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A token per row, by inverting the cumulative distribution at a draw from [0, 1).

    logits float [n_seq, n_vocab]; draws float64 [n_seq]. Returns int64 [n_seq].
    """
    cumulative = np.cumsum(np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)), axis=-1)
    return np.array([np.searchsorted(row, draw * row[-1], side="right") for row, draw in zip(cumulative, draws)])


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """`log(sum(exp(logits)))` over the last dimension; -inf where all are."""
    top = logits.max(axis=-1)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(logits - shift[..., None]).sum(axis=-1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """`exp(logits) / sum(exp(logits))` over the last dimension."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
