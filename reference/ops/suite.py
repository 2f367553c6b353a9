"""All rows of the table as graphs of one module, compiled once for a device."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, Module, TensorType

from maxwhisper.engine.captured import Captures
from maxwhisper.engine.compiled import compiling_for, cpu_level
from maxwhisper.engine.devices import find_device
from maxwhisper.engine.ops import Backend, backend_for, kernels
from reference.numerics.dtypes import DTYPES
from reference.ops import TABLE, Input, Op, max_adapters
from reference.ops.buffers import from_max, to_max
from reference.ops.inputs import Example
from reference.ops.judge import Judged, judge
from reference.ops.row import Build


def resolve(build: Build, ops: Backend) -> Callable[..., Any]:
    """Return the function that a row's `build` names.

    The name is looked up at each call, so a function that was replaced meanwhile is used.

    Args:
        build: "ops.NAME" is one of the engine's ops, "adapters.NAME" one of
            `reference.ops.max_adapters`. Adapters, and functions, take the engine's ops first.
        ops: The engine's ops.
    """
    if not isinstance(build, str):
        return partial(build, ops)
    place, _, name = build.partition(".")
    return getattr(ops, name) if place == "ops" else partial(getattr(max_adapters, name), ops)


def build_module(
    rows: Mapping[str, type[Op]], device: DeviceRef, dtypes: Iterable[str] = tuple(DTYPES), ops: Backend | None = None
) -> Module:
    """Build a graph `op.dtype` for each row and dtype, with symbolic dimensions.

    A composed op's graph returns its parts.

    Args:
        rows: The rows by name.
        device: The device that graphs run on.
        dtypes: The dtypes to build, if the row has them.
        ops: The engine's ops; by default those for the device.
    """
    wanted = set(dtypes)
    module, ops = Module(), ops or backend_for(device)
    for name, op in rows.items():
        for dtype in () if op.on_host else (dtype for dtype in op.dtypes if dtype in wanted):
            types = [_type(spec, dtype, device) for spec in op.inputs.values()]
            with Graph(f"{name}.{dtype}", input_types=types, module=module, custom_extensions=kernels()) as graph:
                pairs = zip(op.inputs.values(), graph.inputs, strict=True)
                values = [value.buffer if spec.in_place else value.tensor for spec, value in pairs]
                graph.output(*op.outputs(partial(resolve, ops=ops), *values))
    return module


def _type(spec: Input, dtype: str, device: DeviceRef) -> TensorType | BufferType:
    shape = [int(dim) if dim.isdigit() else dim for dim in spec.shape.split()]
    return (BufferType if spec.in_place else TensorType)(DType[spec.dtype or dtype], shape, device)


class Suite:
    """Rows compiled for a device."""

    def __init__(
        self, device_name: str, rows: Mapping[str, type[Op]] = TABLE, dtypes: Iterable[str] = tuple(DTYPES)
    ) -> None:
        self.name = device_name
        self.rows = {name: op for name, op in rows.items() if device_name in op.devices}
        self.device = find_device(device_name)
        self.ops = backend_for(DeviceRef.from_device(self.device))
        module = build_module(self.rows, DeviceRef.from_device(self.device), dtypes, self.ops)
        with compiling_for(cpu_level()):  # as for the model's graphs
            self._graphs = InferenceSession(devices=[self.device]).load_all(module, custom_extensions=kernels())

    def run(self, op: str, dtype: str, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Run an op on MAX, and return its result; for a composed op, its last part."""
        return self.run_parts(op, dtype, arrays)[-1]

    def run_parts(self, op: str, dtype: str, arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Run an op on MAX, and return its parts in order; one, if it is not composed."""
        if self.rows[op].on_host:
            return [resolve(self.rows[op].build, self.ops)(*arrays)]
        # Arrays are copied, because the op writes to some of them.
        return self.execute(op, dtype, [to_max(array.copy(), self.device) for array in arrays])

    def execute(self, op: str, dtype: str, buffers: Iterable[Buffer]) -> list[np.ndarray]:
        """Run an op as `run_parts`, but on MAX's buffers.

        Buffers that the op works on in place are changed.
        """
        return [from_max(result) for result in self._graphs[f"{op}.{dtype}"].execute(*buffers)]

    def caller(self, op: str, dtype: str, arrays: Iterable[np.ndarray], n: int = 1) -> Callable[[], object]:
        """Return a function that runs an op, for timing.

        Args:
            op: The row's name.
            dtype: The dtype under test.
            arrays: The op's inputs.
            n: How many times it runs at each call. More than one at a time are captured on a GPU,
                because a call alone takes the host longer than most ops take the device.
        """
        if self.rows[op].on_host:
            function = partial(resolve(self.rows[op].build, self.ops), *arrays)
            return lambda: [function() for _ in range(n)]
        graph, buffers = self._graphs[f"{op}.{dtype}"], [to_max(array.copy(), self.device) for array in arrays]
        run: Callable[[], object] = partial(graph.execute, *buffers)
        if n > 1 and not self.device.is_host and (captured := Captures(enabled=True).capture(graph, buffers)):
            run = captured.replay

        def call() -> None:
            for _ in range(n):
                run()
            self.device.synchronize()

        return call

    def check(self, example: Example, arrays: list[np.ndarray] | None = None, name: str | None = None) -> Judged:
        """Run an example on MAX and PyTorch, and compare their results with float64.

        To test that differences are found, `arrays` and `name` let MAX compute something else.

        Args:
            example: The example.
            arrays: MAX's inputs, if they differ from the example's.
            name: The row that MAX runs, if it differs from the example's.
        """
        inputs = example.arrays()
        results = self.run_parts(name or example.op, example.dtype, inputs if arrays is None else arrays)
        return self.judge(example, inputs, results)

    def judge(self, example: Example, inputs: list[np.ndarray], results: list[np.ndarray]) -> Judged:
        """Judge the results of an example's op.

        Args:
            example: The example.
            inputs: Its inputs.
            results: MAX's results for these inputs, one for each part.
        """
        op = TABLE[example.op]
        integers = bool(example.kinds) and set(example.kinds.values()) <= {"integers", "small_integers"}
        return judge(op, example.dtype, inputs, results, exact=op.exact_sums and integers, device=self.name)


@cache
def suite(device_name: str = "cpu", dtypes: tuple[str, ...] = tuple(DTYPES)) -> Suite:
    """Compile the whole table, once per process."""
    return Suite(device_name, dtypes=dtypes)


def snippet(example: Example, device_name: str = "cpu") -> str:
    """Return Python code that runs an example again."""
    imports = "from reference.ops.suite import suite\nfrom reference.ops.inputs import Example"
    return f"{imports}\nprint(*suite({device_name!r}).check({example!r}).verdicts, sep='\\n')"
