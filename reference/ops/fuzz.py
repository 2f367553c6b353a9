"""`nox -s fuzz`: every op of the table on many shapes, values and dtypes; how close each comes to its bounds, and where."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, settings
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from maxwhisper import WhisperError
from reference.numerics.compare import MAX_VACUOUS, Verdict
from reference.ops import rows_on
from reference.ops.inputs import Example, examples, large_example
from reference.ops.suite import Suite, snippet, suite


@dataclass
class Closest:
    """The largest share of a bound that was seen, and where."""

    ratio: float = 0.0
    example: Example | None = None

    def note(self, ratio: float, example: Example) -> None:
        if ratio > self.ratio:
            self.ratio, self.example = ratio, example


@dataclass
class Tally:
    """What came of all examples of one op in one dtype, for MAX and for PyTorch."""

    op: str
    dtype: str
    n_examples: int = 0
    n_elements: int = 0
    n_vacuous: int = 0
    worst_case: Closest = field(default_factory=Closest)
    rms: Closest = field(default_factory=Closest)
    pytorch_worst_case: Closest = field(default_factory=Closest)
    pytorch_rms: Closest = field(default_factory=Closest)

    def note(self, example: Example, actual: Verdict, pytorch: Verdict) -> None:
        self.n_examples += 1
        if "tiny" not in example.kinds.values():  # what may be flushed to zero can't be told from zero
            self.n_elements += actual.n
            self.n_vacuous += actual.n_vacuous
        for closest, ratio in (
            (self.worst_case, actual.worst_case_ratio),
            (self.rms, actual.rms_ratio),
            (self.pytorch_worst_case, pytorch.worst_case_ratio),
            (self.pytorch_rms, pytorch.rms_ratio),
        ):
            closest.note(ratio, example)


def fuzz(compiled: Suite, op: str, dtype: str, n_examples: int, derandomize: bool = True) -> Tally:
    """Try an op on `n_examples` drawn examples and its pinned large shape.

    Raises AssertionError with the smallest example that fails, and Python to see it again.
    """
    tally = Tally(op, dtype)

    def check(example: Example) -> None:
        actual, pytorch = compiled.check(example).verdicts
        tally.note(example, actual, pytorch)
        assert actual.passes, f"MAX's {op} in {dtype}: {actual}\n\n{snippet(example, compiled.name)}"
        assert pytorch.passes, f"PyTorch's {op} in {dtype}: {pytorch}\n\n{snippet(example, compiled.name)}"

    _settings(n_examples, derandomize)(given(examples(op, dtype))(check))()
    if pinned := large_example(op, dtype):
        check(pinned)
    vacuous = tally.n_vacuous / max(1, tally.n_elements)
    assert tally.n_elements, f"{op} in {dtype}: nothing was compared"
    assert vacuous <= MAX_VACUOUS, f"{op} in {dtype}: the bounds of {vacuous:.1%} of all elements say nothing"
    return tally


def drawn(op: str, dtype: str, n_examples: int) -> list[Example]:
    """At most so many examples of an op, always the same, and its pinned large shape."""
    found = list[Example]()

    def keep(example: Example) -> None:
        found.append(example)

    _settings(n_examples, derandomize=True)(given(examples(op, dtype))(keep))()
    pinned = large_example(op, dtype)
    return found if pinned is None else [*found, pinned]


def _settings(n_examples: int, derandomize: bool) -> settings:
    return settings(
        max_examples=n_examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz every row, print a table, and return 0 where all stay inside their bounds, else 1."""
    parser = argparse.ArgumentParser(prog="nox -s fuzz --", description=__doc__)
    parser.add_argument(
        "--examples", type=int, default=500, metavar="N", help="for each op and dtype (default: %(default)s)"
    )
    parser.add_argument("--op", action="append", help="only this op; may be repeated")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    args = parser.parse_args(argv)
    rows = rows_on(args.device)
    if unknown := set(args.op or ()) - set(rows):
        print(f"fuzz: no op is called {', '.join(sorted(unknown))}; there are {', '.join(rows)}", file=sys.stderr)
        return 1
    if args.examples < 1:
        print(f"fuzz: {args.examples} examples show nothing; give 1 or more", file=sys.stderr)
        return 1
    try:
        compiled = suite(args.device)
    except WhisperError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1
    return report(compiled, args.op or list(rows), args.examples)


def report(compiled: Suite, names: Sequence[str], n_examples: int) -> int:
    """Fuzz these ops in all their dtypes and print a table of them; 0 where all stay inside their bounds, else 1."""
    table = Table("op", "dtype", "examples", "worst case", "rms", "PyTorch", "its rms", "where MAX comes closest")
    failures = []
    tasks = [(name, dtype) for name in names for dtype in compiled.rows[name].dtypes]
    for name, dtype in tqdm(tasks, unit="op", disable=None, leave=False):
        try:
            tally = fuzz(compiled, name, dtype, n_examples, derandomize=False)
        except AssertionError as error:
            failures.append(str(error))
            table.add_row(name, dtype, "[red]FAILED, see below")
            continue
        closest = (tally.worst_case, tally.rms, tally.pytorch_worst_case, tally.pytorch_rms)
        table.add_row(name, dtype, str(tally.n_examples), *(f"{one.ratio:.3f}" for one in closest), _where(tally))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        "Shares of the bounds, at most 1. worst case: the largest error; rms: the root mean square of errors."
    )
    for failure in failures:
        console.print(f"\n{failure}", markup=False)
    return 1 if failures else 0


def _where(tally: Tally) -> str:
    example = max((tally.worst_case, tally.rms), key=lambda closest: closest.ratio).example
    return "" if example is None else " ".join(f"{name}={size}" for name, size in example.dims.items())


if __name__ == "__main__":
    sys.exit(main())
