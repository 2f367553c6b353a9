"""All rows of the table as graphs of one module, compiled once for a device and shared by whoever runs ops."""

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import torch
from max.driver import Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, Module, TensorType

from maxwhisper.model import find_device
from reference.bounds import Approx
from reference.compare import Verdict, compare
from reference.dtypes import DTYPES, from_max, from_torch, to_max, to_torch
from reference.inputs import Example
from reference.table import TABLE, Op


def build_module(rows: Mapping[str, type[Op]], device: DeviceRef) -> Module:
    """A graph `op.dtype` for each row and dtype, all dimensions symbolic."""
    module = Module()
    for name, op in rows.items():
        for dtype in op.dtypes:
            types = [
                TensorType(DType[spec.dtype or dtype], [int(dim) if dim.isdigit() else dim for dim in spec.shape.split()], device)
                for spec in op.inputs.values()
            ]
            with Graph(f"{name}.{dtype}", input_types=types, module=module) as graph:
                graph.output(op.build(*(value.tensor for value in graph.inputs)))
    return module


class Suite:
    """Rows compiled for a device."""

    def __init__(self, device: Device, rows: Mapping[str, type[Op]] = TABLE) -> None:
        self.device = device
        self.rows = rows
        module = build_module(rows, DeviceRef.from_device(device))
        self._graphs = InferenceSession(devices=[device]).load_all(module)

    def run(self, op: str, dtype: str, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """What MAX computes."""
        (result,) = self._graphs[f"{op}.{dtype}"].execute(*(to_max(array, self.device) for array in arrays))
        return from_max(result)

    def check(self, example: Example, arrays: list[np.ndarray] | None = None, name: str | None = None) -> tuple[Verdict, Verdict]:
        """MAX's verdict and PyTorch's on an example: what they compute from its inputs against float64.

        To see that differences are found: `arrays` are computed from in place of the inputs, by the row `name` in place of the op.
        """
        op = TABLE[example.op]
        given = example.arrays()
        used = given if arrays is None else arrays
        ours, theirs = self.run(name or example.op, example.dtype, used), run_torch(op, used)
        expected, dtype = expect(op, example, given), DTYPES[op.output or example.dtype]
        return compare(ours, expected, dtype, theirs if arrays is None else None), compare(theirs, expected, dtype)


def expect(op: type[Op], example: Example, arrays: Iterable[np.ndarray]) -> Approx:
    """The float64 value of an op on these inputs, and how far a sound implementation may be from it.

    Sums of small integers are exact in any order, so that nothing but the result's own rounding may be seen.
    """
    exact = [array.astype(np.float64) if array.dtype.kind != "i" else array for array in arrays]
    roundings = op.roundings(example.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = op.bound(roundings, *exact)
        if (
            op.exact_sums
            and example.kinds
            and roundings.store == roundings.accumulate
            and set(example.kinds.values()) <= {"integers", "small_integers"}
        ):
            return Approx.exact(expected.value.astype(DTYPES[op.output or example.dtype]).astype(np.float64))
    return expected


def run_torch(op: type[Op], arrays: Iterable[np.ndarray]) -> np.ndarray:
    """What PyTorch computes."""
    with torch.no_grad():
        return from_torch(op.torch(*map(to_torch, arrays)))


@cache
def suite(device_name: str = "cpu") -> Suite:
    """The whole table, compiled once per process."""
    return Suite(find_device(device_name))


def snippet(example: Example) -> str:
    """Python that shows an example again."""
    return f"from reference.suite import suite\nfrom reference.inputs import Example\nprint(*suite().check({example!r}), sep='\\n')"
