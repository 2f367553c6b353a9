"""The benchmarks' limit: a slowed op exceeds it, an unchanged op does not. Runs no benchmark."""

import json
import time
from pathlib import Path

import pytest

from maxwhisper.checkpoint import load_checkpoint
from reference.ops import TABLE
from reference.ops.inputs import Example
from reference.ops.suite import Suite
from tests.speed import baseline
from tests.speed.baseline import Baseline, machine
from tests.speed.counterparts import pytorch_caller, torch_device
from tests.speed.interleaved import InterleavedTiming, clock, ratio
from tests.speed.sizes import CROSS_ATTENTION_OPS, DECODER_STEP_OPS, FIXED_SIZE_OPS, real_sizes


@pytest.mark.undisturbed
def test_a_slowed_op_exceeds_the_limit(ops_suite: Suite, tmp_path: Path) -> None:
    arrays = Example("softmax", "float32", real_sizes("softmax", load_checkpoint("tiny.en").dims)).arrays()
    op, counterpart = (
        ops_suite.caller("softmax", "float32", arrays),
        pytorch_caller(TABLE["softmax"], arrays, torch_device(ops_suite.name)),
    )

    def slowed() -> None:
        """Call the op ten times, which shows on a busy machine too."""
        for _ in range(10):
            op()

    unchanged, slow = InterleavedTiming(op, counterpart), InterleavedTiming(slowed, counterpart)
    recorded = Baseline(tmp_path / "cpu.json")
    for _ in range(3):
        recorded.record("softmax", unchanged.measure(7))
    recorded.save({})
    limit = Baseline(recorded.path).limit("softmax")
    assert limit is not None
    assert min(unchanged.measure(7) for _ in range(3)) <= limit
    assert min(slow.measure(7) for _ in range(3)) > limit


def test_limits(tmp_path: Path) -> None:
    recorded = Baseline(tmp_path / "cpu.json")
    assert recorded.limit("new") is None
    for value in (0.5, 0.4, 0.41):
        recorded.record("op", value)
    assert recorded.limit("op") == 0.5 + (0.5 - 0.4)
    recorded.record("steady", 1)
    assert recorded.limit("steady") == 1 + 0.1
    for value in range(10):
        recorded.record("many", value)
    assert recorded.results["many"] == [5, 6, 7, 8, 9]


def test_ratios_of_a_different_machine_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Baseline(tmp_path / "cpu.json")
    recorded.record("op", 0.5)
    recorded.save({"max": "26.7.0"})
    assert Baseline(recorded.path).results == {"op": [0.5]}
    monkeypatch.setattr(baseline, "machine", lambda device: machine(device) | {"cores": 97})
    assert Baseline(recorded.path).results == {}


def test_times_are_recorded_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"gpu": "NVIDIA H200", "driver": "580.159.04"}
    monkeypatch.setattr(baseline, "machine", lambda device: gpu)
    monkeypatch.setattr(baseline, "FOLDER", tmp_path)
    recorded = Baseline(baseline.path_for("gpu"), "gpu")
    assert "No microseconds are recorded for this machine (gpu: NVIDIA H200" in recorded.notice
    recorded.record("tiny.en step", 78.0)
    recorded.save({"max": "26.7.0"})
    assert json.loads((tmp_path / "nvidia-h200.json").read_text())["microseconds"] == {"tiny.en step": [78.0]}
    assert Baseline(recorded.path, "gpu").limit("tiny.en step") == 78 + 7.8


def test_a_machine_without_recorded_ratios_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run that can't fail looks like one that passes."""
    monkeypatch.setattr(baseline, "FOLDER", tmp_path)
    (tmp_path / "another-cpu-8-cores.json").write_text("{}", encoding="utf-8")
    recorded = Baseline(baseline.path_for("cpu"))
    assert f"cores: {machine()['cores']}), so nothing was compared" in recorded.notice
    assert "`nox -s bench -- --record`" in recorded.notice
    assert recorded.notice.endswith(f"they go to {recorded.path.name}. Recorded are: another-cpu-8-cores.")
    recorded.record("op", 0.5)
    recorded.save({"max": "26.7.0"})
    assert Baseline(baseline.path_for("cpu")).notice == ""


def test_each_recorded_file_is_named_after_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in baseline.FOLDER.glob("*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))["machine"]
        monkeypatch.setattr(baseline, "machine", lambda device, stored=stored: stored)
        assert baseline.path_for("gpu" if "gpu" in stored else "cpu") == path


def test_a_ratio_is_computed_per_round() -> None:
    """If the machine becomes half as fast midway, the ratio stays the same."""
    assert ratio([1, 1, 2, 2, 2], [2, 2, 4, 4, 4]) == 0.5


def test_the_counterpart_runs_before_each_round() -> None:
    calls: list[str] = []
    timing = InterleavedTiming(lambda: calls.append("max"), lambda: calls.extend(["pytorch"] * 100))
    calls.clear()
    timing.n_calls, timing._n_counterpart_calls = 3, 2
    timing.measure(2)
    assert calls == 2 * [*["pytorch"] * 200, *["max"] * 3]


def test_the_clock_does_not_count_the_counterpart() -> None:
    timing = InterleavedTiming(lambda: None, lambda: time.sleep(0.001))
    timing.n_calls, timing._n_counterpart_calls = 1, 500
    begin = clock()
    timing()
    assert clock() - begin < 0.25


def test_every_op_has_its_real_sizes() -> None:
    dims = load_checkpoint("tiny.en").dims
    assert set(TABLE) >= DECODER_STEP_OPS | FIXED_SIZE_OPS >= CROSS_ATTENTION_OPS
    assert real_sizes("softmax", dims) == {"batch": 1, "n_head": 6, "n": 1500, "n_kv": 1500}
    assert real_sizes("cross_attention", dims) == {"batch": 1, "n_head": 6, "n": 1, "head_dim": 64, "n_kv": 1500}
    assert real_sizes("lm_head", dims) == {"n": 1, "n_state": 384, "n_vocab": 51864}
