"""The text decoder: tokens in, logits or more tokens out, with a KV cache on the device."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from max.driver import CPU, Buffer

from maxwhisper.engine.dtypes import to_float32
from maxwhisper.engine.runtime import Runtime
from maxwhisper.errors import OptionError


@dataclass(frozen=True)
class AudioFeatures:
    """The encoder's output for a batch of windows, on the model's device."""

    features: Buffer  # [n_audio, n_audio_ctx, n_audio_state]
    # A key and a value per decoder layer, [n_audio, n_text_head, n_audio_ctx, head_dim] each.
    cross_kv: Sequence[Buffer]

    @property
    def n_audio(self) -> int:
        return self.features.shape[0]

    def to_numpy(self) -> np.ndarray:
        """Return the encoder's output, float32 [n_audio, n_audio_ctx, n_audio_state]."""
        return to_float32(self.features.to(CPU()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.to_numpy().astype(dtype or np.float32, copy=bool(copy))


@dataclass(frozen=True)
class TokenRules:
    """The rules for the next token, as `ops.next_token` and `ops.top_k_tokens` take them."""

    mask: np.ndarray  # float32 [n_vocab], -inf for tokens that are never allowed, otherwise 0
    sample_begin: int  # the number of tokens at the start that were not sampled
    eot: int  # the end token
    timestamp_begin: int  # the first timestamp token, or n_vocab without timestamps

    @property
    def numbers(self) -> np.ndarray:
        """All fields except for the mask, int64 [3]."""
        return np.array([self.sample_begin, self.eot, self.timestamp_begin])


class Decoder:
    """Decodes token by token, and caches keys and values on the device.

    A page table holds the cache page of each position of each sequence, so sequences with a common
    prefix share its pages.

    Args:
        runtime: runs the graphs.
        audio: the encoded windows.
        n_group: number of sequences per window.
    """

    def __init__(self, runtime: Runtime, audio: AudioFeatures, n_group: int) -> None:
        self._runtime = runtime
        self._cross_kv = audio.cross_kv
        self._state = runtime.decoder_states.take(runtime, audio.n_audio, n_group)
        weakref.finalize(self, runtime.decoder_states.give_back, self._state)
        pages = np.arange(audio.n_audio * n_group).reshape(audio.n_audio, n_group, 1)
        self._page_table = np.tile(pages, runtime.dims.n_text_ctx)
        self.n_past = 0

    def _run(self, graph: str, *inputs: Buffer, page_table: np.ndarray) -> list[Buffer]:
        """Run a graph on inputs and this decoder's cache, in `graphs.KVCache.types`'s order."""
        table = self._runtime.to_device(np.ascontiguousarray(page_table))
        return self._runtime.run(graph, *inputs, table, *self._state.self_kv, *self._cross_kv)

    def logits(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """Feed the next tokens, and return the logits after them.

        Args:
            tokens: int [n_audio, n_group, n], or [n_audio, 1, n] if they are the same for all
                sequences of a group.
            rows: indices of the n tokens after which logits are wanted; all by default.

        Returns:
            Logits, float32 [n_audio, n_group, n_rows, n_vocab].

        Raises:
            OptionError: if the tokens do not fit the model's context, or are not in its vocabulary.
        """
        (logits,) = self._feed("decoder", tokens, rows)
        return logits

    def alignment(
        self, tokens: np.ndarray, rows: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Do what `logits` does, and also return cross-attention scores before the softmax.

        A group must have one sequence.

        Args:
            tokens: as in `logits`.
            rows: as in `logits`.
            heads: pairs of layer and head.

        Returns:
            The logits, and the scores, float32 [n_audio, n_heads, n, n_audio_ctx].
        """
        head_numbers = np.array([layer * self._runtime.dims.n_text_head + head for layer, head in heads])
        logits, scores = self._feed("alignment", tokens, rows, head_numbers)
        return logits, scores

    def _feed(
        self, graph: str, tokens: np.ndarray, rows: Sequence[int] | None, *others: np.ndarray
    ) -> list[np.ndarray]:
        n, n_ctx = tokens.shape[-1], self._runtime.dims.n_text_ctx
        if not 0 < n <= n_ctx - self.n_past:
            raise OptionError(f"{n} tokens after {self.n_past} do not fit a context of {n_ctx}")
        n_vocab = self._runtime.dims.n_vocab
        if not 0 <= tokens.min() <= tokens.max() < n_vocab:
            raise OptionError(f"tokens from {tokens.min()} to {tokens.max()}, but the vocabulary has {n_vocab}")
        positions = np.arange(self.n_past, self.n_past + n)
        wanted = positions - self.n_past if rows is None else np.asarray(rows, np.int64)
        n_different = tokens.shape[1]
        arrays = (np.ascontiguousarray(tokens, np.int64), positions, wanted, *others)
        inputs = map(self._runtime.to_device, arrays)
        outputs = self._run(graph, *inputs, page_table=self._page_table[:, :n_different])
        self._page_table[:, n_different:, positions] = self._page_table[:, :1, positions]
        self.n_past += n
        return [output.to(CPU()).to_numpy() for output in outputs]

    def rearrange(self, sources: np.ndarray) -> None:
        """Replace each sequence by a sequence of its group, by copying rows of the page table.

        Args:
            sources: int [n_audio, n_group], for each sequence the index in its group of the
                sequence that replaces it.
        """
        past = self._page_table[..., : self.n_past]
        past[:] = np.take_along_axis(past, sources[..., None], axis=1)

    def greedy(self, tokens: np.ndarray, sum_logprobs: np.ndarray, rules: TokenRules, end: int) -> np.ndarray:
        """Append the tokens of the highest logits until all sequences have ended.

        Args:
            tokens: int [n_audio, n_group, n], all so far. The last one has not been fed.
            sum_logprobs: float64 [n_audio, n_group]; log-probabilities are added in place.
            rules: say which tokens are allowed.
            end: the largest number of tokens of a sequence.

        Returns:
            All tokens, int64 [n_audio, n_group, n_total].
        """
        n, n_ctx = tokens.shape[-1], self._runtime.dims.n_text_ctx
        padded = np.zeros((*tokens.shape[:2], n_ctx + 1), np.int64)
        padded[..., :n] = tokens
        if self._runtime.has_graph("greedy"):
            last = np.ascontiguousarray(padded[..., n - 1 : n])
            limits = np.array([n]), np.array([end])
            sequences, sums, *others = map(
                self._runtime.to_device, (padded, sum_logprobs.copy(), rules.mask, rules.numbers, *limits, last)
            )
            (n_tokens,) = self._run("greedy", sequences, sums, *others, page_table=self._page_table)
            results = [buffer.to(CPU()).to_numpy() for buffer in (sequences, sums, n_tokens)]
        else:
            arrays = (padded, sum_logprobs, np.array([n]), rules.mask, rules.numbers, self._page_table)
            results = self._state.take_steps(self._runtime, end - n, arrays, self._cross_kv)
        all_tokens, sum_logprobs[:], (n,) = results
        self.n_past = int(n) - 1
        return all_tokens[..., :n]

    def top_k_tokens(self, tokens: np.ndarray, rules: TokenRules) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidates of a beam search step; the runtime must have the graph `beams`.

        Args:
            tokens: int [n_audio, n_group, n], all so far. The last one has not been fed.
            rules: say which tokens are allowed.

        Returns:
            For each sequence the n_group + 1 allowed tokens of the highest logits, int64 [n_seq,
            n_group + 1], and their log-probabilities, float32 of the same shape.
        """
        n = tokens.shape[-1]
        all_tokens, last = (np.ascontiguousarray(tokens[..., start:], np.int64) for start in (0, n - 1))
        arrays = (all_tokens, last, np.array([n - 1]), rules.mask, rules.numbers)
        inputs = map(self._runtime.to_device, arrays)
        candidates, logprobs = self._run("beams", *inputs, page_table=self._page_table)
        self.n_past = n
        return candidates.to_numpy(), logprobs.to_numpy()
