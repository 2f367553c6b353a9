"""PyTorch counterparts of ops, timed on the same device as MAX's."""

from collections.abc import Callable

import numpy as np
import torch

from reference.flow.dataflow import evaluate
from reference.ops import TABLE, Op
from reference.ops.composed import Composed
from reference.ops.tensors import to_torch
from reference.ops.torch_counterparts import counterpart, run_torch


def torch_device(device: str) -> torch.device:
    """Return PyTorch's device for "cpu" or "gpu"."""
    return torch.device("cuda" if device == "gpu" else "cpu")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def pytorch_caller(op: type[Op], arrays: list[np.ndarray], device: torch.device) -> Callable[[], object]:
    """Return a function that computes an op with PyTorch in float32.

    OpenAI Whisper stores all weights in float32 on a CPU, so float16 arrays are widened. A composed
    op is computed part by part, always on the CPU.
    """
    float32 = [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]
    if issubclass(op, Composed):
        inputs_by_name = dict(zip(op.inputs, float32, strict=True))
        return lambda: evaluate(op.parts, inputs_by_name, lambda part, inputs: run_torch(TABLE[part], inputs))
    compute, tensors = counterpart(op), [to_torch(array).to(device) for array in float32]

    @torch.no_grad()
    def call() -> None:
        compute(*tensors)
        synchronize(device)

    return call
