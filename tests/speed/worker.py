"""A program in a process of its own, so that its memory is its own and it can take turns with the others."""

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

from tests.speed.programs import PROGRAMS, Question

SERVE = f"from {__name__} import serve; serve()"


@dataclass(frozen=True)
class Run:
    """One transcript: how long it took, from samples in memory to text."""

    seconds: float
    text: str


class Worker:
    """A program that has loaded its model, or the reason why it could not."""

    def __init__(self, program: str, question: Question, samples: np.ndarray) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.problem = self._ask((program, question, samples))

    def run(self) -> Run | str:
        """Transcribe once; or what went wrong."""
        return self._ask("run")

    def stop(self) -> float:
        """End it; its peak memory in MB."""
        peak = self._ask("stop")
        self._process.wait()
        return peak

    def _ask(self, message: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            return f"the process ended with exit status {self._process.wait()}"


def serve() -> None:
    """The process's side: answer on standard output, where programs that print would be in the way."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, answers)


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    def answer(message: object) -> None:
        pickle.dump(message, answers)
        answers.flush()

    program, question, samples = pickle.load(questions)
    try:
        transcribe = PROGRAMS[program](question)
    except Exception as error:  # whatever keeps one of them from running, the others are still compared
        answer(f"{type(error).__name__}: {error}")
        return
    answer("")
    while pickle.load(questions) == "run":
        begin = time.perf_counter()
        text = transcribe(samples)
        answer(Run(time.perf_counter() - begin, text))
    answer(peak_megabytes())


def peak_megabytes() -> float:
    """Linux's `ru_maxrss` counts what the parent had when it started this process; the high-water mark does not."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
