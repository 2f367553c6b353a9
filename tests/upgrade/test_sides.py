"""Two processes that are asked the same: faults planted in one of them are found and named, and no failure ends the comparison."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.upgrade import compare
from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import Findings, Pair
from tests.upgrade.side import Side

Make = Callable[..., Environment]
# What wheels of `tests.upgrade.wheels` do, without a wheel.
WRONG = """
from max.graph import ops
layer_norm = ops.layer_norm
ops.layer_norm = lambda x, weight, bias, epsilon: layer_norm(x, weight, bias, 10 * epsilon)
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


def stands_still(pid: int) -> bool:
    """A signal takes its time."""
    for _ in range(100):
        if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.1)
    return False


def test_a_side_answers_and_then_stands_still(own_python: Environment) -> None:
    side = Side(own_python)
    try:
        assert side.ask("versions")["max"]
        assert side._process
        assert stands_still(side._process.pid)
        with pytest.raises(UpgradeError, match=r"AttributeError: .*nonsense"):
            side.ask("nonsense")
        assert stands_still(side._process.pid)
        assert side.ask("versions")["max"]
    finally:
        side.stop()


def test_a_process_that_dies_is_said_and_replaced(own_python: Environment) -> None:
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


def test_a_process_that_always_dies_is_not_started_for_ever(make_environment: Make) -> None:
    side = Side(make_environment("dying", "import sys; sys.exit('no such luck')"))
    said = []
    for _ in range(4):
        with pytest.raises(UpgradeError, match="no such luck") as error:
            side.ask("versions")
        said.append(str(error.value))
    assert [text.startswith("not asked") for text in said] == [False, False, False, True]


def test_a_line_that_cannot_be_timed_is_said_and_left_out(own_python: Environment, make_environment: Make) -> None:
    timing = {"no such stage": Pair(None, None)}
    with both(own_python, make_environment("new"), "softmax") as sides:
        assert compare._turns(sides, timing) == {}
    assert timing["no such stage"] == Pair("KeyError: 'no such stage'", "KeyError: 'no such stage'")


def test_what_no_longer_imports_is_the_answer(make_environment: Make) -> None:
    with both(make_environment("old"), make_environment("new", BROKEN), "softmax") as sides:
        pair = compare._ask(sides, "op", "softmax", "float32", [])
    assert not isinstance(pair.old, str)
    assert pair.worse.startswith("ImportError: cannot import name 'Graph'")


def test_an_op_that_is_wrong_is_named(make_environment: Make) -> None:
    """And no other one is."""
    rows = ("layer_norm", "softmax")
    with both(make_environment("old"), make_environment("new", WRONG), *rows) as sides:
        found = Findings(compare._ask(sides, "versions"), compare._ops(sides, rows))
    assert found.verdict == "wrong"
    assert found.wrong().keys() == {f"op layer_norm {dtype}" for dtype in ("float32", "float16", "bfloat16")}
    assert "Example(op='layer_norm'" in found.wrong()["op layer_norm float32"]
    assert all(pair.equal for name, pair in found.ops.items() if "softmax" in name)


def test_what_is_slowed_by_a_third_is_seen(make_environment: Make) -> None:
    """At the latest when asked for the third time, for a machine that does something else meanwhile may hide it."""
    with both(make_environment("old"), make_environment("new", SLOW), "attention") as sides:
        speeds = (compare._turns(sides, {"attention": Pair(None, None)})["attention"] for _ in range(3))
        assert any(speed.judged == "slower" and 1.2 < speed.ratio < 1.5 for speed in speeds)
