"""Which tokens may come next: filters of logits, by the rules of OpenAI Whisper's `decoding.py`."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maxwhisper.decoding.search import logsumexp
from maxwhisper.tokenizer import Tokenizer


class LogitFilter(Protocol):
    """A rule that forbids tokens by setting their logits to -inf."""

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        """Change the logits in place.

        Args:
            logits: float32 [n_seq, n_vocab].
            tokens: int64 [n_seq, n], all tokens so far, including the prompt.
        """
        ...


@dataclass(frozen=True)
class SuppressBlank:
    """Forbid a blank or the end of text as the first sampled token."""

    tokenizer: Tokenizer
    sample_begin: int

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        if tokens.shape[1] == self.sample_begin:
            logits[:, [*self.tokenizer.encoding.encode_ordinary(" "), self.tokenizer.eot]] = -np.inf


@dataclass(frozen=True)
class SuppressTokens:
    """Forbid these tokens everywhere."""

    suppress_tokens: list[int]

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        logits[:, self.suppress_tokens] = -np.inf


@dataclass(frozen=True)
class ApplyTimestampRules:
    """Force timestamps into a valid order.

    They come in pairs, never decrease, and open the transcript. Text is forbidden where all
    timestamps together are more probable than every single text token.
    """

    tokenizer: Tokenizer
    sample_begin: int
    max_initial_timestamp_index: int | None

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        begin = self.tokenizer.timestamp_begin
        logits[:, self.tokenizer.no_timestamps] = -np.inf
        for row, sampled in zip(logits, tokens[:, self.sample_begin :]):
            self._pair(row, sampled)
        if tokens.shape[1] == self.sample_begin:
            logits[:, :begin] = -np.inf
            if self.max_initial_timestamp_index is not None:
                logits[:, begin + self.max_initial_timestamp_index + 1 :] = -np.inf
        likelier = logsumexp(logits[:, begin:]) > logits[:, :begin].max(axis=-1)
        logits[likelier, :begin] = -np.inf

    def _pair(self, logits: np.ndarray, sampled: np.ndarray) -> None:
        begin, eot = self.tokenizer.timestamp_begin, self.tokenizer.eot
        last_is_timestamp = len(sampled) >= 1 and sampled[-1] >= begin
        previous_is_timestamp = len(sampled) < 2 or sampled[-2] >= begin
        if last_is_timestamp and previous_is_timestamp:  # a pair is complete: only text may follow
            logits[begin:] = -np.inf
        elif last_is_timestamp:  # a pair is open: a timestamp must follow, or the end of text
            logits[:eot] = -np.inf
        timestamps = sampled[sampled >= begin]
        if len(timestamps):
            # A segment may start where the previous one ended, but must end later than it starts.
            opens = last_is_timestamp and not previous_is_timestamp
            logits[begin : timestamps[-1] + (0 if opens else 1)] = -np.inf
