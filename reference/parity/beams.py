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

# Tolerance for sums of log-probabilities. OpenAI Whisper's are rounded to float32 twice, as inputs
# and when a token is added: 2 u of a sum up to 500 (u = 6e-8).
SUM_TOLERANCE = 1e-4


class BeamComparison:
    """OpenAI Whisper's beam search of one window, run on the logits of each step of MAX's.

    `differences` has a message for the first step that differs, and for different candidates and
    results, by the name of the stage.
    """

    def __init__(self, beam_size: int, eot: int, patience: float | None, length_penalty: float | None) -> None:
        self.differences: dict[str, str] = {}
        self._openai_sources: list[int] = []
        inference: Any = SimpleNamespace(rearrange_kv_cache=self._openai_sources.extend)
        self._openai = whisper.decoding.BeamSearchDecoder(beam_size, eot, inference, patience)
        self._ranker = whisper.decoding.MaximumLikelihoodRanker(length_penalty)
        self._last: DecodingStep | None = None
        self._n_prompt = 0
        self._step = 0

    def step(self, step: DecodingStep) -> None:
        """Compare the beams after a step, and the beams that each of them continues."""
        openai_sums = torch.from_numpy(step.sum_logprobs.astype(np.float32))
        self._openai_sources.clear()
        tokens, logits = torch.from_numpy(step.tokens), torch.from_numpy(step.filtered.copy())
        openai_tokens, _ = self._openai.update(tokens, logits, openai_sums)
        sources = [] if step.sources is None else step.sources.ravel().tolist()
        same_tokens = step.next_tokens.tolist() == openai_tokens.tolist()
        if not same_tokens or not np.allclose(step.next_sum_logprobs, openai_sums.numpy(), atol=SUM_TOLERANCE):
            beams = f"{step.next_tokens[:, -1]} at {step.next_sum_logprobs}"
            self._add_difference("beams", f"{beams}, OpenAI Whisper {openai_tokens[:, -1]} at {openai_sums}")
        elif self._step > 0 and sources != self._openai_sources:  # at the first step, all beams are equal
            self._add_difference("beams", f"they continue {sources}, OpenAI Whisper's continue {self._openai_sources}")
        self._n_prompt = self._n_prompt or step.tokens.shape[1]
        self._step, self._last = self._step + 1, step

    def end(self, candidates: Sequence[Candidate], result: DecodingResult) -> None:
        """Compare the final candidates, and the one chosen among them."""
        assert self._last is not None
        tokens, sums = self._last.next_tokens[None], self._last.next_sum_logprobs[None].astype(np.float32)
        (sequences,), (totals,) = self._openai.finalize(torch.from_numpy(tokens), torch.from_numpy(sums))
        expected = [sequence.tolist()[self._n_prompt : -1] for sequence in sequences]
        same = [candidate.tokens for candidate in candidates] == expected
        if not same or not np.allclose([candidate.sum_logprob for candidate in candidates], totals, atol=SUM_TOLERANCE):
            self.differences.setdefault("decoding.candidates", f"{candidates}, OpenAI Whisper {expected} at {totals}")
        finalists = [torch.tensor(candidate.tokens) for candidate in candidates]
        (best,) = self._ranker.rank([finalists], [[candidate.sum_logprob for candidate in candidates]])
        if candidates[best].tokens != result.tokens:
            message = f"{result.tokens}, but OpenAI Whisper chooses {candidates[best].tokens}"
            self.differences.setdefault("decoding.rank", message)

    def _add_difference(self, kind: str, message: str) -> None:
        if not self.differences:
            self.differences[f"decoding.step.{self._step}.{kind}"] = message
