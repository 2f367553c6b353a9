"""A process in one of the two environments, paused while the other one works."""

import pickle
import signal
import subprocess
from collections.abc import Sequence
from threading import Timer
from typing import Any

from tests.upgrade.environment import TIMEOUT_SECONDS, Environment, UpgradeError

MAX_CRASHES = 3  # after which no new process is started


class Side:
    """Answers questions in a process, which starts with the first question.

    Questions are methods of `tests.upgrade.answers.Answers`.

    Args:
        environment: the process's Python and packages.
        rows: the rows of the table of ops that questions are about, by default all.
    """

    def __init__(self, environment: Environment, rows: Sequence[str] = ()) -> None:
        self._environment, self._rows = environment, rows
        self._process: subprocess.Popen[bytes] | None = None
        self._crashes = list[str]()

    def ask(self, question: str, *arguments: object) -> Any:
        """Ask a question and return the answer.

        MAX's threads poll for work long after a call. The process is paused (SIGSTOP) between
        questions, so that they take no time from the other side.

        Raises:
            UpgradeError: with the error message, if the question fails or the process dies. A new
                process answers the next question.
        """
        if len(self._crashes) == MAX_CRASHES:
            raise UpgradeError(f"not asked, because {self._crashes[-1]}")
        process = self._process = self._process or self._environment.start("-m", "tests.upgrade.serve", *self._rows)
        assert process.stdin is not None and process.stdout is not None
        timeout = Timer(TIMEOUT_SECONDS, process.kill)
        timeout.start()
        process.send_signal(signal.SIGCONT)
        try:
            pickle.dump(pickle.dumps((question, arguments)), process.stdin)
            process.stdin.flush()
            works, answer = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            process.kill()  # in case it is alive
            self._process = None
            self._crashes.append(self._environment.exit_message(process))
            raise UpgradeError(self._crashes[-1]) from None
        finally:
            timeout.cancel()
        process.send_signal(signal.SIGSTOP)
        if not works:
            raise UpgradeError(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
