"""Run the pinned reproducers of MAX's defects under both versions."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import GONE, THERE, Pair

FILE = "tests/test_max_defects.py"


def defects(environments: tuple[Environment, Environment]) -> dict[str, Pair]:
    """Run all reproducers in both environments in parallel.

    A few states depend on the machine's load, so reproducers whose states differ run again, one
    environment after the other.

    Returns:
        For each test its state on both sides: `THERE`, `GONE`, or an error message.
    """
    with ThreadPoolExecutor() as threads:
        states = _paired(*threads.map(_states, environments))
    if changed := [name for name, pair in states.items() if pair.old != pair.new]:
        states |= _paired(*(_states(environment, changed) for environment in environments))
    return states


def _paired(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, Pair]:
    return {name: Pair(old.get(name, "not reproduced"), new.get(name, "not reproduced")) for name in {**old, **new}}


def _states(environment: Environment, only: Iterable[str] = ()) -> dict[str, str]:
    tests = [f"{FILE}::{name}" for name in only] or [FILE]
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        try:
            environment.run(
                "-m", "pytest", "-m", "max_defects", *tests, "--junitxml", str(results), "-p", "no:cacheprovider"
            )
        except UpgradeError as error:  # pytest fails too if a defect is gone
            if not results.exists():
                return {"all of them": str(error)}
        return read_states(results)


def read_states(results: Path) -> dict[str, str]:
    """Read the state of each reproducer from pytest's JUnit XML.

    A reproducer that passes is a failure there, because it is a strict expected failure.
    """
    states = {}
    for case in ET.parse(results).iter("testcase"):
        outcome = next((part for part in case if part.tag in ("skipped", "failure", "error")), None)
        message = "" if outcome is None else outcome.get("message", "")
        if outcome is None or message.startswith("[XPASS(strict)]"):
            state = GONE
        elif outcome.get("type") == "pytest.xfail":
            state = THERE
        else:
            state = message
        states[case.get("name", "")] = state
    return states
