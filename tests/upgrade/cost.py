"""Measure what compiling, loading and using a model costs under both versions.

Each measurement is a new process that loads a model and transcribes. The first one compiles it, and
the others load it compiled.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import LIMITS, Pair, costs_more
from tests.upgrade.noise import N_AGREEING

N_WARM = 5  # processes of each side that load the compiled model
Loaded = dict[str, float]
Environments = tuple[Environment, Environment]


def costs(environments: Environments, each: Callable[[], object]) -> dict[str, Pair]:
    """Measure both sides, interleaved, with nothing else running.

    If a cost seems to exceed its limit, all are measured again and each side's minimum counts.

    Args:
        environments: of OLD and NEW.
        each: called after each process.

    Returns:
        Pairs of costs, or of errors, by the names of `LIMITS`.
    """
    pairs = _measure(environments, each)
    for _ in range(N_AGREEING - 1):
        if any(costs_more(name, pair) for name, pair in pairs.items()):
            repeated = _measure(environments, each)
            pairs = {
                name: Pair(_minimum(pair.old, repeated[name].old), _minimum(pair.new, repeated[name].new))
                for name, pair in pairs.items()
            }
    return pairs


def _measure(environments: Environments, each: Callable[[], object]) -> dict[str, Pair]:
    with TemporaryDirectory() as folder:
        caches = [Path(folder) / side for side in ("old", "new")]

        def load_both() -> list[Loaded | str]:
            measurements = []
            for environment, cache in zip(environments, caches):
                measurements.append(_load(environment, cache))
                each()
            return measurements

        rounds = [load_both() for _ in range(1 + N_WARM)]
    old, new = (_summarize(side) for side in zip(*rounds))
    return {name: Pair(old[name], new[name]) for name in LIMITS}


def _minimum(a: float | str, b: float | str) -> float | str:
    """Return the smaller number. An error is returned only if both are errors."""
    return min((x for x in (a, b) if not isinstance(x, str)), default=a)


def _load(environment: Environment, cache: Path) -> Loaded | str:
    try:
        *_, last = environment.run("-m", "tests.upgrade.load", cache=cache).splitlines()
        return json.loads(last)
    except (UpgradeError, ValueError) as error:
        return str(error)


def _summarize(measurements: Sequence[Loaded | str]) -> dict[str, float | str]:
    """Return costs by the names of `LIMITS`: cold from the first process, warm from the others."""
    loaded = list[Loaded]()
    for measurement in measurements:
        if isinstance(measurement, str):
            return dict.fromkeys(LIMITS, measurement)
        loaded.append(measurement)
    cold, *warm = loaded
    return {
        "CPU seconds to load, cold": cold["seconds"],
        "CPU seconds to load, warm": median(each["seconds"] for each in warm),
        "MB compiled": cold["compiled MB"],
        "MB of memory, cold": cold["peak MB"],
        "MB of memory, warm": median(each["peak MB"] for each in warm),
    }
