"""CUDA kernels without a GPU: their PTX, interpreted on NumPy for every thread of a grid."""

from reference.ptx.errors import (
    Deadlock,
    KernelError,
    MisalignedAddress,
    OutOfBounds,
    Race,
    UninitializedRead,
)
from reference.ptx.interpreter import launch
from reference.ptx.memory import Memory
from reference.ptx.program import Kernel
from reference.ptx.stream import Stream

__all__ = [
    "Deadlock",
    "Kernel",
    "KernelError",
    "Memory",
    "MisalignedAddress",
    "OutOfBounds",
    "Race",
    "Stream",
    "UninitializedRead",
    "launch",
]
