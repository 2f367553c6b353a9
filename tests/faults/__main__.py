"""Plant porters' mistakes one by one. Each must be caught, and the right name blamed."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tests.faults.all_faults import CONTROLS, FAULTS
from tests.faults.fault_table import summary, write_readme
from tests.faults.recording import write_recording
from tests.faults.trial import Outcome, Trials, compile_by_two

REPORT = Path("report/faults.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Plant each fault and each control, and print the outcomes.

    Returns:
        0 if each fault was caught and blamed on the expected name and no control was reported,
        2 for an unknown name, else 1.
    """
    parser = argparse.ArgumentParser(prog="nox -s faults --", description=__doc__)
    parser.add_argument("name", nargs="*", help="only these faults and controls; by default, all")
    parser.add_argument("--readme", action="store_true", help="write the table into tests/faults/README.md")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    args = parser.parse_args(argv)
    if args.readme and args.name:
        parser.error("--readme writes the whole table; leave out the names")
    everything = {**FAULTS, **CONTROLS}
    if unknown := [name for name in args.name if name not in everything]:
        print(
            f"faults: there is no fault or control {unknown[0]!r}; choose from: {'; '.join(everything)}",
            file=sys.stderr,
        )
        return 2
    with TemporaryDirectory() as folder:
        trials = Trials(everything.values(), write_recording(Path(folder)), args.device)
        if not args.name:
            compile_by_two(trials)
        outcomes = [trials.run(everything[name]) for name in tqdm(args.name or everything, unit="fault", disable=None)]
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    console.print(_table(outcomes))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(
        json.dumps([outcome.to_json() for outcome in outcomes], indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    if args.readme:
        write_readme(outcomes)
    print(summary(outcomes))
    return 0 if all(outcome.is_as_expected for outcome in outcomes) else 1


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        "fault", "op", "in situ", "end to end", "blamed", "expected", "other words", "cosine", "let through by"
    )
    for outcome in outcomes:
        marks = [
            "·" if caught is None else "caught" if caught else "-"
            for caught in (outcome.isolated, outcome.in_situ, outcome.end_to_end)
        ]
        cosine = f"{outcome.contrast.cosine:.6f}" if outcome.contrast else ""
        style = "" if outcome.is_as_expected else "bold red"
        words = f"{outcome.words:.0%}"
        table.add_row(
            outcome.name,
            *marks,
            outcome.blamed,
            outcome.expected,
            words,
            cosine,
            ", ".join(outcome.let_through),
            style=style,
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
