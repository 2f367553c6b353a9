"""Exact conversion of NumPy arrays to PyTorch tensors and back."""

import numpy as np
import torch

from reference.numerics.dtypes import DTYPES


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Return a tensor with the bits of an array.

    PyTorch accepts no bfloat16 arrays from NumPy, so their bits are passed as int16.
    """
    array = np.ascontiguousarray(array)
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    """Return an array with the bits of a tensor on any device."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()
