"""Where graphs run: the CPU's cores, a GPU that is here, or, to compile only, one that is not."""

import os
import re

from max.driver import (
    CPU,
    Accelerator,
    Device,
    accelerator_count,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)

from maxwhisper.errors import OptionError

_max_has_started = False


def find_device(name: str | Device) -> Device:
    """The device "cpu", "gpu", or "cuda", another name of that; "cuda:1" is the second GPU. A device is taken as it is.

    Raises OptionError for other names, and where MAX finds no such GPU.
    """
    global _max_has_started
    if isinstance(name, Device):
        return name
    if not re.fullmatch(r"cpu|gpu|cuda(:\d+)?", name):
        raise OptionError(f"device {name!r} is neither 'cpu' nor 'gpu'")
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= accelerator_count():
        which = f"GPU {number}" if number else "GPU"
        raise OptionError(f"MAX finds no {which} here; use the device 'cpu'")
    _max_has_started = True
    return CPU() if name == "cpu" else Accelerator(number)


def set_num_threads(n: int) -> None:
    """Use `n` threads on the CPU; to be called before the first model is loaded, by the thread that loads it. All cores by default.

    MAX starts one thread for each core that it may use, so this leaves it that many. (`InferenceSession` has an argument for
    the number of threads, but MAX 26.7 aborts the process when it is used: `tests/test_max_defects.py`.)

    Raises OptionError where a model has been loaded already, there are fewer cores, or the system can't limit them.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise OptionError("the number of threads can't be chosen on this system, only on Linux")
    cores = sorted(os.sched_getaffinity(0))
    if not 0 < n <= len(cores):
        raise OptionError(f"{n} threads can't be used on {len(cores)} cores; give 1 to {len(cores)}")
    if _max_has_started:
        raise OptionError("the number of threads must be set before the first model is loaded")
    os.sched_setaffinity(0, cores[:n])


def absent_gpu(architecture: str) -> Device:
    """A stand-in for an NVIDIA GPU, "sm_90" for example, that need not be here: graphs compile for it, and don't run.

    MAX then sees no other GPU in this process. Raises OptionError where the name is none, or MAX has used a device already.
    """
    global _max_has_started
    if not re.fullmatch(r"sm_\d+a?", architecture):
        raise OptionError(f"{architecture!r} is no NVIDIA architecture; sm_90 is one")
    if _max_has_started:
        raise OptionError("the GPU must be chosen before anything is loaded or compiled")
    set_virtual_device_api("cuda")
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(1)
    _max_has_started = True
    return Accelerator()
