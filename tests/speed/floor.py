"""How far each stage is from what this machine could do at most: `python -m tests.speed.floor [--model base]`."""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import maxwhisper
from maxwhisper.checkpoint import load_checkpoint
from reference.clips import packaged_clips
from reference.models.openai import load_openai
from tests.speed.ceilings import Ceilings, Machine
from tests.speed.stages import stages

N_ROUNDS = 9


def main(argv: Sequence[str] | None = None) -> int:
    """Measure ceilings and stages in turns, and print a line for each stage."""
    parser = argparse.ArgumentParser(prog="floor", description=__doc__)
    parser.add_argument("--model", default="tiny.en", help="an official model's name, or a path (%(default)s)")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.model)
    every = stages(maxwhisper.Whisper(checkpoint), load_openai(checkpoint), packaged_clips()["beckett"].samples)
    machine = Machine()
    ceilings, seconds = list[Ceilings](), np.empty((N_ROUNDS, len(every)))
    for i in tqdm(range(-1, N_ROUNDS), desc="measuring", disable=None, leave=False):  # the first one warms up
        now = machine.ceilings()
        for j, stage in enumerate(every):
            begin = time.perf_counter()
            stage.ours()
            seconds[i, j] = (time.perf_counter() - begin) / stage.n
        ceilings.append(now)
    typical = Ceilings(
        *(float(np.median([getattr(each, name) for each in ceilings[1:]])) for name in ("operations", "bandwidth"))
    )
    title = f"{args.model}: at most {typical.operations / 1e9:.0f} GFLOP/s and {typical.bandwidth / 1e9:.1f} GB/s; medians of {N_ROUNDS}"
    table = Table("stage", title=title)
    for heading in ("GFLOP", "MB", "floor ms", "measured ms", "× floor"):
        table.add_column(heading, justify="right")
    for stage, measured in zip(every, np.median(seconds, axis=0)):
        total = [sum(n * getattr(work, name) for n, work in stage.works) for name in ("operations", "n_bytes")]
        floor = stage.floor(typical)
        table.add_row(
            stage.name,
            f"{total[0] / 1e9:.2f}",
            f"{total[1] / 1e6:.0f}",
            f"{1e3 * floor:.2f}",
            f"{1e3 * measured:.2f}",
            f"{measured / floor:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
