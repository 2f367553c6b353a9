"""`nox -s upgrade -- OLD NEW`: two versions of MAX side by side; whether the new one computes anything wrong, or is slower beyond noise.

Exit status 0: nothing is worse, 1: something is wrong, 2: something is slower, 3: they could not be compared.
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
    """Says what is wrong with its arguments, and that nothing was compared."""

    def error(self, message: str) -> NoReturn:
        self.exit(COULD_NOT_RUN, f"{self.format_usage()}upgrade: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print what was found, write the report; an exit status."""
    parser = Parser(prog="nox -s upgrade --", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    version = "a version of MAX (26.7.0), a wheel's path, latest, or nightly; behind commas, paths of wheels to install over it"
    parser.add_argument("old", metavar="OLD", help=version)
    parser.add_argument("new", metavar="NEW", help="the same, to be held against it")
    parser.add_argument("--index", metavar="URL", help="a further index of packages, for versions that PyPI lacks")
    parser.add_argument(
        "--report",
        type=Path,
        default=FOLDER,
        metavar="FOLDER",
        help="where upgrade.json and upgrade.html go (%(default)s)",
    )
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _compare(args.old, args.new, args.index, args.report)
    except (UpgradeError, OSError) as error:
        print(f"upgrade: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("upgrade: interrupted", file=sys.stderr)
    except Exception:  # ours to mend; and no verdict, as Python's own exit status would be
        traceback.print_exc()
    return COULD_NOT_RUN


def _interrupt(*_: object) -> NoReturn:
    """So that processes that stand still are ended."""
    raise KeyboardInterrupt


def _compare(old: str, new: str, index: str | None, report: Path) -> int:
    for asked in (old, new):
        requirements(asked, index)
    report.mkdir(parents=True, exist_ok=True)  # before half an hour is spent
    with tqdm(total=2, desc="environments", disable=None, leave=False) as bar:
        one = prepare(old, index)
        bar.update()
        other = prepare(new, index, beside=one)
    found = compare(one, other)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    show(found, console, old, new)
    data = document(found, old, new)
    write_json(report / "upgrade.json", data)
    write(report / "upgrade.html", page(found, data))
    console.print(f"{report / 'upgrade.html'} to look at, {report / 'upgrade.json'} to process")
    return STATUS[found.verdict]


if __name__ == "__main__":
    raise SystemExit(main())
