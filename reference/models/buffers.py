"""NumPy arrays handed to MAX and back, bit for bit."""

import numpy as np
from max.driver import CPU, Buffer, Device
from max.dtype import DType

from reference.numerics.dtypes import DTYPES


def to_max(array: np.ndarray, device: Device) -> Buffer:
    """Copy an array to a device. MAX takes no bfloat16 from NumPy, so its bits travel as uint16."""
    array = np.ascontiguousarray(array)
    if array.dtype == DTYPES["bfloat16"]:
        return Buffer.from_numpy(array.view(np.uint16)).view(DType.bfloat16).to(device)
    return Buffer.from_numpy(array).to(device)


def from_max(buffer: Buffer) -> np.ndarray:
    """Return a buffer's numbers in NumPy, wherever it lies."""
    buffer = buffer.to(CPU())
    if buffer.dtype == DType.bfloat16:
        return buffer.view(DType.uint16).to_numpy().view(DTYPES["bfloat16"])
    return buffer.to_numpy()
