"""All rows of the table as graphs of one module, compiled once for a device and shared by whoever runs ops."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import BufferType, DeviceRef, Graph, Module, TensorType

from maxwhisper.engine.compiled import compiling_for, cpu_level
from maxwhisper.engine.devices import find_device
from maxwhisper.engine.ops import Backend, backend_for, kernels
from reference.models.buffers import from_max, to_max
from reference.numerics.dtypes import DTYPES
from reference.ops import TABLE, Input, Op, max_adapters
from reference.ops.inputs import Example
from reference.ops.judge import Judged, judge
from reference.ops.row import Build


def resolve(build: Build, ops: Backend) -> Callable[..., Any]:
    """The function that a row's `build` names at this moment, be it replaced meanwhile.

    "ops.NAME" is one of the engine's ops; "adapters.NAME" one of `reference.ops.max_adapters`, and a
    function is as such: they take the engine's ops before all other arguments.
    """
    if not isinstance(build, str):
        return partial(build, ops)
    place, _, name = build.partition(".")
    return getattr(ops, name) if place == "ops" else partial(getattr(max_adapters, name), ops)


def build_module(
    rows: Mapping[str, type[Op]], device: DeviceRef, dtypes: Iterable[str] = tuple(DTYPES), ops: Backend | None = None
) -> Module:
    """A graph `op.dtype` for each row and dtype, all dimensions symbolic. A composed op's graph returns its parts."""
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
        with compiling_for(cpu_level()):  # as the model's graphs are
            self._graphs = InferenceSession(devices=[self.device]).load_all(module, custom_extensions=kernels())

    def run(self, op: str, dtype: str, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """What MAX computes; of a composed op, its last part."""
        return self.run_parts(op, dtype, arrays)[-1]

    def run_parts(self, op: str, dtype: str, arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
        """All parts of a composed op, in order."""
        if self.rows[op].on_host:
            return [resolve(self.rows[op].build, self.ops)(*arrays)]
        return self.execute(
            op, dtype, [to_max(array.copy(), self.device) for array in arrays]
        )  # copies, for some are written to

    def execute(self, op: str, dtype: str, buffers: Iterable[Buffer]) -> list[np.ndarray]:
        """The same from MAX's own buffers, of which those that the op works on in place are changed."""
        return [from_max(result) for result in self._graphs[f"{op}.{dtype}"].execute(*buffers)]

    def caller(self, op: str, dtype: str, arrays: Iterable[np.ndarray]) -> Callable[[], object]:
        """A function that runs an op once, to be timed."""
        if self.rows[op].on_host:
            return partial(resolve(self.rows[op].build, self.ops), *arrays)
        graph, buffers = self._graphs[f"{op}.{dtype}"], [to_max(array.copy(), self.device) for array in arrays]

        def call() -> None:
            graph.execute(*buffers)
            self.device.synchronize()

        return call

    def check(self, example: Example, arrays: list[np.ndarray] | None = None, name: str | None = None) -> Judged:
        """MAX's verdict and PyTorch's on an example: what they compute from its inputs, against float64.

        To see that differences are found: MAX computes from `arrays` in place of the inputs, by the row `name` in place of the op.
        """
        given = example.arrays()
        return self.judge(
            example, given, self.run_parts(name or example.op, example.dtype, given if arrays is None else arrays)
        )

    def judge(self, example: Example, given: list[np.ndarray], results: list[np.ndarray]) -> Judged:
        """The verdicts on all parts that an example's op returned for the example's inputs."""
        op = TABLE[example.op]
        whole = bool(example.kinds) and set(example.kinds.values()) <= {"integers", "small_integers"}
        return judge(op, example.dtype, given, results, exact=op.exact_sums and whole, device=self.name)


@cache
def suite(device_name: str = "cpu") -> Suite:
    """The whole table, compiled once per process."""
    return Suite(device_name)


def snippet(example: Example, device_name: str = "cpu") -> str:
    """Python that shows an example again."""
    imports = "from reference.ops.suite import suite\nfrom reference.ops.inputs import Example"
    return f"{imports}\nprint(*suite({device_name!r}).check({example!r}).verdicts, sep='\\n')"
