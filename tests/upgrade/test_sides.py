"""Two processes answer the same questions: planted faults are named, no failure ends the run."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reference.ops import TABLE
from tests.upgrade import compare
from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import Findings, Pair
from tests.upgrade.side import Side

Make = Callable[..., Environment]
# The faults of `tests.upgrade.wheels`, planted without a wheel.
WRONG = """
from max.graph import ops
softmax = ops.softmax
ops.softmax = lambda x: softmax(1.1 * x)
"""
SLOW = """
import time
from max.engine import Model
execute = Model.execute
def slowly(self, *inputs):
    begin = time.perf_counter()
    results = execute(self, *inputs)
    end = time.perf_counter()
    while time.perf_counter() < end + 0.3 * (end - begin):
        pass
    return results
Model.execute = slowly
"""
BROKEN = "import max.graph; del max.graph.Graph"


@contextmanager
def both(old: Environment, new: Environment, *rows: str) -> Iterator[compare.Sides]:
    sides = Side(old, rows), Side(new, rows)
    try:
        yield sides
    finally:
        for side in sides:
            side.stop()


def is_paused(pid: int) -> bool:
    """Return whether a process is paused, waiting up to ten seconds for the signal to arrive."""
    for _ in range(100):
        if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.1)
    return False


def test_a_side_answers_and_is_then_paused(own_python: Environment) -> None:
    side = Side(own_python)
    try:
        assert side.ask("versions")["max"]
        assert side._process
        assert is_paused(side._process.pid)
        with pytest.raises(UpgradeError, match=r"AttributeError: .*nonsense"):
            side.ask("nonsense")
        assert is_paused(side._process.pid)
        assert side.ask("versions")["max"]
    finally:
        side.stop()


def test_a_process_that_dies_is_reported_and_replaced(own_python: Environment) -> None:
    side = Side(own_python)
    try:
        side.ask("versions")
        assert side._process
        os.kill(side._process.pid, signal.SIGKILL)
        with pytest.raises(UpgradeError, match="-9"):
            side.ask("versions")
        assert side.ask("versions")["max"]
    finally:
        side.stop()


def test_a_process_that_always_dies_is_started_three_times(make_environment: Make) -> None:
    side = Side(make_environment("dying", "import sys; sys.exit('planted crash')"))
    messages = []
    for _ in range(4):
        with pytest.raises(UpgradeError, match="planted crash") as error:
            side.ask("versions")
        messages.append(str(error.value))
    assert [message.startswith("not asked") for message in messages] == [False, False, False, True]


@pytest.mark.thorough
def test_a_line_that_cannot_be_timed_is_reported_and_left_out(own_python: Environment, make_environment: Make) -> None:
    timing = {"gelu": Pair(None, None)}
    with both(own_python, make_environment("new"), "softmax") as sides:
        assert compare._time_interleaved(sides, timing) == {}
    assert timing["gelu"].compared is False
    assert timing["gelu"] == Pair("KeyError: 'gelu'", "KeyError: 'gelu'")


def test_an_import_error_is_the_answer(make_environment: Make) -> None:
    with both(make_environment("old"), make_environment("new", BROKEN), "softmax") as sides:
        pair = compare._ask(sides, "op", "softmax", "float32", [])
    assert not isinstance(pair.old, str)
    assert pair.worse.startswith("ImportError: cannot import name 'Graph'")


def test_the_wrong_op_and_no_other_is_named(make_environment: Make) -> None:
    rows = ("softmax", "attention_scores")
    with both(make_environment("old"), make_environment("new", WRONG), *rows) as sides:
        findings = Findings(compare._ask(sides, "versions"), compare._ops(sides, rows))
    assert findings.verdict == "wrong"
    assert findings.wrong().keys() == {f"op softmax {dtype}" for dtype in TABLE["softmax"].dtypes}
    assert "Example(op='softmax'" in findings.wrong()["op softmax float32"]
    assert all(pair.equal for name, pair in findings.ops.items() if "attention_scores" in name)


@pytest.mark.undisturbed
def test_an_op_that_takes_30_percent_longer_is_slower(make_environment: Make) -> None:
    """One of three measurements must show it, because other load of the machine may hide it."""
    with both(make_environment("old"), make_environment("new", SLOW), "attention") as sides:
        speeds = (compare._time_interleaved(sides, {"attention": Pair(None, None)})["attention"] for _ in range(3))
        assert any(speed.judged == "slower" and 1.2 < speed.ratio < 1.5 for speed in speeds)
