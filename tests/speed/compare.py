"""Compare the speed, memory and words of MAX, OpenAI Whisper, faster-whisper and whisper.cpp.

All programs have the same weights, samples and number of threads, and their runs are interleaved.
Usage: `nox -s compare [-- AUDIO]`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jiwer
import matplotlib.figure
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from maxwhisper import WhisperError, available_models
from maxwhisper.audio import SAMPLE_RATE
from reference.clips import Clip, english_speech
from tests.speed.formats import write_formats
from tests.speed.programs import PROGRAMS, RunSettings
from tests.speed.worker import Run, Worker

REPORT_FOLDER = Path("report")
REST_SECONDS = 2.0  # between two runs: threads of the previous program poll for work, MAX's for 1 s
ORIGINAL = "OpenAI Whisper"
PACKAGES = ("max", "torch", "openai-whisper", "faster-whisper", "ctranslate2", "pywhispercpp", "numpy")


@dataclass
class Result:
    """The runs of a program, or the reason why it could not run."""

    program: str
    problem: str = ""  # empty if the program ran
    runs: list[Run] = field(default_factory=list)  # without the warm-up
    megabytes: float = 0.0  # peak memory

    @property
    def seconds(self) -> float:
        """The median time of a run."""
        return median(run.seconds for run in self.runs)

    @property
    def text(self) -> str:
        """The transcript of the last run."""
        return self.runs[-1].text.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print a table, and write compare.json and compare.png.

    Returns:
        1 if maxwhisper could not run, or the model or the audio can't be read; else 0.
    """
    parser = argparse.ArgumentParser(prog="nox -s compare --", description=__doc__)
    parser.add_argument("audio", nargs="?", help="a recording; by default, two minutes of people speaking English")
    parser.add_argument(
        "--model", default="tiny.en", help=f"one of {', '.join(available_models())}, or a model's file or folder"
    )
    parser.add_argument("--language", default="en", help="the language of the recording (%(default)s)")
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        metavar="N",
        help="number of runs of each program after the warm-up (%(default)s)",
    )
    parser.add_argument(
        "--threads", type=_positive, default=2, metavar="N", help="threads of each program (%(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PROGRAMS,
        default=list(PROGRAMS),
        metavar="PROGRAM",
        help=f"the programs to run, by default all: {', '.join(PROGRAMS)}",
    )
    parser.add_argument(
        "--report", type=Path, default=REPORT_FOLDER, metavar="FOLDER", help="folder for the results (%(default)s)"
    )
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        try:
            write_formats(args.model, Path(folder))
            samples = Clip(args.audio, Path(args.audio), args.language).samples if args.audio else english_speech()
        except WhisperError as error:
            print(f"compare: {error}", file=sys.stderr)
            return 1
        settings = RunSettings(args.model, Path(folder), args.language, args.threads)
        results = run_interleaved(args.only, settings, samples, args.rounds)
    seconds = len(samples) / SAMPLE_RATE
    rows = describe(results, seconds, args.language)
    name = args.audio or "clips of tests"
    title = f"{Path(name).name}, {seconds:.1f} s, {args.model}, {args.threads} threads, medians of {args.rounds}"
    Console(width=None if sys.stdout.isatty() else 150).print(_table(rows, title))
    args.report.mkdir(parents=True, exist_ok=True)
    document = {"title": title, "versions": _versions(), "programs": rows}
    (args.report / "compare.json").write_text(
        json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    _chart(rows, title).savefig(args.report / "compare.png", dpi=120, bbox_inches="tight")
    print(f"wrote {args.report / 'compare.png'} and {args.report / 'compare.json'}")
    return int(any(result.problem for result in results if result.program == "maxwhisper"))


def run_interleaved(programs: Sequence[str], settings: RunSettings, samples: np.ndarray, n_rounds: int) -> list[Result]:
    """Run each program once in each round, so load on the machine slows all alike.

    Args:
        programs: names from PROGRAMS.
        settings: the same for all programs.
        samples: float32 [n_samples] at 16 kHz.
        n_rounds: number of rounds after a warm-up round.

    Returns:
        One result for each program.
    """
    results = {program: Result(program) for program in programs}
    workers = {}
    for program in tqdm(programs, desc="loading", unit="program", disable=None, leave=False):
        worker = Worker(program, settings, samples)
        results[program].problem = worker.problem
        if not worker.problem:
            workers[program] = worker
    schedule = [(n_round, program) for n_round in range(n_rounds + 1) for program in workers]
    for n_round, program in tqdm(schedule, desc="interleaved runs", unit="run", disable=None, leave=False):
        if results[program].problem:
            continue
        time.sleep(REST_SECONDS)
        run = workers[program].run()
        if isinstance(run, str):
            results[program].problem = run
        elif n_round > 0:
            results[program].runs.append(run)
    for program, worker in workers.items():
        if not results[program].problem:
            results[program].megabytes = worker.stop()
    return list(results.values())


def describe(results: Sequence[Result], seconds: float, language: str) -> list[dict[str, Any]]:
    """Make a row of compare.json for each program.

    Args:
        results: the result of each program.
        seconds: duration of the audio.
        language: selects the text normalizer for the word error rate.

    Returns:
        For each program its times, memory, word error rate relative to OpenAI Whisper, and text; or
        its problem.
    """
    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    ran = {result.program: result for result in results if not result.problem}
    maxwhisper, original = ran.get("maxwhisper"), ran.get(ORIGINAL)
    rows = []
    for result in results:
        if result.problem:
            rows.append({"program": result.program, "problem": result.problem})
            continue
        row: dict[str, Any] = {
            "program": result.program,
            "seconds": result.seconds,
            "times_real_time": seconds / result.seconds,
        }
        row["all_seconds"] = [run.seconds for run in result.runs]
        row["times_maxwhisper"] = result.seconds / maxwhisper.seconds if maxwhisper else None
        row["megabytes"] = result.megabytes
        row["other_words"] = (
            jiwer.wer(normalize(original.text), normalize(result.text))
            if original and normalize(original.text)
            else None
        )
        rows.append(row | {"text": result.text})
    return rows


def _table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table("program", title=title)
    for heading in ("seconds", "× real time", "× maxwhisper's time", "peak MB", f"words that differ from {ORIGINAL}"):
        table.add_column(heading, justify="right")
    for row in rows:
        if "problem" in row:
            table.add_row(row["program"], "–", "", "", "", row["problem"])
            continue
        ratio = "" if row["times_maxwhisper"] is None else f"{row['times_maxwhisper']:.2f}"
        words = "" if row["other_words"] is None else f"{row['other_words']:.1%}"
        table.add_row(
            row["program"],
            f"{row['seconds']:.2f}",
            f"{row['times_real_time']:.1f}",
            ratio,
            f"{row['megabytes']:.0f}",
            words,
        )
    return table


def _chart(rows: Sequence[dict[str, Any]], title: str) -> matplotlib.figure.Figure:
    ran = sorted((row for row in rows if "problem" not in row), key=lambda row: -row["seconds"])
    figure = matplotlib.figure.Figure(figsize=(8, 0.5 * len(ran) + 1))
    axes = figure.add_subplot()
    colours = ["tab:orange" if row["program"].startswith("maxwhisper") else "tab:gray" for row in ran]
    bars = axes.barh([row["program"] for row in ran], [row["times_real_time"] for row in ran], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("× real time")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
