"""The activations of a port to MAX: of every module, or of the values that it records."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from max.driver import CPU, Buffer, Device
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, TensorValue
from max.nn.layer import Module, add_layer_hook
from max.nn.layer import layer as layers

from reference.ops.buffers import from_max, to_max
from reference.port.match import PortError


class Recorder:
    """Collects values of a graph by name, so that the graph can also return them."""

    def __init__(self) -> None:
        self.values: dict[str, TensorValue] = {}

    def __call__(self, name: str, value: TensorValue) -> TensorValue:
        """Record a value, and return it.

        Raises:
            PortError: There is one of this name.
        """
        if name in self.values:
            raise PortError(f"{name!r} is recorded twice; give each activation a name of its own")
        self.values[name] = value
        return value

    def read(self, outputs: Sequence[Buffer]) -> dict[str, np.ndarray]:
        """Return the recorded activations from the graph's outputs, of which they are the last."""
        return {name: from_max(buffer) for name, buffer in zip(self.values, outputs[-len(self.values) :], strict=True)}

    @contextmanager
    def modules(self, root: Module) -> Iterator[None]:
        """Record the output of every module under `root` by its path, while a graph is built.

        Of a module that is called more than once, further calls have a number: `norm(2)`.
        """
        paths, calls = {id(module): path.rstrip(".") for path, module in root.named_modules()}, dict[str, int]()

        def record(module: Any, args: object, kwargs: object, outputs: Any) -> None:
            if (path := paths.get(id(module))) and isinstance(outputs, TensorValue):
                calls[path] = calls.get(path, 0) + 1
                self(path if calls[path] == 1 else f"{path}({calls[path]})", outputs)

        add_layer_hook(record)
        try:
            yield
        finally:
            layers._LAYER_HOOKS.remove(record)  # `clear_hooks` would remove the program's own, too


def capture(
    module: Module, *inputs: np.ndarray, weights: Mapping[str, Any] | None = None, device: Device | None = None
) -> dict[str, np.ndarray]:
    """Run a module of `max.nn`, and return the output of every module in it by its path.

    Args:
        module: The port; its weights are those of `load_state_dict`, or given.
        inputs: Its arguments.
        weights: By name, instead of the module's own.
        device: The CPU by default.
    """
    device = device or CPU()
    ref, record = DeviceRef.from_device(device), Recorder()
    buffers = [to_max(array, device) for array in inputs]
    types = [TensorType(buffer.dtype, buffer.shape, ref) for buffer in buffers]
    with Graph("port", input_types=types) as graph, record.modules(module):
        outputs = module(*(value.tensor for value in graph.inputs))
        own = [x for x in (outputs if isinstance(outputs, (tuple, list)) else [outputs]) if isinstance(x, TensorValue)]
        graph.output(*own, *record.values.values())
    registry = dict(module.state_dict() if weights is None else weights)
    model = InferenceSession(devices=[device]).load(graph, weights_registry=registry)
    return record.read(model.execute(*buffers))
