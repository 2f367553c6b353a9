"""A process in one of the two environments, which stands still while the other one works."""

import pickle
import signal
import subprocess
from collections.abc import Sequence
from threading import Timer
from typing import Any

from tests.upgrade.environment import SECONDS, Environment, UpgradeError

N_DEATHS = 3  # after which no further process is started


class Side:
    """Answers questions, methods of `tests.upgrade.answers.Answers`, in a process that is started when first needed.

    rows: of the table of ops that are asked for; none for all.
    """

    def __init__(self, environment: Environment, rows: Sequence[str] = ()) -> None:
        self._environment, self._rows = environment, rows
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = list[str]()

    def ask(self, question: str, *arguments: object) -> Any:
        """The answer. MAX's threads look for work long after they had some; so that they take none of the other side's time, all stand
        still until they are asked again.

        Raises UpgradeError, with what was said, where the question fails or the process dies; another one then answers the next.
        """
        if len(self._deaths) == N_DEATHS:
            raise UpgradeError(f"not asked, for {self._deaths[-1]}")
        process = self._process = self._process or self._environment.start("-m", "tests.upgrade.serve", *self._rows)
        assert process.stdin is not None and process.stdout is not None
        too_long = Timer(SECONDS, process.kill)
        too_long.start()
        process.send_signal(signal.SIGCONT)
        try:
            pickle.dump(pickle.dumps((question, arguments)), process.stdin)
            process.stdin.flush()
            works, answer = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            process.kill()  # should it not be dead
            self._process = None
            self._deaths.append(self._environment.obituary(process))
            raise UpgradeError(self._deaths[-1]) from None
        finally:
            too_long.cancel()
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
