"""Some faults of each kind that need no graph of their own, and every faulty op.

`nox -s faults` tries all of them.
"""

import pytest

from tests.faults import in_search
from tests.faults.all_faults import CONTROLS, FAULTS, OF_OPS
from tests.faults.fault_table import README, markdown
from tests.faults.isolated import Isolated
from tests.faults.recording import write_recording
from tests.faults.trial import Trials

QUICK = [
    "channels permuted",
    "linear biases missing",
    "K and V swapped",
    "square weight transposed",
    "sines and cosines interleaved",
    "one dead head",
    "one weight element changed by 1 %",
    "positions shifted by one",
    "valid length not reset between windows",
    "cross-attention cache of the previous window",
    "44.1 kHz for 48",
    "a channel dropped instead of averaged",
    "straight-line resampling",
    "noise of 1e-4",
    "log-mel in half precision",
    "natural logarithm for log10",
    "window padded at the front",
    "timestamp rules skipped",
    "text before the window forgotten",
    "on by a whole window always",
    *(fault.name for fault in in_search.FAULTS),
]
QUICK_CONTROLS = ["garbage beyond the valid length", "spectrum in float64", "log-sum-exp pair by pair"]


EVERYTHING = FAULTS | CONTROLS | OF_OPS


@pytest.fixture(scope="module")
def isolated(device: str) -> Isolated:
    return Isolated(EVERYTHING.values(), device)


@pytest.fixture(scope="module")
def trials(device: str, isolated: Isolated, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Compile the graphs of the faults that are tried here, not of all faults."""
    tried = [EVERYTHING[name] for name in QUICK + QUICK_CONTROLS]
    trials = Trials(tried, write_recording(tmp_path_factory.mktemp("recording")), device)
    trials.isolated = isolated
    return trials


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_caught_and_its_culprit_is_blamed(name: str, trials: Trials) -> None:
    outcome = trials.run(FAULTS[name])
    assert outcome.is_caught
    assert outcome.blamed == outcome.expected
    assert FAULTS[name].looks_like in outcome.looks_like


@pytest.mark.parametrize("name", QUICK_CONTROLS)
def test_a_control_is_not_reported(name: str, trials: Trials) -> None:
    outcome = trials.run(CONTROLS[name])
    assert not outcome.is_caught, outcome
    assert outcome.words == 0


@pytest.mark.parametrize("name", [name for name, fault in (FAULTS | OF_OPS).items() if fault.op])
def test_a_faulty_op_fails_the_op_suite(name: str, isolated: Isolated) -> None:
    assert "MAX's" in isolated.failure(EVERYTHING[name])


@pytest.mark.parametrize("name", [name for name, control in CONTROLS.items() if control.op])
def test_a_rewritten_op_passes_the_op_suite(name: str, isolated: Isolated) -> None:
    assert isolated.failure(CONTROLS[name]) == ""


def test_the_readme_lists_every_fault() -> None:
    text = README.read_text(encoding="utf-8")
    for name in (*FAULTS, *CONTROLS):
        assert name in text, f"{name!r}: run `nox -s faults -- --readme`"
    assert markdown([]).splitlines()[2] in text
