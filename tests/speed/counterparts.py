"""PyTorch counterparts of ops, timed on the same device as MAX's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from reference.flow.dataflow import evaluate
from reference.ops import TABLE, Op
from reference.ops.composed import Composed
from reference.ops.tensors import to_torch
from reference.ops.torch_counterparts import counterpart


def torch_device(device: str) -> torch.device:
    """Return PyTorch's device for "cpu" or "gpu"."""
    return torch.device("cuda" if device == "gpu" else "cpu")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def pytorch_caller(op: type[Op], arrays: list[np.ndarray], device: torch.device, n: int = 1) -> Callable[[], object]:
    """Return a function that computes an op with PyTorch in float32, a composed op part by part.

    OpenAI Whisper stores all weights in float32 on a CPU, so float16 arrays are widened.

    Args:
        op: the row.
        arrays: the op's inputs.
        device: computes it.
        n: how many times it is computed at each call; more than one at a time are captured on a
            GPU, as in `Suite.caller`.
    """
    float32 = [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]
    tensors = [to_torch(array).to(device) for array in float32]
    compute: Callable[..., object] = partial(_composed, op) if issubclass(op, Composed) else counterpart(op)

    @torch.no_grad()
    def once() -> None:
        compute(*tensors)

    run = _captured(once) if n > 1 and device.type == "cuda" else once

    def call() -> None:
        for _ in range(n):
            run()
        synchronize(device)

    return call


def _composed(op: type[Composed], *tensors: torch.Tensor) -> object:
    """Compute the parts of a composed op one after the other."""
    by_name: Any = dict(zip(op.inputs, tensors, strict=True))

    def compute(part: str, inputs: Any) -> Any:
        return counterpart(TABLE[part])(*inputs)

    return evaluate(op.parts, by_name, compute)


def _captured(once: Callable[[], object]) -> Callable[[], object]:
    """Return a function that replays what `once` does on a GPU; `once` itself if that fails."""
    try:
        once()  # allocates what can't be allocated while capturing
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
    except RuntimeError:
        return once
    return graph.replay
