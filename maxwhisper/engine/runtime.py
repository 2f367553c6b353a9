"""A checkpoint's weights and its compiled graphs, on one device."""

from collections.abc import Sequence

import numpy as np
from max.driver import Buffer, Device
from max.engine import InferenceSession

from maxwhisper.checkpoint import Checkpoint, ModelDimensions
from maxwhisper.console import explained
from maxwhisper.engine.captured import Captures
from maxwhisper.engine.compiled import Target, compile_graphs, cpu_level, graphs_for
from maxwhisper.engine.decoder_state import DecoderStates
from maxwhisper.engine.devices import find_device, require_same_process
from maxwhisper.engine.ops import Backend
from maxwhisper.engine.quantization import convert_weights
from maxwhisper.engine.timer_slack import relaxed_timers


class Runtime:
    """Runs the graphs of `maxwhisper.engine.graphs` by their names.

    Args:
        checkpoint: supplies the weights.
        device: as in `maxwhisper.load_model`.
        capture: names of activations that the graphs also return. Each is in `activations` after
            the call that computed it.
        compute_type: as in `maxwhisper.load_model`.
        backend: builds the operations (`maxwhisper.engine.ops`); the device's own by default.

    Raises:
        OptionError: if the compute type is unknown or the device does not exist.
        WhisperError: if MAX can't compile the graphs, or can't run because it was started before
            this process was forked. `run` and `to_device` raise it in such a process, too.
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
        self.device: Device = find_device(device)
        target = Target.of(checkpoint, self.device, cpu_level(), compute_type, backend)
        session = InferenceSession(devices=[self.device])
        self.dtypes, self.backend, self.compute_type = target.dtypes, target.backend, target.compute_type
        self.activations: dict[str, Buffer] = {}
        # The graphs may read them in place, so they must live as long as the graphs.
        self.weights = convert_weights(checkpoint.stored, self.dtypes.weights)
        name = "cpu" if self.device.is_host else "gpu"
        ahead = "" if self.device.is_host else "; `maxwhisper compile` does it ahead of time"
        with explained(f"compiling Whisper's graphs for the {name}, which takes minutes, but only once{ahead}…"):
            compiled, self.captured = (
                compile_graphs(target, session, capture) if capture else (graphs_for(target, session), {})
            )
        self.graphs = session.init_all(compiled, weights_registry=self.weights)
        self.captures = Captures(enabled=not self.device.is_host)
        self.decoder_states = DecoderStates()

    def has_graph(self, name: str) -> bool:
        """Whether this device, with these activations captured, has a graph of that name."""
        return name in self.graphs

    def run(self, graph: str, *inputs: Buffer) -> list[Buffer]:
        """Run a graph and return its own outputs; captured activations go to `activations`."""
        require_same_process()
        with relaxed_timers():
            outputs = self.graphs[graph].execute(*inputs)
        names = self.captured.get(graph, [])
        n_own = len(outputs) - len(names)
        self.activations.update(zip(names, outputs[n_own:]))
        return outputs[:n_own]

    def run_again(self, graph: str, *inputs: Buffer) -> list[Buffer]:
        """Do what `run` does, for a graph that runs often on inputs of the same shapes."""
        if graph not in self.captured:
            require_same_process()
            if (outputs := self.captures.again(graph, self.graphs[graph], inputs)) is not None:
                return outputs
        return self.run(graph, *inputs)

    def to_device(self, array: np.ndarray) -> Buffer:
        """Copy an array to the device."""
        require_same_process()
        return Buffer.from_numpy(array).to(self.device)
