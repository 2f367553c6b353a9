"""Comparison of a beam search with OpenAI Whisper's, given the same logits at each step."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import whisper

from maxwhisper.decoding import DecodingResult
from maxwhisper.decoding.search import Candidate
from maxwhisper.decoding.trace import DecodingStep

CLOSE = (
    1e-4  # of sums: theirs are rounded to float32 when given, and when added to, which is 2 u of up to 500 (u = 6e-8)
)


class BeamWitness:
    """OpenAI Whisper's beam search of one window, told of each step of ours.

    `differences` says what theirs does otherwise, by step, and in the end.
    """

    def __init__(self, beam_size: int, eot: int, patience: float | None, length_penalty: float | None) -> None:
        self.differences: dict[str, str] = {}
        self._told: list[int] = []
        inference: Any = SimpleNamespace(rearrange_kv_cache=self._told.extend)
        self._theirs = whisper.decoding.BeamSearchDecoder(beam_size, eot, inference, patience)
        self._ranker = whisper.decoding.MaximumLikelihoodRanker(length_penalty)
        self._last: DecodingStep | None = None
        self._n_prompt = 0
        self._step = 0

    def step(self, step: DecodingStep) -> None:
        """Compare the beams after a step, and the ones that they continue."""
        their_sums = torch.from_numpy(step.sum_logprobs.astype(np.float32))
        self._told.clear()
        tokens, logits = torch.from_numpy(step.tokens), torch.from_numpy(step.filtered.copy())
        their_tokens, _ = self._theirs.update(tokens, logits, their_sums)
        sources = [] if step.sources is None else step.sources.ravel().tolist()
        same_tokens = step.next_tokens.tolist() == their_tokens.tolist()
        if not same_tokens or not np.allclose(step.next_sum_logprobs, their_sums.numpy(), atol=CLOSE):
            ours = f"{step.next_tokens[:, -1]} at {step.next_sum_logprobs}"
            self._note("beams", f"{ours}, OpenAI Whisper {their_tokens[:, -1]} at {their_sums}")
        elif self._step > 0 and sources != self._told:  # at the first step all beams are equal
            self._note("beams", f"they go on from {sources}, OpenAI Whisper's from {self._told}")
        self._n_prompt = self._n_prompt or step.tokens.shape[1]
        self._step, self._last = self._step + 1, step

    def end(self, candidates: Sequence[Candidate], result: DecodingResult) -> None:
        """Compare the candidates, and which of them was taken."""
        assert self._last is not None
        tokens, sums = self._last.next_tokens[None], self._last.next_sum_logprobs[None].astype(np.float32)
        (others,), (totals,) = self._theirs.finalize(torch.from_numpy(tokens), torch.from_numpy(sums))
        theirs = [other.tolist()[self._n_prompt : -1] for other in others]
        same = [candidate.tokens for candidate in candidates] == theirs
        if not same or not np.allclose([candidate.sum_logprob for candidate in candidates], totals, atol=CLOSE):
            self.differences.setdefault("decoding.candidates", f"{candidates}, OpenAI Whisper {theirs} at {totals}")
        kept = [torch.tensor(candidate.tokens) for candidate in candidates]
        (best,) = self._ranker.rank([kept], [[candidate.sum_logprob for candidate in candidates]])
        if candidates[best].tokens != result.tokens:
            says = f"{result.tokens}, where OpenAI Whisper takes {candidates[best].tokens}"
            self.differences.setdefault("decoding.rank", says)

    def _note(self, what: str, says: str) -> None:
        if not self.differences:
            self.differences[f"decoding.step.{self._step}.{what}"] = says
