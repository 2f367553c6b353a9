"""Run every op on many shapes, values and dtypes, and report how close it is to its bounds."""

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
    """The largest share of a bound so far, and its example."""

    ratio: float = 0.0
    example: Example | None = None

    def note(self, ratio: float, example: Example) -> None:
        if ratio > self.ratio:
            self.ratio, self.example = ratio, example


@dataclass
class Tally:
    """The results of all examples of one op in one dtype, for MAX and for PyTorch."""

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
        if "tiny" not in example.kinds.values():  # with values that may be flushed to 0, bounds are vacuous
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
    """Run an op on `n_examples` drawn examples and its large shape.

    Args:
        compiled: The compiled rows.
        op: The row's name.
        dtype: The dtype under test.
        n_examples: Number of examples to draw.
        derandomize: Whether to draw the same examples in each run.

    Raises:
        AssertionError: An example failed. The message has the smallest one, and Python to run it
            again.
    """
    tally = Tally(op, dtype)

    # Hypothesis derives its seed from the source of this function, so an edit changes the examples.
    def check(example: Example) -> None:
        actual, pytorch = compiled.check(example).verdicts
        tally.note(example, actual, pytorch)
        assert actual.passes, f"MAX's {op} in {dtype}: {actual}\n\n{snippet(example, compiled.name)}"
        assert pytorch.passes, f"PyTorch's {op} in {dtype}: {pytorch}\n\n{snippet(example, compiled.name)}"

    _settings(n_examples, derandomize)(given(examples(op, dtype))(check))()
    if large := large_example(op, dtype):
        check(large)
    vacuous = tally.n_vacuous / max(1, tally.n_elements)
    assert tally.n_elements, f"{op} in {dtype}: nothing was compared"
    assert vacuous <= MAX_VACUOUS, f"{op} in {dtype}: the bounds of {vacuous:.1%} of all elements say nothing"
    return tally


def drawn(op: str, dtype: str, n_examples: int) -> list[Example]:
    """Return examples of an op, the same ones in each run.

    These are at most `n_examples` drawn ones, and the row's large shape.
    """
    found = list[Example]()

    # Hypothesis derives its seed from the source of this function, so an edit changes the examples.
    def keep(example: Example) -> None:
        found.append(example)

    _settings(n_examples, derandomize=True)(given(examples(op, dtype))(keep))()
    large = large_example(op, dtype)
    return found if large is None else [*found, large]


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
    """Fuzz every row and print a table.

    Returns:
        0 if all stay within their bounds, else 1.
    """
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
    """Fuzz ops in all their dtypes and print a table.

    Returns:
        0 if all stay within their bounds, else 1.
    """
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
        table.add_row(name, dtype, str(tally.n_examples), *(f"{share.ratio:.3f}" for share in closest), _dims(tally))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        "Shares of the bounds, at most 1. worst case: the largest error; rms: the root mean square of errors."
    )
    for failure in failures:
        console.print(f"\n{failure}", markup=False)
    return 1 if failures else 0


def _dims(tally: Tally) -> str:
    """Format the dimensions of the example in which MAX comes closest to a bound."""
    example = max((tally.worst_case, tally.rms), key=lambda closest: closest.ratio).example
    return "" if example is None else " ".join(f"{name}={size}" for name, size in example.dims.items())


if __name__ == "__main__":
    sys.exit(main())
