"""What is printed, if there is anybody to read it, and Ctrl-C."""

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

from tqdm import tqdm

from maxwhisper.errors import WhisperWarning

INTERRUPTED = 130  # the exit status, as of what a shell sees ended by Ctrl-C


def listens(stream: TextIO | None) -> bool:
    """Whether a standard stream is there: a program without a console has none, which Python shows as None."""
    return stream is not None and not getattr(stream, "closed", False)


def say(text: str, to: str = "stdout") -> None:
    """Print a line to `sys.stdout` or `sys.stderr`, above progress bars, if it is there."""
    stream = getattr(sys, to)
    if listens(stream):
        tqdm.write(text, file=stream)
        getattr(stream, "flush", bool)()  # for whoever reads along; a stream of somebody's own may have none


class Outlet(io.TextIOBase):
    """A stream that never fails: what nobody reads, for there is no stream or its reader has gone, is dropped."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if listens(stream) else None

    def write(self, text: str) -> int:
        self._attempt("write", text)
        return len(text)

    @property
    def encoding(self) -> str | None:  # type: ignore[override]  # which says whether a progress bar may have blocks
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
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())  # type: ignore[union-attr]  # its buffer would fail again when Python ends


@contextmanager
def console() -> Iterator[None]:
    """The streams, warnings and signals of a command line, for as long as it runs."""
    _fill_descriptors()
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            stack.callback(stack.enter_context(redirect(Outlet(stream))).flush)
        stack.enter_context(_short_warnings())
        yield


def _fill_descriptors() -> None:
    """Let no file that is opened later take the place of a standard stream that is closed, where a library would write into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


@contextmanager
def _short_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_in_a_line(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, *others: object
        ) -> None:
            if issubclass(category, WhisperWarning):
                say(f"maxwhisper: warning: {message}", "stderr")
            else:
                show(message, category, filename, lineno, *others)  # type: ignore[arg-type]

        warnings.showwarning = show_in_a_line  # type: ignore[assignment]
        yield


@contextmanager
def _interruptible(patience: float = 1.0) -> Iterator[None]:
    """Let Ctrl-C end the process whatever it does. Python raises KeyboardInterrupt only when it runs code of its own, and MAX compiles for
    half a minute; meanwhile a thread hears of the signal.

    patience: for how many seconds KeyboardInterrupt may do what it does. What is written elsewhere is there whole or not at all.
    """
    if threading.current_thread() is not threading.main_thread():  # which has the signals
        yield
        return
    heard, signalled = os.pipe()
    os.set_blocking(signalled, False)
    ended = threading.Event()

    def watch() -> None:
        with open(heard, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] == signal.SIGINT and not ended.wait(patience):
                    os._exit(INTERRUPTED)

    before = signal.set_wakeup_fd(signalled)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(signalled)
