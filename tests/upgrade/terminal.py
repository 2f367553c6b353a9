"""The comparison in a terminal: what differs, line by line, and the verdict last."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.upgrade.findings import GONE, LIMITS, THERE, Findings, Pair
from tests.upgrade.noise import agreed

STYLES = {"nothing worse": "green", "nothing differs": "green"}


def show(found: Findings, console: Console, old: str, new: str) -> None:
    """Tables of ops, speed and costs; of activations, transcripts and defects what differs.

    old, new: what was asked for.
    """
    console.print(
        _table("share of the worst-case bound (of the statistical one)", ("op", "old", "new", "bits"), _ops(found.ops))
    )
    console.print(_table("milliseconds", ("speed", "old", "new", "new / old", "noise", ""), _speed(found)))
    console.print(_table("tiny.en", ("cost", "old", "new", "new / old", "limit"), _costs(found.cost)))
    for name, pairs in (("activations", found.activations), ("transcripts", found.transcripts)):
        equal = sum(pair.equal for pair in pairs.values())
        console.print(f"{equal} of {len(pairs)} {name} are equal{_farthest(pairs)}")
    for name, pair in found.defects.items():
        if pair.old != pair.new:
            console.print(Text(f"defect {name}: {_state(pair.old)}, now {_state(pair.new)}"))
    n_there = sum(pair.new == THERE for pair in found.defects.values())
    console.print(f"{n_there} of {len(found.defects)} pinned defects are there")
    for name, why in found.wrong_before().items():
        console.print(Text(f"WRONG  {name}, on both sides: {why}", "yellow"), soft_wrap=True)
    for name, why in found.wrong().items():
        console.print(Text(f"WRONG  {name}: {why}", "bold red"), soft_wrap=True)
    for name, much in found.slower().items():
        console.print(Text(f"SLOWER {name}: {much}", "bold red"))
    for name, much in found.faster().items():
        console.print(Text(f"FASTER {name}: {much}", "green"))
    before, after = ({} if isinstance(side, str) else side for side in (found.versions.old, found.versions.new))
    for package in sorted(before.keys() & after.keys() - {"max", "mojo-compiler"}):
        if before[package] != after[package]:
            console.print(
                Text(f"beside MAX, {package} is another version, too: {before[package]} → {after[package]}", "yellow")
            )
    verdict = f"{found.verdict.upper()}: MAX {_version(before, old)} → {_version(after, new)}"
    console.print(Text(verdict, STYLES.get(found.verdict, "bold red")), soft_wrap=True)


def _version(packages: Mapping[str, str], asked: str) -> str:
    version = packages.get("max", "?")
    return version if version == asked else f"{version} ({asked})"


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
            *(_share(side) for side in (pair.old, pair.new)),
            "equal" if pair.equal else "differ" if pair.compared else "none",
        )


def _share(side: Any) -> str:
    return "none" if isinstance(side, str) else f"{side.share:.3f} ({side.sharp_share:.3f})"


def _speed(found: Findings) -> Iterator[tuple[str, ...]]:
    for name, seen in found.speed.items():
        last = seen[-1]
        yield (
            name,
            f"{1e3 * last.old:.3f}",
            f"{1e3 * last.new:.3f}",
            f"{last.ratio:.2f}",
            f"{last.low:.2f}–{last.high:.2f}",
            agreed(seen),
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
    """The activation whose distance from float64 has grown most."""
    grown = {
        name: pair.new.rms / pair.old.rms
        for name, pair in pairs.items()
        if not pair.equal and all(getattr(side, "rms", 0) for side in (pair.old, pair.new))
    }
    if not grown:
        return ""
    name = max(grown, key=lambda name: grown[name])
    return f"; distance from float64 grew at most {grown[name]:.2f} times, that of {name}"


def _state(state: str) -> str:
    return state if state in (THERE, GONE) else state.partition("\n")[0]
