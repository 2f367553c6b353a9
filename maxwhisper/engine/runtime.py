"""A checkpoint's graphs, compiled for one device, with its weights beside them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from max.driver import Buffer, Device
from max.engine import InferenceSession

from maxwhisper.checkpoint import Checkpoint, ModelDimensions
from maxwhisper.console import say
from maxwhisper.engine.compiled import Target, compile_graphs, cpu_level, graphs_for
from maxwhisper.engine.devices import find_device, require_same_process
from maxwhisper.engine.ops import Backend
from maxwhisper.engine.quantization import as_stored
from maxwhisper.engine.timer_slack import late_timers


class Runtime:
    """Runs graphs of `maxwhisper.engine.graphs` by their names.

    checkpoint: the weights; device: as in `maxwhisper.load_model`; capture: names of activations that graphs return as well, to be found in
    `activations` after the call that computed them; compute_type: as in `maxwhisper.load_model`; backend: what builds operations
    (`maxwhisper.engine.ops`), the device's own by default.

    Raises OptionError for a compute type that is none, or a device that is not there, WhisperError where MAX can't compile the graphs, or
    can't run, as in a process that was forked from one where it does. So does whatever computes, in such a process.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: object = "cpu",
        capture: Sequence[str] = (),
        compute_type: str = "float32",
        backend: Backend | None = None,
    ) -> None:
        self.dims: ModelDimensions = checkpoint.dims
        self.compute_type = compute_type
        self.device: Device = find_device(device)
        target, session = (
            Target.of(checkpoint, self.device, cpu_level(), compute_type, backend),
            InferenceSession(devices=[self.device]),
        )
        self.dtypes = target.dtypes
        self.activations: dict[str, Buffer] = {}
        # Held here for as long as the graphs that may read them in place; copies, so that the file's bytes can go.
        self.weights = as_stored(checkpoint.weights, self.dtypes.weights)
        with _notice(
            f"compiling Whisper's graphs for the {'cpu' if self.device.is_host else 'gpu'}, which takes minutes, but only once…"
        ):
            compiled, self.captured = (
                compile_graphs(target, session, capture) if capture else (graphs_for(target, session), {})
            )
        self.graphs = session.init_all(compiled, weights_registry=self.weights)

    def has_graph(self, name: str) -> bool:
        """Whether this device, with these activations captured, has a graph of that name."""
        return name in self.graphs

    def run(self, graph: str, *inputs: Buffer) -> list[Buffer]:
        """A graph's own outputs; activations that are captured besides are left in `activations`."""
        require_same_process()
        with late_timers():
            outputs = self.graphs[graph].execute(*inputs)
        names = self.captured.get(graph, [])
        n_own = len(outputs) - len(names)
        self.activations.update(zip(names, outputs[n_own:]))
        return outputs[:n_own]

    def to_device(self, array: np.ndarray) -> Buffer:
        """A copy of an array where the graphs are."""
        require_same_process()
        return Buffer.from_numpy(array).to(self.device)


@contextmanager
def _notice(message: str, after: float = 3.0) -> Iterator[None]:
    """Print a message if what is done takes long: compiled graphs come from MAX's cache in no time, or are compiled in minutes."""
    timer = threading.Timer(after, say, (message, "stderr"))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
