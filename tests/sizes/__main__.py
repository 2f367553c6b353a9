"""Judge every size of Whisper, with random weights, in the files that people have them in."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from maxwhisper.checkpoint import load_checkpoint
from maxwhisper.checkpoint.dimensions import SIZES
from tests.sizes.formats import WRITERS, as_transformers, differences, random_weights
from tests.sizes.result import Result
from tests.sizes.window import judge_window, question


def main(argv: Sequence[str] | None = None) -> int:
    """Judge sizes, each in a process of its own, so that its memory is returned.

    Returns:
        0 if all pass, else 1.
    """
    parser = argparse.ArgumentParser(prog="nox -s sizes --", description=__doc__)
    parser.add_argument("name", nargs="*", metavar="SIZE", help=f"only these sizes: {', '.join(SIZES)}")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # in this process, as JSON
    parser.add_argument("--without", nargs="*", default=[], help=argparse.SUPPRESS)  # as in judge_window
    args = parser.parse_args(argv)
    if unknown := [name for name in args.name if name not in SIZES]:
        parser.error(f"there is no size {unknown[0]!r}; choose from {', '.join(SIZES)}")
    if args.alone:
        print(judge_size(args.name[0], tuple(args.without)).to_json())
        return 0
    results, encoders = list[Result](), set[tuple[int, int]]()
    for name in tqdm(args.name or SIZES, unit="size", disable=None):
        encoder = SIZES[name].n_audio_state, SIZES[name].n_audio_layer
        without = ["--without", "encoder.blocks."] if encoder in encoders else []  # judged in a size before
        encoders.add(encoder)
        command = [sys.executable, "-m", "tests.sizes", "--alone", name, *without]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        results.append(Result.from_json(run.stdout.splitlines()[-1]) if run.returncode == 0 else Result.died(name))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(_table(results))
    for result in results:
        for failure in result.failures:
            print(f"{result.name}: {failure}")
    return 0 if all(not result.failures for result in results) else 1


def judge_size(name: str, without: tuple[str, ...] = ()) -> Result:
    """Write, read and judge one size, without the activations whose names begin so."""
    begin = time.perf_counter()
    checkpoint = random_weights(SIZES[name])
    result = Result(name)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = as_transformers(checkpoint)
        for format, write in WRITERS.items():
            read = load_checkpoint(write(folder / format.replace(" ", "-"), checkpoint, model))
            result.failures += [f"{format}: {difference}" for difference in differences(read, checkpoint)]
        del model
        checkpoint = load_checkpoint(folder / "Hugging-Face")  # mapped from here on
        for judged in judge_window(checkpoint, question(checkpoint), folder / "activations", without):
            result.note(judged)
    result.seconds = time.perf_counter() - begin
    return result


def _table(results: Sequence[Result]) -> Table:
    table = Table("size", title="each activation in situ, as a share of its bounds; the largest of each size")
    for heading in ("activations", "of worst case", "of statistical", "error × OpenAI Whisper's", "peak MB", "seconds"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.name,
            str(result.n),
            f"{result.worst_case:.3f}",
            f"{result.statistical:.3f}",
            f"{result.error_ratio:.2f}",
            f"{result.peak_mb:.0f}",
            f"{result.seconds:.0f}",
            style="bold red" if result.failures else "",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
