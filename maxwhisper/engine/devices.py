"""Devices: the CPU, a GPU of this machine, or a virtual GPU that graphs are only compiled for."""

import os
import re
from typing import SupportsIndex

from max.driver import (
    CPU,
    Accelerator,
    Device,
    accelerator_count,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)

from maxwhisper.errors import OptionError, WhisperError

_NAMES = re.compile(r"cpu(:0)?|(gpu|cuda)(:\d+)?")
_max_started_in: int | None = None  # the id of the process


def find_device(device: object) -> Device:
    """Return a device by its name.

    Args:
        device: "cpu", or "gpu" or its synonym "cuda". "cuda:1" or the number 1 is the second GPU.
            An object that prints as such a name, such as a `torch.device`, counts as its name. A
            device of MAX is returned unchanged.

    Raises:
        OptionError: if the name is unknown, or MAX finds no such GPU.
        WhisperError: if MAX can't run because it was started before this process was forked.
    """
    if isinstance(device, Device):
        _start_max()
        return device
    name = f"cuda:{device.__index__()}" if isinstance(device, SupportsIndex) else str(device)
    if not _NAMES.fullmatch(name):
        raise OptionError(f"device {device!r} is neither 'cpu' nor 'gpu'")
    require_same_process()
    kind, _, number = name.partition(":")
    if kind != "cpu" and int(number or 0) >= accelerator_count():
        which = f"GPU {int(number)}" if int(number or 0) else "GPU"
        raise OptionError(f"MAX finds no {which} here; use the device 'cpu'")
    _start_max()
    return CPU() if kind == "cpu" else Accelerator(int(number or 0))


def require_same_process() -> None:
    """Check that this process was not forked after MAX was started.

    A fork lacks MAX's threads, so a call of MAX would wait forever.

    Raises:
        WhisperError: if it was.
    """
    if _max_started_in not in (None, os.getpid()):
        raise WhisperError(
            "a model was loaded before this process was forked, and MAX can't run here; "
            "fork before the first model is loaded, and load it in the new process, "
            "or start that by multiprocessing's 'spawn'"
        )


def _start_max() -> None:
    global _max_started_in
    require_same_process()
    _max_started_in = os.getpid()


def set_num_threads(n: int) -> None:
    """Set the number of threads on the CPU; the default is one for each core.

    Call this before the first model is loaded, in the thread that loads it. MAX starts one thread
    for each core that it may use, so this limits the cores of the process. (`InferenceSession` has
    an argument for the number of threads, but MAX 26.7 aborts the process if it is used:
    `tests/test_max_defects.py`.)

    Args:
        n: the number of threads, at most the number of cores.

    Raises:
        OptionError: if a model has been loaded already, there are fewer cores, or the system can't
            limit them.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise OptionError("the number of threads can't be chosen on this system, only on Linux")
    cores = sorted(os.sched_getaffinity(0))
    if not 0 < n <= len(cores):
        raise OptionError(f"{n} threads can't be used on {len(cores)} cores; give 1 to {len(cores)}")
    if _max_started_in is not None:
        raise OptionError("the number of threads must be set before the first model is loaded")
    os.sched_setaffinity(0, cores[:n])


def absent_gpu(architecture: str) -> Device:
    """Return a virtual NVIDIA GPU, which graphs can be compiled for but not run on.

    The machine needs no GPU. Afterwards MAX sees no other GPU in this process.

    Args:
        architecture: of the GPU, such as "sm_90".

    Raises:
        OptionError: if the architecture's name is malformed, or MAX has used a device already.
    """
    if not re.fullmatch(r"sm_\d+a?", architecture):
        raise OptionError(f"{architecture!r} is no NVIDIA architecture; sm_90 is one")
    if _max_started_in is not None:
        raise OptionError("the GPU must be chosen before anything is loaded or compiled")
    set_virtual_device_api("cuda")
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(1)
    _start_max()
    return Accelerator()
