"""Graphs captured on a GPU: all their kernels are launched at once, in a fraction of the time.

A captured graph reads its inputs and writes its outputs at the same addresses each time.
"""

import itertools
import warnings
from collections.abc import Sequence

from max.driver import Buffer
from max.engine import Model

from maxwhisper.errors import WhisperWarning


class Captured:
    """A captured graph.

    Args:
        graph: the graph.
        inputs: its inputs, which stay where they are.

    Raises:
        RuntimeError: if MAX can't capture it.
    """

    _keys = itertools.count(1)

    def __init__(self, graph: Model, inputs: Sequence[Buffer]) -> None:
        self.inputs, self._graph, self._key = inputs, graph, next(self._keys)
        self._outputs = graph.capture(self._key, *inputs)

    def replay(self) -> list[Buffer]:
        """Run the graph, and return its outputs, which are the same buffers each time."""
        self._graph.replay(self._key, *self.inputs)
        return self._outputs

    def __del__(self) -> None:
        if hasattr(self, "_outputs"):
            self._graph.release_captured_graph(self._key)


Key = tuple[str, tuple[tuple[int, ...], ...]]  # a graph's name, and the shapes of its inputs


class Captures:
    """Captures graphs until that turns out to be impossible.

    Args:
        enabled: whether to try; the CPU has no graphs of its own.
    """

    MOST = 4  # graphs of `again`, which keep their working memory on the device

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._seen = set[Key]()
        self._captured = dict[Key, Captured]()  # the last used one last

    def capture(self, graph: Model, inputs: Sequence[Buffer]) -> Captured | None:
        """Capture a graph; if that is impossible, say so once and return None."""
        if not self.enabled:
            return None
        try:
            return Captured(graph, inputs)
        except (RuntimeError, ValueError) as error:
            self.enabled = False
            warnings.warn(
                f"MAX can't capture graphs here, so kernels are launched one by one, which is slower: {error}",
                WhisperWarning,
                stacklevel=2,
            )
            return None

    def again(self, name: str, graph: Model, inputs: Sequence[Buffer]) -> list[Buffer] | None:
        """Run a graph that has run on inputs of these shapes before, captured.

        Args:
            name: of the graph.
            graph: the graph.
            inputs: on the device; they are copied.

        Returns:
            Copies of the outputs; or None if it has not, or can't be captured.
        """
        key = name, tuple(tuple(buffer.shape) for buffer in inputs)
        if not self.enabled or key not in self._seen:
            self._seen.add(key)
            return None
        captured = self._captured.pop(key, None)
        if captured is None:
            captured = self.capture(graph, [copied(buffer) for buffer in inputs])
            if captured is None:
                return None
        self._captured[key] = captured
        for oldest in list(self._captured)[: -self.MOST]:
            del self._captured[oldest]
        for to, source in zip(captured.inputs, inputs, strict=True):
            to.inplace_copy_from(source)
        return [copied(output) for output in captured.replay()]


def copied(buffer: Buffer) -> Buffer:
    """Return a copy on the same device."""
    copy = Buffer(buffer.dtype, buffer.shape, buffer.device)
    copy.inplace_copy_from(buffer)
    return copy
