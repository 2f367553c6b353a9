"""What it costs to have a model under either version: processes of their own compile it, or find it compiled, and transcribe."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import LIMITS, Pair, costs_more
from tests.upgrade.noise import N_AGREEING

N_WARM = 5  # processes of each side that find it compiled
Loaded = dict[str, float]
Environments = tuple[Environment, Environment]


def costs(environments: Environments, each: Callable[[], object]) -> dict[str, Pair]:
    """What either side pays, by the names of `LIMITS`, or why it could not be seen. The sides take turns, with nothing beside them.

    Where something seems to cost more all is measured again, and each side's least counts. each: called after each process.
    """
    found = _measured(environments, each)
    for _ in range(N_AGREEING - 1):
        if any(costs_more(name, pair) for name, pair in found.items()):
            again = _measured(environments, each)
            found = {
                name: Pair(_least(pair.old, again[name].old), _least(pair.new, again[name].new))
                for name, pair in found.items()
            }
    return found


def _measured(environments: Environments, each: Callable[[], object]) -> dict[str, Pair]:
    with TemporaryDirectory() as folder:
        caches = [Path(folder) / side for side in ("old", "new")]

        def turn() -> list[Loaded | str]:
            found = []
            for environment, cache in zip(environments, caches):
                found.append(_load(environment, cache))
                each()
            return found

        turns = [turn() for _ in range(1 + N_WARM)]
    old, new = (_summed_up(side) for side in zip(*turns))
    return {name: Pair(old[name], new[name]) for name in LIMITS}


def _least(a: float | str, b: float | str) -> float | str:
    """What did not fail, if one of them did not."""
    return min((x for x in (a, b) if not isinstance(x, str)), default=a)


def _load(environment: Environment, cache: Path) -> Loaded | str:
    try:
        *_, last = environment.run("-m", "tests.upgrade.load", cache=cache).splitlines()
        return json.loads(last)
    except (UpgradeError, ValueError) as error:
        return str(error)


def _summed_up(turns: Sequence[Loaded | str]) -> dict[str, float | str]:
    """The first turn compiles, the others find it compiled."""
    loaded = list[Loaded]()
    for turn in turns:
        if isinstance(turn, str):
            return dict.fromkeys(LIMITS, turn)
        loaded.append(turn)
    cold, *warm = loaded
    return {
        "CPU seconds to load, cold": cold["seconds"],
        "CPU seconds to load, warm": median(turn["seconds"] for turn in warm),
        "MB compiled": cold["compiled MB"],
        "MB of memory, cold": cold["peak MB"],
        "MB of memory, warm": median(turn["peak MB"] for turn in warm),
    }
