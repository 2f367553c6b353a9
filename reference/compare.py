"""Compare a port's activations with its original: `python -m reference.compare ORIGINAL PORT`.

ORIGINAL is a file of `reference.port.save_original`, PORT a `.npz`, `.safetensors` or `.pt` file of
arrays by name. The exit status is 0 if all activations are inside their bounds, 1 if one is not,
and 2 if the two can't be compared.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from reference.numerics.dtypes import DTYPES
from reference.parity.activations import Compared
from reference.port.document import document
from reference.port.dumps import load_activations, load_original
from reference.port.errors import PortError
from reference.port.judge import judge_port
from reference.port.match import match
from reference.port.minimise import minimise
from reference.port.page import page
from reference.port.parity import describe
from reference.port.propose import propose
from reference.port.trace import Traced
from reference.report.page import write, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reference.compare", description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("port", type=Path)
    parser.add_argument("--names", type=Path, help="JSON: the original's name for some of the port's")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="what the port computes in (%(default)s)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"], help="where it ran (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the comparison there")
    parser.add_argument("--html", type=Path, help="write it as a page there")
    parser.add_argument(
        "--propose", type=Path, metavar="FILE", help="write what names may mean, for --names; then stop"
    )
    parser.add_argument("--minimise", type=Path, metavar="FILE", help="write the first op that differs as Python")
    parser.add_argument("--partial", action="store_true", help="the port need not show the original's results")
    args = parser.parse_args(argv)
    try:
        for path in filter(None, (args.json, args.html, args.propose, args.minimise)):
            check_writable(path)
        return _compare(args)
    except PortError as error:
        print(f"reference.compare: {error}", file=sys.stderr)
        return 2


def _compare(args: argparse.Namespace) -> int:
    traced, port = load_original(args.original), load_activations(args.port)
    names = _names(args.names)
    if args.propose:
        return _propose(args.propose, traced, port, names)
    matched, compared = match(traced, port, names), list[Compared]()
    options = {"dtype": args.dtype, "device": args.device, "partial": args.partial}
    judged = judge_port(traced, port, names=names, **options)
    for one in tqdm(judged, total=len(matched.activations), unit="activation", disable=None, leave=False):
        compared.append(one)
    Console(highlight=False, width=None if sys.stdout.isatty() else 180).print(_table(compared))
    if matched.unknown:
        unknown = ", ".join(matched.unknown)
        print(f"{len(matched.unknown)} arrays mean nothing to the original (--names, --propose): {unknown}")
    if matched.missing:
        print(f"not shown by the port, and judged with what comes after them: {len(matched.missing)}")
    failed = [one for one in compared if not one.passes]
    print(describe(failed, compared) if failed else f"all {len(compared)} activations are equal within rounding")
    if args.json:
        write_json(args.json, document(compared, matched))
    if args.html:
        write(args.html, page(compared, document(compared, matched)))
    if args.minimise and failed:
        minimise(args.minimise, traced, matched, failed[0].name, args.dtype, args.device)
        print(f"the op alone: {args.minimise}")
    return 1 if failed else 0


def check_writable(path: Path) -> None:
    """Check before any work that a file can be written.

    Raises:
        PortError: It is a folder, or its folder is missing or can't be written to.
    """
    if path.is_dir():
        raise PortError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise PortError(f"{path} can't be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PortError(f"{path} can't be written: permission denied")


def _propose(path: Path, traced: Traced, port: Mapping[str, np.ndarray], names: Mapping[str, str]) -> int:
    """Write the names that are known, and a proposal for each that is not."""
    matched = match(traced, port, names, allows_none=True)
    proposals = propose(traced, port, matched)
    for one in proposals:
        print(f"{one.own} may be {one.name}, from whose values it is {one.distance:.2g} of their size away")
    for own in [own for own in matched.unknown if own not in {one.own for one in proposals}]:
        print(f"{own} is like nothing in the original")
    write_json(path, {**names, **{one.own: one.name for one in proposals}})
    print(f"{path}: look it through, and give it as --names")
    return 0


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PortError(f"{path} can't be read: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise PortError(f"{path} must be a JSON object of the port's names and the original's")
    return names


def _table(compared: Sequence[Compared]) -> Table:
    name = Column("activation", overflow="fold")
    table = Table("", name, "ops", "shape", "worst case", "RMS", "original's RMS", "error", "its error", box=None)
    for one in compared:
        table.add_row(
            "✓" if one.passes else "✗",
            one.name,
            one.op + " *" * one.estimated,
            "×".join(map(str, one.shape)),
            f"{one.in_situ.worst_case_ratio:.3f}",
            f"{one.in_situ.rms_ratio:.3f}",
            f"{one.pytorch.rms_ratio:.3f}",
            f"{one.error.rms:.2g}",
            "" if one.peer is None else f"{one.peer.rms:.2g}",
            style=None if one.passes else "red",
        )
    if any(one.estimated for one in compared):
        table.caption = "* bounds are estimates: several ops, or one without a row"
    return table


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    raise SystemExit(main())
