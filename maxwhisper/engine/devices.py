"""Where graphs run: the CPU's cores, a GPU that is here, or, to compile only, one that is not."""

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
_max_started_in: int | None = None  # the process


def find_device(device: object) -> Device:
    """The device "cpu", "gpu", or "cuda", another name of that; "cuda:1", or the number 1, is the second GPU. What is named so, a
    `torch.device` for one, counts as its name; a device of MAX's is taken as it is.

    Raises OptionError for other names, and where MAX finds no such GPU; WhisperError where MAX can't run after a fork.
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
    """Raise WhisperError where MAX was started before this process was forked: its threads are not here, and it would wait forever."""
    if _max_started_in not in (None, os.getpid()):
        raise WhisperError(
            "a model was loaded before this process was forked, and MAX can't run here; fork before the first model is loaded, and load "
            "it in the new process, or start that by multiprocessing's 'spawn'"
        )


def _start_max() -> None:
    global _max_started_in
    require_same_process()
    _max_started_in = os.getpid()


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
    if _max_started_in is not None:
        raise OptionError("the number of threads must be set before the first model is loaded")
    os.sched_setaffinity(0, cores[:n])


def absent_gpu(architecture: str) -> Device:
    """A stand-in for an NVIDIA GPU, "sm_90" for example, that need not be here: graphs compile for it, and don't run.

    MAX then sees no other GPU in this process. Raises OptionError where the name is none, or MAX has used a device already.
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
