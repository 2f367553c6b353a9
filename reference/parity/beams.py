"""A beam search with OpenAI Whisper's own beside it, which is given the same at each step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import whisper

from maxwhisper.decoding.search import BeamSearchDecoder, Candidate

CLOSE = 1e-4  # of sums: theirs are rounded to float32 when given, and when added to, which is 2 u of up to 500 (u = 6e-8)


class BeamWitness:
    """Stands in a beam search's place, for one window. differences: what theirs does otherwise, by step, and in the end."""

    def __init__(self, ours: BeamSearchDecoder, patience: float | None, length_penalty: float | None) -> None:
        self.ours = ours
        self.differences: dict[str, str] = {}
        self._told: list[int] = []
        inference: Any = SimpleNamespace(rearrange_kv_cache=self._told.extend)
        self._theirs = whisper.decoding.BeamSearchDecoder(ours.beam_size, ours.eot, inference, patience)
        self._ranker = whisper.decoding.MaximumLikelihoodRanker(length_penalty)
        self._candidates = list[Candidate]()
        self._step = 0

    def update(self, tokens: np.ndarray, logits: np.ndarray, sum_logprobs: np.ndarray) -> tuple[np.ndarray, bool]:
        """As ours."""
        their_sums = torch.from_numpy(sum_logprobs.astype(np.float32))
        self._told.clear()
        their_tokens, _ = self._theirs.update(torch.from_numpy(tokens), torch.from_numpy(logits.copy()), their_sums)
        asked, rearrange = list[int](), self.ours.rearrange

        def watched(sources: np.ndarray) -> None:
            asked.extend(sources.ravel().tolist())
            rearrange(sources)

        self.ours.rearrange = watched
        found, ended = self.ours.update(tokens, logits, sum_logprobs)
        self.ours.rearrange = rearrange
        if found.tolist() != their_tokens.tolist() or not np.allclose(sum_logprobs, their_sums.numpy(), atol=CLOSE):
            self._note("beams", f"{found[:, -1]} at {sum_logprobs}, OpenAI Whisper {their_tokens[:, -1]} at {their_sums}")
        elif self._step > 0 and asked != self._told:  # at first it is all the same from which
            self._note("beams", f"they go on from {asked}, OpenAI Whisper's from {self._told}")
        self._step += 1
        return found, ended

    def finalize(self, tokens: np.ndarray, sum_logprobs: np.ndarray, sample_begin: int) -> list[list[Candidate]]:
        """As ours."""
        ((*self._candidates,),) = self.ours.finalize(tokens, sum_logprobs, sample_begin)
        (others,), (totals,) = self._theirs.finalize(torch.from_numpy(tokens), torch.from_numpy(sum_logprobs.astype(np.float32)))
        theirs = [other.tolist()[sample_begin:-1] for other in others]
        same = [candidate.tokens for candidate in self._candidates] == theirs
        if not same or not np.allclose([candidate.sum_logprob for candidate in self._candidates], totals, atol=CLOSE):
            self.differences.setdefault("decoding.candidates", f"{self._candidates}, OpenAI Whisper {theirs} at {totals}")
        return [self._candidates]

    def ranked(self, tokens: list[int]) -> None:
        """Told which candidate was taken."""
        kept = [torch.tensor(candidate.tokens) for candidate in self._candidates]
        (best,) = self._ranker.rank([kept], [[candidate.sum_logprob for candidate in self._candidates]])
        if self._candidates[best].tokens != tokens:
            self.differences.setdefault("decoding.rank", f"{tokens}, where OpenAI Whisper takes {self._candidates[best].tokens}")

    def _note(self, what: str, says: str) -> None:
        if not self.differences:
            self.differences[f"decoding.step.{self._step}.{what}"] = says
