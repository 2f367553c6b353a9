"""A program in a process of its own, so that its memory is its own and it can take turns with the others."""

import resource
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from reference.speed.programs import PROGRAMS, Question


@dataclass(frozen=True)
class Run:
    """One transcript: how long it took, from samples in memory to text."""

    seconds: float
    text: str


class Worker:
    """A program that has loaded its model, or the reason why it could not."""

    def __init__(self, program: str, question: Question, samples: np.ndarray) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, program, question, samples), daemon=True)
        self._process.start()
        theirs.close()
        self.problem = self._ask()

    def run(self) -> Run:
        """Transcribe once."""
        self._connection.send("run")
        return self._ask()

    def stop(self) -> float:
        """End it; its peak memory in MB."""
        self._connection.send("stop")
        peak = self._ask()
        self._process.join()
        return peak

    def _ask(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            return f"the process ended with exit status {self._process.exitcode}"


def _serve(connection: Connection, program: str, question: Question, samples: np.ndarray) -> None:
    try:
        transcribe = PROGRAMS[program](question)
    except Exception as error:  # whatever keeps one of them from running, the others are still compared
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send("")
    while connection.recv() == "run":
        begin = time.perf_counter()
        text = transcribe(samples)
        connection.send(Run(time.perf_counter() - begin, text))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    connection.send(kilobytes / 1000)
