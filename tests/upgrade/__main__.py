"""Compare two versions of MAX: does the new one compute anything wrong, or is it slower?

Usage: `nox -s upgrade -- OLD NEW`. Exit status 0: nothing is worse. 1: something is wrong.
2: something is slower beyond noise. 3: the versions could not be compared.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from tqdm import tqdm

from reference.report.page import write, write_json
from tests.upgrade.compare import compare
from tests.upgrade.document import document
from tests.upgrade.environment import UpgradeError, prepare, requirements
from tests.upgrade.findings import STATUS
from tests.upgrade.page import page
from tests.upgrade.terminal import show

FOLDER = Path("report")
COULD_NOT_RUN = STATUS["could not be compared"]


class Parser(argparse.ArgumentParser):
    """A parser that exits with the status of `could not be compared` if an argument is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(COULD_NOT_RUN, f"{self.format_usage()}upgrade: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the findings, write the report, and return an exit status."""
    parser = Parser(prog="nox -s upgrade --", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    version = (
        "a version of MAX (26.7.0), a wheel's path, latest or nightly;"
        " after commas, paths of wheels to install over that version"
    )
    parser.add_argument("old", metavar="OLD", help=version)
    parser.add_argument("new", metavar="NEW", help="the version to compare with it, in the same form")
    parser.add_argument("--index", metavar="URL", help="an additional package index, for versions that PyPI lacks")
    parser.add_argument(
        "--report",
        type=Path,
        default=FOLDER,
        metavar="FOLDER",
        help="folder for upgrade.json and upgrade.html (%(default)s)",
    )
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _compare(args.old, args.new, args.index, args.report)
    except (UpgradeError, OSError) as error:
        print(f"upgrade: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("upgrade: interrupted", file=sys.stderr)
    except Exception:  # a bug of this tool: Python's own exit status 1 would read as a verdict
        traceback.print_exc()
    return COULD_NOT_RUN


def _interrupt(*_: object) -> NoReturn:
    """Turn a signal into an exception, so that paused processes are ended too."""
    raise KeyboardInterrupt


def _compare(old: str, new: str, index: str | None, report: Path) -> int:
    for version in (old, new):
        requirements(version, index)
    report.mkdir(parents=True, exist_ok=True)  # fail now, not after half an hour
    with tqdm(total=2, desc="environments", disable=None, leave=False) as bar:
        old_environment = prepare(old, index)
        bar.update()
        new_environment = prepare(new, index, other=old_environment)
    findings = compare(old_environment, new_environment)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    show(findings, console, old, new)
    data = document(findings, old, new)
    write_json(report / "upgrade.json", data)
    write(report / "upgrade.html", page(findings, data))
    console.print(f"wrote {report / 'upgrade.html'} and {report / 'upgrade.json'}")
    return STATUS[findings.verdict]


if __name__ == "__main__":
    raise SystemExit(main())
