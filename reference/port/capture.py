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
from reference.port.errors import PortError


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


class Instrumented:
    """A module of `max.nn`, compiled so that it returns the output of every module in it.

    Args:
        module: The port.
        types: Of its arguments.
        weights: What to load into it by `load_state_dict`, if it has not loaded its weights.
        device: The CPU by default.
    """

    def __init__(
        self,
        module: Module,
        types: Sequence[TensorType],
        weights: Mapping[str, Any] | None = None,
        device: Device | None = None,
    ) -> None:
        self._device, self._record = device or CPU(), Recorder()
        if weights is not None:
            try:
                module.load_state_dict(dict(weights))
            except ValueError as error:
                raise PortError(f"the port can't load these weights: {str(error).partition(chr(10))[0]}") from error
        with Graph("port", input_types=types) as graph, self._record.modules(module):
            outputs = module(*(value.tensor for value in graph.inputs))
            own = outputs if isinstance(outputs, (tuple, list)) else [outputs]
            if len(own) == 1 and isinstance(own[0], TensorValue):
                self._record("output", own[0])
            graph.output(*(x for x in own if isinstance(x, TensorValue)), *self._record.values.values())
        session = InferenceSession(devices=[self._device])
        self._model = session.load(graph, weights_registry=module.state_dict())

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run it, and return each module's output by its path."""
        return self._record.read(self._model.execute(*(to_max(array, self._device) for array in inputs)))


def capture(
    module: Module, *inputs: np.ndarray, weights: Mapping[str, Any] | None = None, device: Device | None = None
) -> dict[str, np.ndarray]:
    """Run a module of `max.nn` once, and return the output of every module in it by its path.

    Args:
        module: The port.
        inputs: Its arguments.
        weights: As in `Instrumented`.
        device: As in `Instrumented`.
    """
    device = device or CPU()
    buffers = [to_max(array, device) for array in inputs]
    types = [TensorType(buffer.dtype, buffer.shape, DeviceRef.from_device(device)) for buffer in buffers]
    return Instrumented(module, types, weights, device)(*inputs)
