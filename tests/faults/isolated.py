"""Faults that are an op's, in the table of ops: the row with the mistake in it, on any shape."""

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
    """The rows of all faults that have one, compiled together in float32."""

    def __init__(self, faults: Iterable[Fault], device: str) -> None:
        self._suite = Suite(device, {fault.name: _mistaken(fault) for fault in faults if fault.op})

    def finds(self, fault: Fault) -> str:
        """What the op suite says against it; nothing where all is well."""
        with fault.planted():
            try:
                fuzz(_Answering(self._suite, fault.name), fault.op, "float32", N_EXAMPLES)  # type: ignore[arg-type]
            except AssertionError as error:
                return str(error)
        return ""


def _mistaken(fault: Fault) -> type[Op]:
    right = TABLE[fault.op]

    class Mistaken(right):  # type: ignore[valid-type,misc]
        """The row as it is built with the mistake."""

        dtypes = ("float32",)

        @classmethod
        def outputs(cls, *arguments: Any) -> list[Any]:
            with fault.planted():
                return super().outputs(*arguments)

    return Mistaken


class _Answering:
    """A suite that answers for every op with one row."""

    def __init__(self, suite: Suite, row: str) -> None:
        self.name = suite.name
        self.check = partial(self._check, suite, row)

    @staticmethod
    def _check(suite: Suite, row: str, example: Example) -> Judged:
        return suite.check(example, name=row)
