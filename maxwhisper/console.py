"""Printing to streams that may be missing or closed."""

import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

from tqdm import tqdm

from maxwhisper.errors import WhisperWarning
from maxwhisper.interrupts import interruptible


def listens(stream: TextIO | None) -> bool:
    """Tell whether a standard stream is open; it is None in a program without a console."""
    return stream is not None and not getattr(stream, "closed", False)


def say(text: str, to: str = "stdout") -> None:
    """Print a line to `sys.stdout` or `sys.stderr`, if that is open, above any progress bars."""
    stream = getattr(sys, to)
    if listens(stream):
        tqdm.write(text, file=stream)
        getattr(stream, "flush", bool)()  # a program's replacement for a standard stream may have no flush


@contextmanager
def explained(message: str, after: float = 3.0) -> Iterator[None]:
    """Print a message to `sys.stderr` if the body takes longer than `after` seconds.

    In a terminal, the time that it takes is shown below.
    """
    ended, began = threading.Event(), time.time()

    def explain() -> None:
        if ended.wait(after):
            return
        say(message, "stderr")
        if listens(sys.stderr) and getattr(sys.stderr, "isatty", bool)():
            with tqdm(bar_format="{elapsed}", leave=False) as clock:
                clock.start_t = began
                while not ended.wait(1):
                    clock.refresh()

    explaining = threading.Thread(target=explain, daemon=True)
    explaining.start()
    try:
        yield
    finally:
        ended.set()
        explaining.join()


class Outlet(io.TextIOBase):
    """A stream that never fails: text is dropped if the stream is missing or closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if listens(stream) else None

    def write(self, text: str) -> int:
        self._attempt("write", text)
        return len(text)

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        """The stream's encoding, by which tqdm chooses the characters of its progress bar."""
        return getattr(self._stream, "encoding", None)

    def flush(self) -> None:
        self._attempt("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno() if self._stream else super().fileno()

    def _attempt(self, method: str, *arguments: str) -> None:
        try:
            if self._stream is not None:
                getattr(self._stream, method)(*arguments)
        except (OSError, ValueError):
            stream, self._stream = self._stream, None
            # Otherwise, writing the stream's buffer would fail again when Python exits.
            with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), stream.fileno())  # type: ignore[union-attr]


@contextmanager
def console() -> Iterator[None]:
    """Set up the streams, warnings and signals of the command line while it runs."""
    _fill_descriptors()
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            stack.callback(stack.enter_context(redirect(Outlet(stream))).flush)
        stack.enter_context(_short_warnings())
        yield


def _fill_descriptors() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise a file that is opened later gets the stream's descriptor, and a library may write
    messages to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print each WhisperWarning in one line."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_in_one_line(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, *others: object
        ) -> None:
            if issubclass(category, WhisperWarning):
                say(f"maxwhisper: warning: {message}", "stderr")
            else:
                show(message, category, filename, lineno, *others)  # type: ignore[arg-type]

        warnings.showwarning = show_in_one_line  # type: ignore[assignment]
        yield
