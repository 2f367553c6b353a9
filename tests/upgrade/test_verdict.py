"""Verdicts on differences: beyond noise or not, wrong or only different."""

from typing import Any

import numpy as np
import pytest

from tests.upgrade.findings import GONE, STATUS, THERE, Activation, Findings, Op, Pair, Transcript
from tests.upgrade.noise import N_AGREEING, N_ROUNDS, Speed, agreed

RIGHT, WRONG, OTHER_BITS = Op(0.1, 0.2, "", "a"), Op(3.0, 9.0, "3 times its bound", "b"), Op(0.1, 0.2, "", "b")
SLOWER, SAME, FASTER = Speed(1, 1.3, 1.3, 1.2, 1.4), Speed(1, 1, 1, 0.9, 1.1), Speed(1, 0.7, 0.7, 0.6, 0.8)
VERSIONS = Pair({"max": "1"}, {"max": "2"})


def measured(rng: np.random.Generator, slowdown: float = 1.0, between_processes: float = 0.0) -> Speed:
    """Simulate two sides on a noisy machine.

    Times vary by 3 %, and one in ten takes 1.5 to 2.5 times as long.
    """
    pair = slowdown * np.exp(between_processes * rng.standard_normal())
    old, new = (
        np.exp(0.03 * rng.standard_normal(N_ROUNDS))
        * np.where(rng.random(N_ROUNDS) < 0.1, 1.5 + rng.random(N_ROUNDS), 1)
        for _ in "on"
    )
    return Speed.of(old.tolist(), (pair * new).tolist())


def test_noise_is_rarely_reported_as_a_difference(rng: np.random.Generator) -> None:
    """At most 1 line in 2,000 is reported if processes differ by 5 %. A comparison has some 30."""
    lines = [[measured(rng, between_processes=0.05) for _ in range(N_AGREEING)] for _ in range(10_000)]
    assert sum(bool(agreed(speeds)) for speeds in lines) <= 5
    assert sum(any(speed.judged for speed in speeds) for speeds in lines) > 100  # one pair alone


@pytest.mark.parametrize(("slowdown", "judged"), [(1.3, "slower"), (1 / 1.3, "faster")])
def test_30_percent_is_reported_amid_noise(rng: np.random.Generator, slowdown: float, judged: str) -> None:
    lines = [[measured(rng, slowdown) for _ in range(N_AGREEING)] for _ in range(1000)]
    assert np.mean([agreed(speeds) == judged for speeds in lines]) > 0.95


def test_a_small_difference_is_not_reported() -> None:
    """A difference of 5 % is not reported even without any noise."""
    assert not Speed.of([1.0] * N_ROUNDS, [1.05] * N_ROUNDS).judged


def test_all_pairs_of_processes_must_agree() -> None:
    assert agreed([SLOWER] * N_AGREEING) == "slower"
    assert not agreed([SLOWER] * (N_AGREEING - 1))
    assert not agreed([*[SLOWER] * (N_AGREEING - 1), SAME])
    assert not agreed([*[SLOWER] * (N_AGREEING - 1), FASTER])


@pytest.mark.parametrize(
    ("results", "verdict", "wrong"),
    [
        ({}, "nothing differs", {}),
        ({"ops": {"softmax float32": Pair(RIGHT, RIGHT)}, "speed": {"softmax": [SAME]}}, "nothing differs", {}),
        ({"ops": {"softmax float32": Pair(RIGHT, OTHER_BITS)}}, "nothing worse", {}),
        ({"ops": {"softmax float32": Pair(RIGHT, WRONG)}}, "wrong", {"op softmax float32": "3 times its bound"}),
        ({"ops": {"softmax float32": Pair(WRONG, WRONG)}}, "nothing differs", {}),
        ({"ops": {"softmax float32": Pair(WRONG, RIGHT)}}, "nothing worse", {}),
        (
            {"ops": {"softmax float32": Pair(RIGHT, "ImportError: max")}},
            "wrong",
            {"op softmax float32": "ImportError: max"},
        ),
        (
            {"ops": {"softmax float32": Pair("RuntimeError: at 0x1", "RuntimeError: at 0x2")}},
            "could not be compared",
            {},
        ),
        ({"ops": {"softmax float32": Pair("RuntimeError", RIGHT)}}, "could not be compared", {}),
        (
            {"ops": {"softmax float32": Pair("RuntimeError", "ValueError"), "gelu float32": Pair(RIGHT, RIGHT)}},
            "nothing differs",
            {},
        ),
        (
            {"activations": {"all of them": Pair(None, "RuntimeError")}},
            "wrong",
            {"activation all of them": "RuntimeError"},
        ),
        (
            {
                "activations": {
                    "encoder.ln_post": Pair(
                        Activation("layer_norm", 1e-6, "", "a"), Activation("layer_norm", 1, "twice", "b")
                    )
                }
            },
            "wrong",
            {"activation encoder.ln_post": "twice"},
        ),
        (
            {"transcripts": {"joined": Pair(Transcript([[1]], ""), Transcript([[2]], "token 0"))}},
            "wrong",
            {"transcript joined": "token 0"},
        ),
        (
            {"timing": {"softmax": Pair(None, "RuntimeError"), "gelu": Pair(None, None)}},
            "wrong",
            {"speed softmax": "RuntimeError"},
        ),
        ({"timing": {"all of them": Pair("RuntimeError", None)}}, "could not be compared", {}),
        ({"speed": {"softmax": [SLOWER] * N_AGREEING}}, "slower", {}),
        (
            {"speed": {"softmax": [SLOWER] * N_AGREEING}, "ops": {"gelu float32": Pair(RIGHT, WRONG)}},
            "wrong",
            {"op gelu float32": "3 times its bound"},
        ),
        ({"speed": {"softmax": [FASTER] * N_AGREEING}}, "nothing worse", {}),
        ({"cost": {"MB compiled": Pair(50.0, 54.0)}}, "nothing differs", {}),
        ({"cost": {"MB compiled": Pair(50.0, 56.0)}}, "slower", {}),
        ({"cost": {"MB compiled": Pair(50.0, "no such model")}}, "wrong", {"cost MB compiled": "no such model"}),
        ({"defects": {"tanh": Pair(THERE, THERE), "sum": Pair(GONE, GONE)}}, "nothing differs", {}),
        ({"defects": {"tanh": Pair(THERE, GONE)}}, "nothing worse", {}),
        ({"defects": {"tanh": Pair(THERE, "ValueError: other")}}, "nothing worse", {}),
        ({"defects": {"tanh": Pair(GONE, THERE)}}, "wrong", {"defect tanh": "it is new"}),
    ],
)
def test_verdicts(results: dict[str, Any], verdict: str, wrong: dict[str, str]) -> None:
    findings = Findings(VERSIONS, **results)
    assert findings.verdict == verdict
    assert findings.wrong() == wrong


def test_a_version_that_does_not_import_is_wrong() -> None:
    findings = Findings(Pair({"max": "1"}, "ImportError: Graph"))
    assert findings.verdict == "wrong"
    assert findings.wrong() == {"import of maxwhisper": "ImportError: Graph"}


def test_a_failure_on_both_sides_is_listed() -> None:
    findings = Findings(VERSIONS, ops={"softmax float32": Pair(WRONG, WRONG), "gelu float32": Pair(RIGHT, RIGHT)})
    assert findings.wrong_before() == {"op softmax float32": "3 times its bound"}


def test_exit_statuses() -> None:
    """They are those of `tests/upgrade/README.md`."""
    assert STATUS == {"nothing differs": 0, "nothing worse": 0, "wrong": 1, "slower": 2, "could not be compared": 3}
