"""Compare both versions: results in parallel, then interleaved timing, cost, and MAX's defects."""

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

N_EXAMPLES = 25  # of each op and dtype
Sides = tuple[Side, Side]


def compare(old: Environment, new: Environment) -> Findings:
    """Compare everything. This takes half an hour if nothing is compiled yet.

    Raises:
        UpgradeError: if OLD can't be imported, so that there is nothing to compare with.
    """
    environments = (old, new)
    with _sides(environments) as sides:
        findings = Findings(_ask(sides, "versions"))
        if isinstance(findings.versions.old, str):
            raise UpgradeError(f"there is nothing to compare with: {findings.versions.old}")
        findings.ops = _ops(sides, rows_on(DEVICE))
        findings.activations = _activations(sides)
        findings.transcripts = _transcripts(sides)
    findings.timing, findings.speed = _speed(environments)
    with tqdm(desc="start-up", unit="process", disable=None, leave=False) as bar:
        findings.cost = costs(environments, bar.update)
    findings.defects = defects(environments)
    return findings


@contextmanager
def _sides(environments: tuple[Environment, Environment]) -> Iterator[Sides]:
    old, new = (Side(environment) for environment in environments)
    try:
        yield old, new
    finally:
        old.stop()
        new.stop()


def _ask(sides: Sides, question: str, *arguments: object) -> Pair:
    """Ask both sides in parallel."""
    with ThreadPoolExecutor() as threads:
        return Pair(*threads.map(lambda side: _answer(side, question, *arguments), sides))


def _answer(side: Side, question: str, *arguments: object) -> Any:
    """Return a side's answer, or the error as a string."""
    try:
        return side.ask(question, *arguments)
    except UpgradeError as error:
        return str(error)


def _ops(sides: Sides, names: Collection[str]) -> dict[str, Pair]:
    rows = [(name, dtype) for name in names for dtype in TABLE[name].dtypes]
    bar = tqdm(rows, desc="ops, which compile first", disable=None, leave=False)
    return {f"{name} {dtype}": _ask(sides, "op", name, dtype, drawn(name, dtype, N_EXAMPLES)) for name, dtype in bar}


def _activations(sides: Sides) -> dict[str, Pair]:
    return _pairs_by_name(_ask(sides, "activations"), "there is no such activation")


def _pairs_by_name(answers: Pair, missing: str) -> dict[str, Pair]:
    """Turn a pair of dicts into a dict of pairs. If a side failed, make one pair for all names."""
    if answers.compared:
        names = answers.old | answers.new
        return {name: Pair(answers.old.get(name, missing), answers.new.get(name, missing)) for name in names}
    return {"all of them": Pair(*(side if isinstance(side, str) else None for side in (answers.old, answers.new)))}


def _transcripts(sides: Sides) -> dict[str, Pair]:
    return {
        name: _ask(sides, "transcript", name)
        for name in tqdm(transcript_cases(), desc="transcripts", disable=None, leave=False)
    }


def _speed(environments: tuple[Environment, Environment]) -> tuple[dict[str, Pair], dict[str, list[Speed]]]:
    """Time all lines with a pair of processes, and those that differ with more pairs.

    Returns:
        For each line whether it could be timed, and its speeds, one for each pair of processes.
    """
    with _sides(environments) as sides:
        timing = _pairs_by_name(_ask(sides, "timed_names"), "there is no such line")
        speeds_by_name = {name: [speed] for name, speed in _time_interleaved(sides, timing).items()}
    for _ in range(N_AGREEING - 1):
        flagged = {
            name: timing[name] for name, speeds in speeds_by_name.items() if all(speed.judged for speed in speeds)
        }
        if flagged:
            with _sides(environments) as sides:
                for name, speed in _time_interleaved(sides, flagged).items():
                    speeds_by_name[name].append(speed)
            timing |= flagged
    return timing, speeds_by_name


def _time_interleaved(sides: Sides, timing: dict[str, Pair]) -> dict[str, Speed]:
    """Time each line in rounds, on one side directly after the other.

    The side that is first alternates between rounds.

    Args:
        sides: the two processes.
        timing: the lines. The entry of a line that fails is replaced by its errors.

    Returns:
        The speeds of the lines that did not fail.
    """
    seconds: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name, pair in timing.items() if pair.compared
    }
    for round_ in tqdm(range(N_ROUNDS), desc=f"speed of {len(seconds)}", disable=None, leave=False):
        for name, (old_seconds, new_seconds) in list(seconds.items()):
            answers: list[Any] = [None, None]
            for i in (0, 1) if round_ % 2 else (1, 0):
                answers[i] = _answer(sides[i], "seconds_per_call", name)
            if (pair := Pair(*answers)).compared:
                old_seconds.append(pair.old)
                new_seconds.append(pair.new)
            else:
                timing[name] = pair
                del seconds[name]
    return {name: Speed.of(*both_seconds) for name, both_seconds in seconds.items()}
