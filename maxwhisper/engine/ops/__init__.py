"""The operations that graphs are built from, in backends with equal signatures.

`cpu` builds them from this package's CPU kernels, `nvidia` those of the decoder from its kernels
for NVIDIA GPUs. `portable` builds them from MAX's operations and from small kernels that run on any
device. `backend_for` chooses one. Other code does not ask which device it is on.
"""

import functools
from pathlib import Path
from types import ModuleType

from max.driver import accelerator_api
from max.graph import DeviceRef, KernelLibrary

from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.engine.ops import cpu, nvidia, portable

Backend = ModuleType  # `cpu`, `nvidia` or `portable`


def backend_for(device: DeviceRef, dims: ModelDimensions | None = None) -> Backend:
    """Return the backend that is fastest on a device.

    Args:
        device: runs the operations.
        dims: the model's sizes. Without them, the backend takes any sizes.
    """
    if device.is_cpu():
        return cpu
    return nvidia if dims and nvidia.supports(dims) and accelerator_api() == "cuda" else portable


@functools.cache
def kernels() -> list[Path]:
    """Prepare the Mojo kernels, once per process (seconds), as `custom_extensions` of graphs."""
    library = KernelLibrary()
    library.load_paths([Path(__file__).parents[1] / "kernels"])
    return library.library_paths()
