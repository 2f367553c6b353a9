"""Run a program in its own process, so that its memory is its own and runs can be interleaved."""

import os
import pickle
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tests.speed.programs import PROGRAMS, RunSettings

SERVE = f"from {__name__} import serve; serve()"


@dataclass(frozen=True)
class Run:
    """One transcription."""

    seconds: float  # from samples in memory to text
    text: str


class Worker:
    """A process in which a program has loaded its model. `problem` says why if it could not."""

    def __init__(self, program: str, settings: RunSettings, samples: np.ndarray) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.problem = self._request((program, settings, samples))

    def run(self) -> Run | str:
        """Transcribe once. If that fails, return the reason."""
        return self._request("run")

    def stop(self) -> float:
        """End the process and return its peak memory in MB."""
        peak = self._request("stop")
        self._process.wait()
        return peak

    def _request(self, message: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            return f"the process ended with exit status {self._process.wait()}"


def serve() -> None:
    """Reply to requests, in the worker's process.

    Replies go to the original standard output. What the program prints goes to standard error.
    """
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, replies)


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    def reply(message: object) -> None:
        pickle.dump(message, replies)
        replies.flush()

    program, settings, samples = pickle.load(requests)
    try:
        transcribe = PROGRAMS[program](settings)
    except Exception as error:  # any failure is this program's problem; the others are still compared
        reply(f"{type(error).__name__}: {error}")
        return
    reply("")
    while pickle.load(requests) == "run":
        begin = time.perf_counter()
        text = transcribe(samples)
        reply(Run(time.perf_counter() - begin, text))
    reply(peak_megabytes())


def peak_megabytes() -> float:
    """Return this process's peak memory in MB.

    On Linux `ru_maxrss` includes the parent's memory at the time it started this process, so the
    high-water mark is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(match[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
