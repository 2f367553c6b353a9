"""Peak rates of this machine: multiply-adds in registers and bytes read from memory.

Both are measured by kernels that do nothing else.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, KernelLibrary, Module, TensorType, ops

from maxwhisper.system import n_cores

N_MULTIPLY_ADDS = 2_000_000_000  # on each core
N_READ = 1 << 26  # float32 numbers: more than any cache holds


@dataclass(frozen=True)
class Ceilings:
    """Peak rates of a machine."""

    operations: float  # per second
    bandwidth: float  # bytes per second

    def roofline_seconds(self, operations: float, n_bytes: float) -> float:
        """Return the shortest time in which both peak rates allow this work."""
        return max(operations / self.operations, n_bytes / self.bandwidth)


class CeilingMeter:
    """Measures the CPU's peak rates, repeatedly because a shared machine's load changes them."""

    def __init__(self) -> None:
        library = KernelLibrary()
        library.load_paths([Path(__file__).parent / "kernels"])
        kernels, module, device = library.library_paths(), Module(), DeviceRef.CPU()
        sums = TensorType(DType.float32, [n_cores()], device)
        numbers, count = TensorType(DType.float32, ["n"], device), TensorType(DType.int64, [1], device)
        for name, inputs in (("multiply_add", [numbers, count]), ("read", [numbers])):
            with Graph(name, input_types=inputs, module=module, custom_extensions=kernels) as graph:
                graph.output(*ops.custom(f"ceiling.{name}", device, [value.tensor for value in graph.inputs], [sums]))
        self._graphs: dict[str, Model] = InferenceSession(devices=[CPU()]).load_all(module, custom_extensions=kernels)

    @cached_property
    def _numbers(self) -> Buffer:
        return Buffer.from_numpy(np.ones(N_READ, np.float32))

    def measure(self) -> Ceilings:
        """Measure the current peak rates."""
        vectors, count = Buffer.from_numpy(np.full(64, 0.5, np.float32)), Buffer.from_numpy(np.array([N_MULTIPLY_ADDS]))
        return Ceilings(
            2 * N_MULTIPLY_ADDS * n_cores() / _seconds(self._graphs["multiply_add"], vectors, count),
            4 * N_READ / _seconds(self._graphs["read"], self._numbers),
        )


def _seconds(graph: Model, *inputs: Buffer) -> float:
    begin = time.perf_counter()
    graph.execute(*inputs)
    return time.perf_counter() - begin
