"""NumPy arrays handed to PyTorch and back, bit for bit."""

import numpy as np
import torch

from reference.numerics.dtypes import DTYPES


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Return a tensor of the same bits. PyTorch takes no bfloat16 from NumPy, so its bits travel as int16."""
    array = np.ascontiguousarray(array)
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of the same bits, wherever the tensor lies."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()
