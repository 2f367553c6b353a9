"""The operations that graphs are built from, in two backends with equal signatures.

`cpu` builds them from this package's CPU kernels. `portable` builds them from MAX's operations and
from small kernels that run on any device. `backend_for` chooses one. Other code does not ask which
device it is on.
"""

import functools
from pathlib import Path
from types import ModuleType

from max.graph import DeviceRef, KernelLibrary

from maxwhisper.engine.ops import cpu, portable

Backend = ModuleType  # `cpu` or `portable`


def backend_for(device: DeviceRef) -> Backend:
    """Return the backend that is fastest on a device."""
    return cpu if device.is_cpu() else portable


@functools.cache
def kernels() -> list[Path]:
    """Prepare the Mojo kernels, once per process (seconds), as `custom_extensions` of graphs."""
    library = KernelLibrary()
    library.load_paths([Path(__file__).parents[1] / "kernels"])
    return library.library_paths()
