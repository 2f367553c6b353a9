"""Ctrl-C: end the command line at any time, quietly, with the status that a shell gives."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit status after Ctrl-C, as in a shell


def _exit_quietly(*_: object) -> None:
    os._exit(INTERRUPTED)


def exit_quietly_during_imports() -> None:
    """Let Ctrl-C end the process at once if it is the command line, whose imports take seconds.

    KeyboardInterrupt would leave a traceback wherever no caller of ours can catch it. A program
    that imports maxwhisper keeps its own way, as does a process that ignores Ctrl-C.
    """
    script = [os.path.basename(path) for path in sys.argv[:1]]
    is_command_line = script == ["maxwhisper"] or ("-m", "maxwhisper") in itertools.pairwise(sys.orig_argv)
    if is_command_line and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_quietly)


@contextmanager
def interruptible(patience: float = 1.0) -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, or end the process where Python can't raise it.

    Python raises KeyboardInterrupt only while it runs Python code, but MAX may compile for half a
    minute. A thread that waits for the signal ends the process in that case. Output files are
    complete or missing even then.

    Args:
        patience: How many seconds the thread waits for KeyboardInterrupt to end the process.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    if signal.getsignal(signal.SIGINT) is _exit_quietly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal_reader, signal_writer = os.pipe()
    os.set_blocking(signal_writer, False)
    ended = threading.Event()

    def watch() -> None:
        with open(signal_reader, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] == signal.SIGINT and not ended.wait(patience):
                    os._exit(INTERRUPTED)

    previous_fd = signal.set_wakeup_fd(signal_writer)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(previous_fd)
        os.close(signal_writer)
