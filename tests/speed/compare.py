"""`nox -s compare`: MAX beside OpenAI Whisper, faster-whisper and whisper.cpp; same weights, samples and threads, taking turns."""

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
from tests.speed.programs import PROGRAMS, Question
from tests.speed.worker import Run, Worker

FOLDER = Path("report")
REST = 2.0  # seconds between two turns: threads of the program before go on looking for work, MAX's for a second
ORIGINAL = "OpenAI Whisper"
PACKAGES = ("max", "torch", "openai-whisper", "faster-whisper", "ctranslate2", "pywhispercpp", "numpy")


@dataclass
class Result:
    """What came of a program: its runs after the first, or why there are none; peak memory in MB."""

    program: str
    problem: str = ""
    runs: list[Run] = field(default_factory=list)
    megabytes: float = 0.0

    @property
    def seconds(self) -> float:
        """The median."""
        return median(run.seconds for run in self.runs)

    @property
    def text(self) -> str:
        """What the last run said."""
        return self.runs[-1].text.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print a table, write compare.json and compare.png; 0 where maxwhisper ran."""
    parser = argparse.ArgumentParser(prog="nox -s compare --", description=__doc__)
    parser.add_argument("audio", nargs="?", help="a recording; by default, two minutes of people speaking English")
    parser.add_argument(
        "--model", default="tiny.en", help=f"one of {', '.join(available_models())}, or a model's file or folder"
    )
    parser.add_argument("--language", default="en", help="which the recording is in (%(default)s)")
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        metavar="N",
        help="runs of each program, after one to warm up (%(default)s)",
    )
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="of each program (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), metavar="PROGRAM", help=", ".join(PROGRAMS)
    )
    parser.add_argument(
        "--report", type=Path, default=FOLDER, metavar="FOLDER", help="where the results go (%(default)s)"
    )
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        try:
            write_formats(args.model, Path(folder))
            samples = Clip(args.audio, Path(args.audio), args.language).samples if args.audio else english_speech()
        except WhisperError as error:
            print(f"compare: {error}", file=sys.stderr)
            return 1
        question = Question(args.model, Path(folder), args.language, args.threads)
        results = run_in_turns(args.only, question, samples, args.rounds)
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
    print(f"{args.report / 'compare.png'} to look at, {args.report / 'compare.json'} to process")
    return int(any(result.problem for result in results if result.program == "maxwhisper"))


def run_in_turns(programs: Sequence[str], question: Question, samples: np.ndarray, n_rounds: int) -> list[Result]:
    """Each program once in each round, so that what else the machine does slows them alike; a round before that warms up."""
    results = {program: Result(program) for program in programs}
    workers = {}
    for program in tqdm(programs, desc="loading", unit="program", disable=None, leave=False):
        worker = Worker(program, question, samples)
        results[program].problem = worker.problem
        if not worker.problem:
            workers[program] = worker
    turns = [(n_round, program) for n_round in range(n_rounds + 1) for program in workers]
    for n_round, program in tqdm(turns, desc="in turns", unit="run", disable=None, leave=False):
        if results[program].problem:
            continue
        time.sleep(REST)
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
    """A row for each program: its median time, how that compares with the audio's and with maxwhisper's, memory, words, text."""
    normal = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    ran = {result.program: result for result in results if not result.problem}
    ours, original = ran.get("maxwhisper"), ran.get(ORIGINAL)
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
        row["times_maxwhisper"] = result.seconds / ours.seconds if ours else None
        row["megabytes"] = result.megabytes
        row["other_words"] = (
            jiwer.wer(normal(original.text), normal(result.text)) if original and normal(original.text) else None
        )
        rows.append(row | {"text": result.text})
    return rows


def _table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table("program", title=title)
    for heading in ("seconds", "× real time", "× maxwhisper's time", "peak MB", f"other words than {ORIGINAL}"):
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
    axes.set_xlabel("times as fast as the audio plays")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
