"""Both sides asked for everything: first what they compute, at once; then how fast, in turns; last what it costs, and MAX's defects."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from reference.golden.transcripts import transcript_cases
from reference.ops import TABLE, rows_on
from reference.ops.fuzz import drawn
from tests.upgrade.cost import costs
from tests.upgrade.defects import defects
from tests.upgrade.environment import Environment, UpgradeError
from tests.upgrade.findings import DEVICE, Findings, Pair
from tests.upgrade.noise import N_AGREEING, N_ROUNDS, Speed
from tests.upgrade.side import Side

N_EXAMPLES = 25  # of an op in a dtype
Sides = tuple[Side, Side]


def compare(old: Environment, new: Environment) -> Findings:
    """Everything, which takes half an hour where nothing is compiled yet.

    Raises UpgradeError where OLD does not even say which version it is.
    """
    environments = (old, new)
    with _sides(environments) as sides:
        found = Findings(_ask(sides, "versions"))
        if isinstance(found.versions.old, str):
            raise UpgradeError(f"there is nothing to compare with: {found.versions.old}")
        found.ops, found.activations, found.transcripts = (
            _ops(sides, rows_on(DEVICE)),
            _activations(sides),
            _transcripts(sides),
        )
    found.timing, found.speed = _speed(environments)
    with tqdm(desc="start-up", unit="process", disable=None, leave=False) as bar:
        found.cost = costs(environments, bar.update)
    found.defects = defects(environments)
    return found


@contextmanager
def _sides(environments: tuple[Environment, Environment]) -> Iterator[Sides]:
    old, new = (Side(environment) for environment in environments)
    try:
        yield old, new
    finally:
        old.stop()
        new.stop()


def _ask(sides: Sides, question: str, *arguments: object) -> Pair:
    """Both answers at once."""
    with ThreadPoolExecutor() as threads:
        return Pair(*threads.map(lambda side: _answer(side, question, *arguments), sides))


def _answer(side: Side, question: str, *arguments: object) -> Any:
    """An answer, or what went wrong: a string."""
    try:
        return side.ask(question, *arguments)
    except UpgradeError as error:
        return str(error)


def _ops(sides: Sides, names: Collection[str]) -> dict[str, Pair]:
    rows = [(name, dtype) for name in names for dtype in TABLE[name].dtypes]
    bar = tqdm(rows, desc="ops, which compile first", disable=None, leave=False)
    return {f"{name} {dtype}": _ask(sides, "op", name, dtype, drawn(name, dtype, N_EXAMPLES)) for name, dtype in bar}


def _activations(sides: Sides) -> dict[str, Pair]:
    return _each(_ask(sides, "activations"), "there is no such activation")


def _each(both: Pair, missing: str) -> dict[str, Pair]:
    """Answers by name as pairs by name; one for all of them where a side has none."""
    if both.compared:
        return {name: Pair(both.old.get(name, missing), both.new.get(name, missing)) for name in both.old | both.new}
    return {"all of them": Pair(*(side if isinstance(side, str) else None for side in (both.old, both.new)))}


def _transcripts(sides: Sides) -> dict[str, Pair]:
    return {
        name: _ask(sides, "transcript", name)
        for name in tqdm(transcript_cases(), desc="transcripts", disable=None, leave=False)
    }


def _speed(environments: tuple[Environment, Environment]) -> tuple[dict[str, Pair], dict[str, list[Speed]]]:
    """What could be timed, and every such line's speed by one pair of processes; where they differ beyond noise, by others, too."""
    with _sides(environments) as sides:
        timing = _each(_ask(sides, "timed"), "there is no such line")
        seen = {name: [speed] for name, speed in _turns(sides, timing).items()}
    for _ in range(N_AGREEING - 1):
        if flagged := {name: timing[name] for name, speeds in seen.items() if all(speed.judged for speed in speeds)}:
            with _sides(environments) as sides:
                for name, speed in _turns(sides, flagged).items():
                    seen[name].append(speed)
            timing |= flagged
    return timing, seen


def _turns(sides: Sides, timing: dict[str, Pair]) -> dict[str, Speed]:
    """Rounds in which each line has a turn on either side, one directly after the other; which one is first changes.

    timing: the lines; of one that fails it says so in the end.
    """
    seconds: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name, pair in timing.items() if pair.compared
    }
    for round_ in tqdm(range(N_ROUNDS), desc=f"speed of {len(seconds)}", disable=None, leave=False):
        for name, both in list(seconds.items()):
            turns: list[Any] = [None, None]
            for i in (0, 1) if round_ % 2 else (1, 0):
                turns[i] = _answer(sides[i], "turn", name)
            if (pair := Pair(*turns)).compared:
                both[0].append(pair.old)
                both[1].append(pair.new)
            else:
                timing[name] = pair
                del seconds[name]
    return {name: Speed.of(*both) for name, both in seconds.items()}
