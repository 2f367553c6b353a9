"""One side's process: reads questions from standard input and writes answers to standard output.

A failed import or an error of MAX is an answer too. The command line may name the rows of the table
of ops that questions are about, by default all.
"""

import os
import pickle
import sys
from functools import cache
from typing import Any

MAX_CHARACTERS = 2000  # of an error message: a compiler's can be very long


@cache
def _answers() -> Any:
    from reference.ops import TABLE
    from tests.upgrade.answers import Answers  # imports MAX: an import error becomes an answer

    return Answers(sys.argv[1:] or list(TABLE))


def _answer(request: bytes) -> tuple[bool, Any]:
    try:
        question, arguments = pickle.loads(request)
        return True, getattr(_answers(), question)(*arguments)
    except Exception as error:  # any error is the answer
        return False, f"{type(error).__name__}: {error}".strip()[:MAX_CHARACTERS]


def main() -> None:
    """Answer questions until standard input ends.

    A question is a method's name and arguments. An answer is whether it worked, and the result or
    the error. Both are pickled.
    """
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # other output goes to standard error
        while True:
            try:
                request = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(_answer(request), answers)
            answers.flush()


if __name__ == "__main__":
    main()
