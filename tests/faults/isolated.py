"""Faults of single ops, judged by the op suite: the op's row with the mistake, on any shape."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from reference.ops import TABLE, Op
from reference.ops.fuzz import fuzz
from reference.ops.inputs import Example
from reference.ops.judge import Judged
from reference.ops.suite import Suite
from tests.faults.plant import Fault

N_EXAMPLES = 50


class Isolated:
    """The op-suite rows of all faults that name one, compiled together in float32."""

    def __init__(self, faults: Iterable[Fault], device: str) -> None:
        self._suite = Suite(device, {fault.name: _mistaken(fault) for fault in faults if fault.op})

    def failure(self, fault: Fault) -> str:
        """Return the op suite's failure message for a fault, or "" if its row passes."""
        with fault.planted():
            try:
                fuzz(_SingleRowSuite(self._suite, fault.name), fault.op, "float32", N_EXAMPLES)  # type: ignore[arg-type]
            except AssertionError as error:
                return str(error)
        return ""


def _mistaken(fault: Fault) -> type[Op]:
    row = TABLE[fault.op]

    class Mistaken(row):  # type: ignore[valid-type,misc]
        """The row, built with the mistake."""

        dtypes = ("float32",)

        @classmethod
        def outputs(cls, *arguments: Any) -> list[Any]:
            with fault.planted():
                return super().outputs(*arguments)

    return Mistaken


class _SingleRowSuite:
    """A suite that checks examples of every op with one row."""

    def __init__(self, suite: Suite, row: str) -> None:
        self.name = suite.name
        self.check = partial(self._check, suite, row)

    @staticmethod
    def _check(suite: Suite, row: str, example: Example) -> Judged:
        return suite.check(example, name=row)
