"""Compare each stage's time with its roofline time on this machine.

Usage: `python -m tests.speed.roofline [--model base]`.
"""

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
from tests.speed.ceilings import CeilingMeter, Ceilings
from tests.speed.stages import stages

N_ROUNDS = 9


def main(argv: Sequence[str] | None = None) -> int:
    """Measure peak rates and stages alternately, and print a line for each stage."""
    parser = argparse.ArgumentParser(prog="roofline", description=__doc__)
    parser.add_argument("--model", default="tiny.en", help="an official model's name, or a path (%(default)s)")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.model)
    all_stages = stages(maxwhisper.Whisper(checkpoint), load_openai(checkpoint), packaged_clips()["beckett"].samples)
    meter = CeilingMeter()
    measured, seconds = list[Ceilings](), np.empty((N_ROUNDS, len(all_stages)))
    for i in tqdm(range(-1, N_ROUNDS), desc="measuring", disable=None, leave=False):  # the first one warms up
        current = meter.measure()
        for j, stage in enumerate(all_stages):
            begin = time.perf_counter()
            stage.run_max()
            seconds[i, j] = (time.perf_counter() - begin) / stage.n
        measured.append(current)
    medians = Ceilings(
        *(float(np.median([getattr(each, name) for each in measured[1:]])) for name in ("operations", "bandwidth"))
    )
    rates = f"{medians.operations / 1e9:.0f} GFLOP/s and {medians.bandwidth / 1e9:.1f} GB/s"
    table = Table("stage", title=f"{args.model}: peak rates {rates}; medians of {N_ROUNDS} rounds")
    for heading in ("GFLOP", "MB", "roofline ms", "measured ms", "× roofline"):
        table.add_column(heading, justify="right")
    for stage, stage_seconds in zip(all_stages, np.median(seconds, axis=0)):
        total = [sum(n * getattr(work, name) for n, work in stage.works) for name in ("operations", "n_bytes")]
        roofline = stage.roofline_seconds(medians)
        table.add_row(
            stage.name,
            f"{total[0] / 1e9:.2f}",
            f"{total[1] / 1e6:.0f}",
            f"{1e3 * roofline:.2f}",
            f"{1e3 * stage_seconds:.2f}",
            f"{stage_seconds / roofline:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
