"""Buffers of decoders, which stay on the device from one decoder to the next.

On a GPU, a decoding step is captured, so its inputs must stay at the same addresses.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from max.driver import CPU, Buffer, Device

from maxwhisper.engine.captured import Captured

if TYPE_CHECKING:
    from maxwhisper.engine.runtime import Runtime

# Steps between two checks for the end. A few wasted steps cost less than waiting for each step.
STEPS_UNCHECKED = 8


class DecoderState:
    """The buffers of a decoder of `n_group` sequences for each of `n_audio` windows.

    Args:
        runtime: runs the graphs.
        n_audio: number of windows.
        n_group: sequences per window.
    """

    def __init__(self, runtime: "Runtime", n_audio: int, n_group: int) -> None:
        dims = runtime.dims
        shape = (n_audio * n_group, dims.n_text_head, dims.n_text_ctx, dims.n_text_state // dims.n_text_head)
        self.sizes = n_audio, n_group
        # Keys and values of the tokens, as in `graphs.KVCache`. Masked positions must be finite, so
        # the buffers begin with zeros. Not `Buffer.zeros`, which may still be writing zeros when a
        # graph writes to the buffer: `tests/test_max_defects.py`, `zeros_are_zero_at_once`.
        dtype = runtime.dtypes.activations
        self.self_kv = [
            Buffer.from_numpy(np.zeros(shape, f"u{dtype.size_in_bytes}")).view(dtype).to(runtime.device)
            for _ in range(2 * dims.n_text_layer)
        ]
        self._inputs: list[Buffer] = []  # of the graph `step`, once it was needed
        self._captured: Captured | None = None

    def take_steps(
        self, runtime: "Runtime", n_max: int, arrays: Sequence[np.ndarray], cross_kv: Sequence[Buffer]
    ) -> list[np.ndarray]:
        """Take up to n_max steps of the graph `step`, until all sequences have ended.

        Args:
            runtime: runs the graph.
            n_max: the largest number of steps.
            arrays: tokens, sums, number of tokens, mask, rules and page table, as in
                `graphs.step`.
            cross_kv: keys and values of the audio.

        Returns:
            The first three of the arrays, as the steps leave them.
        """
        self._fill(runtime.device, arrays, cross_kv)
        if self._captured is None and runtime.captures.enabled:
            self._captured = runtime.captures.capture(runtime.graphs["step"], self._inputs)
            self._fill(runtime.device, arrays)  # capturing may have taken a step
        for i in range(n_max):
            (n_unfinished,) = self._captured.replay() if self._captured else runtime.run("step", *self._inputs)
            if i % STEPS_UNCHECKED == STEPS_UNCHECKED - 1 and not n_unfinished.to(CPU()).to_numpy()[0]:
                break
        return [buffer.to(CPU()).to_numpy().copy() for buffer in self._inputs[:3]]

    def _fill(self, device: Device, arrays: Sequence[np.ndarray], cross_kv: Sequence[Buffer] = ()) -> None:
        """Copy inputs of `step` to where the captured step expects them."""
        sources = [Buffer.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        if not self._inputs:
            room = [Buffer(source.dtype, source.shape, device) for source in (*sources, *cross_kv)]
            self._inputs = [*room[: len(sources)], *self.self_kv, *room[len(sources) :]]
        pairs = [*zip(self._inputs, sources), *zip(self._inputs[len(sources) + len(self.self_kv) :], cross_kv)]
        for to, source in pairs:
            to.inplace_copy_from(source)


class DecoderStates:
    """The states that no decoder uses at the moment."""

    # Of a large model, a state for a batch takes gigabytes.
    MOST = 2

    def __init__(self) -> None:
        self._idle: list[DecoderState] = []  # the last used one last

    def take(self, runtime: "Runtime", n_audio: int, n_group: int) -> DecoderState:
        """Return a state for a decoder of these sizes, a new one if none is idle."""
        for i in reversed(range(len(self._idle))):
            if self._idle[i].sizes == (n_audio, n_group):
                return self._idle.pop(i)
        return DecoderState(runtime, n_audio, n_group)

    def give_back(self, state: DecoderState) -> None:
        """Keep a state for the next decoder of its sizes."""
        self._idle = [*self._idle, state][-self.MOST :]
