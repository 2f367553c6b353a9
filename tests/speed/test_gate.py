"""The gate fails where it should: what is slowed trips it, what is not passes. (Not itself a benchmark.)"""

import time
from pathlib import Path

import pytest

from maxwhisper.checkpoint import load_checkpoint
from reference.ops import TABLE
from reference.ops.inputs import Example
from reference.ops.suite import Suite
from tests.speed import baseline
from tests.speed.baseline import Baseline, machine
from tests.speed.sizes import FIXED, OF_A_STEP, TO_AUDIO, real_sizes
from tests.speed.turns import Turns, clock, ratio
from tests.speed.twins import by_torch, torch_device


def test_a_slowed_op_trips_it(ops_suite: Suite, tmp_path: Path) -> None:
    arrays = Example("softmax", "float32", real_sizes("softmax", load_checkpoint("tiny.en").dims)).arrays()
    op, twin = (
        ops_suite.caller("softmax", "float32", arrays),
        by_torch(TABLE["softmax"], arrays, torch_device(ops_suite.name)),
    )

    def slowed() -> None:
        """So much that it shows however busy the machine is."""
        for _ in range(10):
            op()

    sound, slow = Turns(op, twin), Turns(slowed, twin)
    kept = Baseline(tmp_path / "cpu.json")
    for _ in range(3):
        kept.record("softmax", sound.take(7))
    kept.save({})
    limit = Baseline(kept.path).limit("softmax")
    assert limit is not None
    assert min(sound.take(7) for _ in range(3)) <= limit
    assert min(slow.take(7) for _ in range(3)) > limit


def test_limits(tmp_path: Path) -> None:
    kept = Baseline(tmp_path / "cpu.json")
    assert kept.limit("new") is None
    for value in (0.5, 0.4, 0.41):
        kept.record("op", value)
    assert kept.limit("op") == 0.5 + (0.5 - 0.4)
    kept.record("steady", 1)
    assert kept.limit("steady") == 1 + 0.1
    for value in range(10):
        kept.record("many", value)
    assert kept.ratios["many"] == [5, 6, 7, 8, 9]


def test_another_machines_ratios_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Baseline(tmp_path / "cpu.json")
    kept.record("op", 0.5)
    kept.save({"max": "26.7.0"})
    assert Baseline(kept.path).ratios == {"op": [0.5]}
    monkeypatch.setattr(baseline, "machine", lambda device: machine(device) | {"cores": 97})
    assert Baseline(kept.path).ratios == {}


def test_ratios_are_of_turns() -> None:
    """A machine that halves its speed midway changes no ratio."""
    assert ratio([1, 1, 2, 2, 2], [2, 2, 4, 4, 4]) == 0.5


def test_a_twin_costs_nothing() -> None:
    calls: list[str] = []
    turns = Turns(lambda: calls.append("ours"), lambda: calls.extend(["twin"] * 100))
    calls.clear()
    turns.n_ours, turns._n_twin = 3, 2
    turns.take(2)
    assert calls == 2 * [*["twin"] * 200, *["ours"] * 3]


def test_the_clock_stands_still_while_the_twin_runs() -> None:
    turns = Turns(lambda: None, lambda: time.sleep(0.001))
    turns.n_ours, turns._n_twin = 1, 500
    begin = clock()
    turns()
    assert clock() - begin < 0.25


def test_every_op_has_its_real_sizes() -> None:
    dims = load_checkpoint("tiny.en").dims
    assert set(TABLE) >= OF_A_STEP | FIXED >= TO_AUDIO
    assert real_sizes("softmax", dims) == {"batch": 1, "n_head": 6, "n": 1500, "n_kv": 1500}
    assert real_sizes("cross_attention", dims) == {"batch": 1, "n_head": 6, "n": 1, "head_dim": 64, "n_kv": 1500}
    assert real_sizes("lm_head", dims) == {"n": 1, "n_state": 384, "n_vocab": 51864}
