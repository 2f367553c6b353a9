"""One side's process: answers on standard output what it is asked on standard input, whatever becomes of an import or of MAX.

Its arguments are rows of the table that are asked for; by default all.
"""

import os
import pickle
import sys
from functools import cache
from typing import Any

MAX_LETTERS = 2000  # of what went wrong: a compiler says more than anybody reads


@cache
def _answers() -> Any:
    from reference.ops import TABLE
    from tests.upgrade.answers import Answers  # imports MAX, whose API may be another one: that is an answer, too

    return Answers(sys.argv[1:] or list(TABLE))


def _answer(asked: bytes) -> tuple[bool, Any]:
    try:
        question, arguments = pickle.loads(asked)
        return True, getattr(_answers(), question)(*arguments)
    except Exception as error:  # whatever it is, it is the answer
        return False, f"{type(error).__name__}: {error}".strip()[:MAX_LETTERS]


def main() -> None:
    """Questions are a method's name and arguments, answers whether it worked, and its result or what went wrong; all pickled."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever prints would be in the way
        while True:
            try:
                asked = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(_answer(asked), answers)
            answers.flush()


if __name__ == "__main__":
    main()
