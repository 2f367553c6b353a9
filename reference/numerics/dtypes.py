"""The dtypes that ops are proven in, and arrays of them handed to MAX and to PyTorch bit for bit."""

import ml_dtypes
import numpy as np
import torch
from max.driver import CPU, Buffer, Device
from max.dtype import DType

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_BITS = np.uint16  # NumPy's bfloat16 is an extension that neither MAX nor PyTorch takes


def unit_roundoff(dtype: np.dtype) -> float:
    """Half the distance from 1 to the next larger number: the largest relative error of one rounding to nearest."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def smallest_subnormal(dtype: np.dtype) -> float:
    """The smallest number above 0."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal)


def flushed_below(dtype: np.dtype) -> float:
    """Below this a number may be taken for 0. Fast code lets the processor flush subnormal numbers, and MAX's does: those of float32 and
    bfloat16, but not float16's, which are normal numbers of the float32 that it computes in.
    """
    return max(float(np.finfo(np.float32).tiny), smallest_subnormal(dtype))


def largest(dtype: np.dtype) -> float:
    """The largest finite number."""
    return float(ml_dtypes.finfo(dtype).max)


def to_max(array: np.ndarray, device: Device) -> Buffer:
    """The same bits in MAX."""
    array = np.ascontiguousarray(array)
    if array.dtype == DTYPES["bfloat16"]:
        return Buffer.from_numpy(array.view(_BITS)).view(DType.bfloat16).to(device)
    return Buffer.from_numpy(array).to(device)


def from_max(buffer: Buffer) -> np.ndarray:
    """The same bits in NumPy."""
    buffer = buffer.to(CPU())
    if buffer.dtype == DType.bfloat16:
        return buffer.view(DType.uint16).to_numpy().view(DTYPES["bfloat16"])
    return buffer.to_numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The same bits in PyTorch."""
    array = np.ascontiguousarray(array)
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    """The same bits in NumPy."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()
