"""The pinned reproducers of MAX's defects under either version."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import GONE, THERE, Pair

FILE = "tests/test_max_defects.py"


def defects(environments: tuple[Environment, Environment]) -> dict[str, Pair]:
    """By test: `THERE`, `GONE`, or what else happens; in both environments at once. Where they differ, which some do by chance when the
    machine is busy, one is asked again after the other.
    """
    with ThreadPoolExecutor() as threads:
        found = _paired(*threads.map(_states, environments))
    if others := [name for name, pair in found.items() if pair.old != pair.new]:
        found |= _paired(*(_states(environment, others) for environment in environments))
    return found


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
        except UpgradeError as error:  # as where one is gone
            if not results.exists():
                return {"all of them": str(error)}
        return read_states(results)


def read_states(results: Path) -> dict[str, str]:
    """What pytest's JUnit XML says of each reproducer. One that passes counts as failed there, for it is strictly expected to fail."""
    found = {}
    for case in ET.parse(results).iter("testcase"):
        outcome = next((part for part in case if part.tag in ("skipped", "failure", "error")), None)
        message = "" if outcome is None else outcome.get("message", "")
        if outcome is None or message.startswith("[XPASS(strict)]"):
            state = GONE
        elif outcome.get("type") == "pytest.xfail":
            state = THERE
        else:
            state = message
        found[case.get("name", "")] = state
    return found
