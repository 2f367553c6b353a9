"""An interface for measuring how tokens are chosen, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maxwhisper.decoding.options import DecodingOptions, DecodingResult
from maxwhisper.decoding.search import Candidate
from maxwhisper.tokenizer import Tokenizer


@dataclass(frozen=True)
class DecodingStep:
    """The choice of a token for each sequence, and its inputs."""

    tokens: np.ndarray  # int64 [n_seq, n], all tokens before the step
    logits: np.ndarray  # float32 [n_seq, n_vocab], of the model
    filtered: np.ndarray  # float32 [n_seq, n_vocab], after the logit filters: -inf for forbidden tokens
    sum_logprobs: np.ndarray  # float64 [n_seq], before the step
    next_tokens: np.ndarray  # int64 [n_seq, n + 1], after the step
    next_sum_logprobs: np.ndarray  # float64 [n_seq], after the step
    sources: np.ndarray | None  # beam search: the beam that each beam continues, int64 [n_audio, beam_size]


class DecodingTrace(Protocol):
    """Receives the steps of a decoding task, and makes it choose tokens on the host."""

    def begin(self, options: DecodingOptions, tokenizer: Tokenizer) -> None:
        """Receive the task's options and tokenizer, before its first step."""
        ...

    def step(self, step: DecodingStep) -> None:
        """Receive a step; the arrays don't change afterwards."""
        ...

    def end(self, candidates: Sequence[Sequence[Candidate]], results: Sequence[DecodingResult]) -> None:
        """Receive the candidates of each window, and the result that was chosen from them."""
        ...
