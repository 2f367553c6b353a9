"""What this machine can do at most: multiply-adds in registers, and bytes from memory, by kernels that do nothing else."""

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
    """Operations and bytes per second."""

    operations: float
    bandwidth: float

    def floor(self, operations: float, n_bytes: float) -> float:
        """Seconds that so many operations and bytes from memory take at least."""
        return max(operations / self.operations, n_bytes / self.bandwidth)


class Machine:
    """Measures the CPU's ceilings, over and over, for a shared machine's come and go."""

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

    def ceilings(self) -> Ceilings:
        """As they are now."""
        few, count = Buffer.from_numpy(np.full(64, 0.5, np.float32)), Buffer.from_numpy(np.array([N_MULTIPLY_ADDS]))
        return Ceilings(
            2 * N_MULTIPLY_ADDS * n_cores() / _seconds(self._graphs["multiply_add"], few, count),
            4 * N_READ / _seconds(self._graphs["read"], self._numbers),
        )


def _seconds(graph: Model, *inputs: Buffer) -> float:
    begin = time.perf_counter()
    graph.execute(*inputs)
    return time.perf_counter() - begin
