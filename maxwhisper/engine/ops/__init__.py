"""The operations that graphs are built from, in two backends with equal signatures.

`cpu` builds them from our own CPU kernels, `portable` from MAX's operations and from small kernels
that run on any device. `backend_for` chooses one; nothing else asks which device it is on.
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
    """Return the `custom_extensions` of every graph: our Mojo kernels, prepared once per process (seconds)."""
    library = KernelLibrary()
    library.load_paths([Path(__file__).parents[1] / "kernels"])
    return library.library_paths()
