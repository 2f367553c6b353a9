"""Print the comparison in a terminal: the differences line by line, and the verdict last."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.upgrade.findings import GONE, LIMITS, THERE, Findings, Pair
from tests.upgrade.noise import agreed

STYLES = {"nothing worse": "green", "nothing differs": "green"}


def show(findings: Findings, console: Console, old: str, new: str) -> None:
    """Print tables of ops, speed and costs, and differences of other results.

    Args:
        findings: of the comparison.
        console: to print on.
        old: OLD, as on the command line.
        new: NEW, as on the command line.
    """
    console.print(
        _table(
            "largest error / worst-case bound (RMS error / statistical bound)",
            ("op", "old", "new", "bits"),
            _ops(findings.ops),
        )
    )
    console.print(_table("milliseconds", ("speed", "old", "new", "new / old", "noise", ""), _speed(findings)))
    console.print(_table("tiny.en", ("cost", "old", "new", "new / old", "limit"), _costs(findings.cost)))
    for name, pairs in (("activations", findings.activations), ("transcripts", findings.transcripts)):
        equal = sum(pair.equal for pair in pairs.values())
        console.print(f"{equal} of {len(pairs)} {name} are equal{_farthest(pairs)}")
    for name, pair in findings.defects.items():
        if pair.old != pair.new:
            console.print(Text(f"defect {name}: {_state(pair.old)}, now {_state(pair.new)}"))
    n_there = sum(pair.new == THERE for pair in findings.defects.values())
    console.print(f"{n_there} of {len(findings.defects)} pinned defects are present in the new version")
    for name, why in findings.wrong_before().items():
        console.print(Text(f"WRONG  {name}, on both sides: {why}", "yellow"), soft_wrap=True)
    for name, why in findings.wrong().items():
        console.print(Text(f"WRONG  {name}: {why}", "bold red"), soft_wrap=True)
    for name, ratio in findings.slower().items():
        console.print(Text(f"SLOWER {name}: {ratio}", "bold red"))
    for name, ratio in findings.faster().items():
        console.print(Text(f"FASTER {name}: {ratio}", "green"))
    before, after = ({} if isinstance(side, str) else side for side in (findings.versions.old, findings.versions.new))
    for package in sorted(before.keys() & after.keys() - {"max", "mojo-compiler"}):
        if before[package] != after[package]:
            console.print(Text(f"the version of {package} differs too: {before[package]} → {after[package]}", "yellow"))
    verdict = f"{findings.verdict.upper()}: MAX {_version(before, old)} → {_version(after, new)}"
    console.print(Text(verdict, STYLES.get(findings.verdict, "bold red")), soft_wrap=True)


def _version(packages: Mapping[str, str], spec: str) -> str:
    version = packages.get("max", "?")
    return version if version == spec else f"{version} ({spec})"


def _table(caption: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, title=caption, title_justify="left", title_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] or not column else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _ops(pairs: Mapping[str, Pair]) -> Iterator[tuple[str, ...]]:
    for name, pair in pairs.items():
        yield (
            name,
            *(_ratios(side) for side in (pair.old, pair.new)),
            "equal" if pair.equal else "differ" if pair.compared else "none",
        )


def _ratios(side: Any) -> str:
    return "none" if isinstance(side, str) else f"{side.share:.3f} ({side.sharp_share:.3f})"


def _speed(findings: Findings) -> Iterator[tuple[str, ...]]:
    for name, speeds in findings.speed.items():
        last = speeds[-1]
        yield (
            name,
            f"{1e3 * last.old:.3f}",
            f"{1e3 * last.new:.3f}",
            f"{last.ratio:.2f}",
            f"{last.low:.2f}–{last.high:.2f}",
            agreed(speeds),
        )


def _costs(pairs: Mapping[str, Pair]) -> Iterator[tuple[str, ...]]:
    for name, pair in pairs.items():
        ratio = f"{pair.new / pair.old:.2f}" if pair.compared else ""
        yield (
            name,
            *("none" if isinstance(side, str) else f"{side:.2f}" for side in (pair.old, pair.new)),
            ratio,
            f"{LIMITS[name]}",
        )


def _farthest(pairs: Mapping[str, Pair]) -> str:
    """Describe the activation whose distance from float64 has grown most."""
    growth = {
        name: pair.new.rms / pair.old.rms
        for name, pair in pairs.items()
        if not pair.equal and all(getattr(side, "rms", 0) for side in (pair.old, pair.new))
    }
    if not growth:
        return ""
    name = max(growth, key=lambda name: growth[name])
    return f"; distance from float64 grew at most {growth[name]:.2f} times, that of {name}"


def _state(state: str) -> str:
    return state if state in (THERE, GONE) else state.partition("\n")[0]
