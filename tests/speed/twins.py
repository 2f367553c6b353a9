"""Ops by PyTorch, to be timed beside MAX's on the same device."""

from collections.abc import Callable

import numpy as np
import torch

from reference.flow.dataflow import evaluate
from reference.models.tensors import to_torch
from reference.ops import TABLE, Op
from reference.ops.composed import Composed
from reference.ops.torch_counterparts import counterpart, run_torch


def torch_device(device: str) -> torch.device:
    """PyTorch's name of "cpu" or "gpu"."""
    return torch.device("cuda" if device == "gpu" else "cpu")


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def by_torch(op: type[Op], arrays: list[np.ndarray], device: torch.device) -> Callable[[], object]:
    """The same in float32, as OpenAI Whisper holds all weights on a CPU; a composed op part by part, always on the CPU."""
    wide = [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]
    if issubclass(op, Composed):
        given = dict(zip(op.inputs, wide, strict=True))
        return lambda: evaluate(op.parts, given, lambda part, inputs: run_torch(TABLE[part], inputs))
    compute, tensors = counterpart(op), [to_torch(array).to(device) for array in wide]

    @torch.no_grad()
    def call() -> None:
        compute(*tensors)
        wait_for(device)

    return call
