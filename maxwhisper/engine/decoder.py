"""Tokens in, logits and further tokens out, with a key/value cache that stays on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType

from maxwhisper.engine.dtypes import widened
from maxwhisper.engine.runtime import Runtime
from maxwhisper.errors import OptionError


@dataclass(frozen=True)
class AudioFeatures:
    """What the encoder made of a batch of windows, on the model's device, with what each decoder layer attends to."""

    features: Buffer  # [n_audio, n_audio_ctx, n_audio_state]
    cross_kv: Sequence[Buffer]  # a key and a value for each layer, [n_audio, n_text_head, n_audio_ctx, head_dim] each

    @property
    def n_audio(self) -> int:
        return self.features.shape[0]

    def to_numpy(self) -> np.ndarray:
        """The encoder's output, float32 [n_audio, n_audio_ctx, n_audio_state]."""
        return widened(self.features.to(CPU()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.to_numpy().astype(dtype or np.float32, copy=bool(copy))


@dataclass(frozen=True)
class TokenRules:
    """Which tokens may follow which, as `maxwhisper.engine.ops.next_token` and `likeliest_tokens` take it."""

    mask: np.ndarray  # float32 [n_vocab], -inf for tokens that are never allowed
    sample_begin: int  # how many tokens were not sampled
    eot: int
    timestamp_begin: int  # n_vocab where there are no timestamps

    @property
    def numbers(self) -> np.ndarray:
        """All but the mask, int64 [3]."""
        return np.array([self.sample_begin, self.eot, self.timestamp_begin])


class Decoder:
    """Decodes token after token, remembering keys and values of those it has seen.

    What sequences have in common is held once: a table says in which slot of the cache each position of a sequence lies.
    """

    def __init__(self, runtime: Runtime, audio: AudioFeatures, n_group: int) -> None:
        dims = runtime.dims
        n_slots = audio.n_audio * n_group
        shape = (n_slots, dims.n_text_head, dims.n_text_ctx, dims.n_text_state // dims.n_text_head)
        self._runtime = runtime
        self._cross_kv = audio.cross_kv
        # Not of `Buffer.zeros`, which goes on zeroing while a graph writes: `tests/test_max_defects.py`, `zeros_are_zero_at_once`.
        self._self_kv = [self._zeros(shape, runtime.dtypes.activations) for _ in range(2 * dims.n_text_layer)]
        self._slots = np.tile(np.arange(n_slots).reshape(audio.n_audio, n_group, 1), dims.n_text_ctx)
        self.n_past = 0

    def _zeros(self, shape: Sequence[int], dtype: DType) -> Buffer:
        return Buffer.from_numpy(np.zeros(shape, f"u{dtype.size_in_bytes}")).view(dtype).to(self._runtime.device)

    def logits(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """Feed the tokens that come next and return what may follow them, float32 [n_audio, n_group, n_rows, n_vocab].

        tokens: int [n_audio, n_group, n], or [n_audio, 1, n] where all of a group's are the same; rows: for which of the n tokens logits
        are wanted, all by default.

        Raises OptionError where the tokens would not fit the model's context.
        """
        (logits,) = self._feed("decoder", tokens, rows)
        return logits

    def alignment(self, tokens: np.ndarray, rows: Sequence[int], heads: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """`logits`, and what these heads of cross-attention make of each token and frame, before softmax: float32
        [n_audio, n_heads, n, n_audio_ctx].

        heads: layer and head; a group must have one sequence.
        """
        numbers = np.array([layer * self._runtime.dims.n_text_head + head for layer, head in heads])
        logits, scores = self._feed("alignment", tokens, rows, numbers)
        return logits, scores

    def _feed(self, graph: str, tokens: np.ndarray, rows: Sequence[int] | None, *others: np.ndarray) -> list[np.ndarray]:
        n = tokens.shape[-1]
        if not 0 < n <= self._runtime.dims.n_text_ctx - self.n_past:
            raise OptionError(f"{n} tokens after {self.n_past} do not fit a context of {self._runtime.dims.n_text_ctx}")
        positions = np.arange(self.n_past, self.n_past + n)
        wanted = positions - self.n_past if rows is None else np.asarray(rows, np.int64)
        n_different = tokens.shape[1]
        inputs = (np.ascontiguousarray(self._slots[:, :n_different]), np.ascontiguousarray(tokens, np.int64), positions, wanted, *others)
        on_device = (self._runtime.to_device(array) for array in inputs)
        outputs = self._runtime.run(graph, *on_device, *self._self_kv, *self._cross_kv)
        self._slots[:, n_different:, positions] = self._slots[:, :1, positions]
        self.n_past += n
        return [output.to(CPU()).to_numpy() for output in outputs]

    def rearrange(self, sources: np.ndarray) -> None:
        """Let each sequence go on from what another one of its group has seen. sources: int [n_audio, n_group], places in the group."""
        self._slots[..., : self.n_past] = np.take_along_axis(self._slots, sources[..., None], axis=1)[..., : self.n_past]

    def greedy(self, tokens: np.ndarray, sum_logprobs: np.ndarray, rules: TokenRules, end: int) -> np.ndarray:
        """Append the likeliest tokens until all sequences have ended or are `end` tokens long; returns them all.

        tokens: int [n_audio, n_group, n], of which the last has not been fed yet; sum_logprobs: float64 [n_audio, n_group], added to in
        place.
        """
        n, n_ctx = tokens.shape[-1], self._runtime.dims.n_text_ctx
        room = np.zeros((*tokens.shape[:2], n_ctx + 1), np.int64)
        room[..., :n] = tokens
        arrays = (self._slots, room, sum_logprobs.copy(), rules.mask, rules.numbers, np.array([n]), np.array([end]))
        slots, written, sums, mask, numbers, n_tokens, limit = map(self._runtime.to_device, arrays)
        kept = (*self._self_kv, *self._cross_kv)
        if self._runtime.has_graph("greedy"):
            (n_tokens,) = self._runtime.run("greedy", slots, written, sums, mask, numbers, n_tokens, limit, *kept)
        else:
            self._take_steps(end - n, slots, written, sums, n_tokens, mask, numbers, *kept)
        n = int(n_tokens.to(CPU()).to_numpy()[0])
        sum_logprobs[:] = sums.to(CPU()).to_numpy()
        self.n_past = n - 1
        return written.to(CPU()).to_numpy()[..., :n]

    def likeliest(self, tokens: np.ndarray, rules: TokenRules) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens that may follow each sequence, int64 [n_seq, n_group + 1], and their log-probabilities, float32.

        tokens: int [n_audio, n_group, n], all so far, of which the last has not been fed yet; only where `searches_in_graph`.
        """
        inputs = map(self._runtime.to_device, (self._slots, np.ascontiguousarray(tokens, np.int64), rules.mask, rules.numbers))
        found, logprobs = self._runtime.run("beams", *inputs, *self._self_kv, *self._cross_kv)
        self.n_past = tokens.shape[-1]
        return found.to_numpy(), logprobs.to_numpy()

    def _take_steps(self, n_most: int, *inputs: Buffer) -> None:
        """Steps of which none waits for the one before: the device has all that they need, and is asked now and then if all has ended."""
        for i in range(n_most):
            (n_unfinished,) = self._runtime.run("step", *inputs)
            if i % _STEPS_UNASKED == _STEPS_UNASKED - 1 and not n_unfinished.to(CPU()).to_numpy()[0]:
                break


_STEPS_UNASKED = 8  # some are in vain where a text ends, which costs less than to wait for each
