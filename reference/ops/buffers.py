"""Exact conversion of NumPy arrays to MAX buffers and back."""

import numpy as np
from max.driver import CPU, Buffer, Device
from max.dtype import DType

from reference.numerics.dtypes import DTYPES


def to_max(array: np.ndarray, device: Device) -> Buffer:
    """Copy an array to a device.

    MAX accepts no bfloat16 arrays from NumPy, so their bits are passed as uint16.
    """
    array = np.ascontiguousarray(array)
    if array.dtype == DTYPES["bfloat16"]:
        return Buffer.from_numpy(array.view(np.uint16)).view(DType.bfloat16).to(device)
    return Buffer.from_numpy(array).to(device)


def from_max(buffer: Buffer) -> np.ndarray:
    """Return a buffer on any device as a NumPy array."""
    buffer = buffer.to(CPU())
    if buffer.dtype == DType.bfloat16:
        return buffer.view(DType.uint16).to_numpy().view(DTYPES["bfloat16"])
    return buffer.to_numpy()
