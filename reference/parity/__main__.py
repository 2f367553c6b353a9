"""Compare MAX with OpenAI Whisper on the same recordings, and report the first difference."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from maxwhisper import WhisperError, available_models, set_num_threads
from maxwhisper.checkpoint import load_checkpoint
from reference.clips import Clip, packaged_clips
from reference.models.openai import N_THREADS
from reference.parity.activations import Compared
from reference.parity.clip import ClipReport, Programs, compare_clip
from reference.parity.document import document
from reference.parity.page import page
from reference.parity.stages import Stage
from reference.parity.window import Output
from reference.report.page import write, write_json

FOLDER = Path("report")
console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print one line for each activation, and write the report.

    Returns:
        The exit status: 0 if every recording is equal within rounding, else 1.
    """
    parser = argparse.ArgumentParser(prog="nox -s parity --", description=__doc__)
    parser.add_argument(
        "audio", nargs="*", help="recordings to compare on; by default, ten seconds of a person speaking English"
    )
    parser.add_argument(
        "--model", default="tiny.en", help=f"one of {', '.join(available_models())}, or a model's file or folder"
    )
    parser.add_argument(
        "--windows",
        type=_positive,
        default=1,
        metavar="N",
        help="compare the activations of a recording's first N windows (%(default)s)",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument(
        "--report",
        type=Path,
        default=FOLDER,
        metavar="FOLDER",
        help="folder for parity.json and parity.html (%(default)s)",
    )
    args = parser.parse_args(argv)
    if hasattr(os, "sched_getaffinity"):
        set_num_threads(min(N_THREADS, len(os.sched_getaffinity(0))))  # as many as OpenAI Whisper uses
    clips = [Clip(path, Path(path), "") for path in args.audio] or [packaged_clips()["beckett"]]
    unread = _unreadable(clips)  # before the models are compiled, which takes minutes
    clips = [clip for clip in clips if clip.name not in unread]
    if not clips:
        return 1
    try:
        checkpoint = load_checkpoint(args.model)
        programs = Programs(checkpoint, args.device)
    except WhisperError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 1
    reports = list[ClipReport]()
    for clip in clips:
        console.rule(Text(f"{clip.name}, {args.model}"))
        try:
            report = compare_clip(clip, programs, _progress, args.windows)
        except WhisperError as error:
            print(f"parity: {error}", file=sys.stderr)
            unread[clip.name] = str(error)
            continue
        reports.append(report)
        _print_summary(report)
    if not reports:
        return 1
    data = document(reports, unread, args.model, checkpoint, args.device)
    args.report.mkdir(parents=True, exist_ok=True)
    write_json(args.report / "parity.json", data)
    write(args.report / "parity.html", page(reports, data, programs.tokenizer))
    console.print(f"\nreport: {args.report / 'parity.html'}, and as data {args.report / 'parity.json'}")
    return 0 if data["equal"] else 1


def _unreadable(clips: Sequence[Clip]) -> dict[str, str]:
    """Report each recording that can't be read, and return its error by its name."""
    errors = dict[str, str]()
    for clip in clips:
        try:
            _ = clip.samples
        except WhisperError as error:
            print(f"parity: {error}", file=sys.stderr)
            errors[clip.name] = str(error)
    return errors


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of windows; give 1 or more")
    return int(text)


def _progress(activations: Iterator[Compared], n: int) -> Iterator[Compared]:
    """Print a header, and one line for each activation as soon as it is compared.

    Args:
        activations: the activations of a window.
        n: their number.

    Yields:
        The same activations.
    """
    console.print(Text(header(), "bold"), soft_wrap=True)
    for activation in tqdm(activations, total=n, unit="activation", disable=None, leave=False):
        line = columns(activation)
        is_plain = activation.passes and not activation.rewritten
        _print_line(activation.passes, line if is_plain else f"{line}\n      {activation}")
        yield activation


def header() -> str:
    """Return the header of the lines printed for activations, above `columns` and the verdict."""
    return f"{'':6}{_align('activation', 'shape', 'worst-case ratio', 'RMS ratio', '(PyTorch)')}  worst element"


def columns(activation: Compared) -> str:
    """Return the numbers of an activation, aligned with `header`.

    They are its name, its shape, the ratio to the worst-case bound, the ratio to the statistical
    bound (in parentheses PyTorch's), and the index and value of the worst element.
    """
    verdict = activation.in_situ
    numbers = _align(
        activation.name,
        "×".join(map(str, activation.shape)),
        f"{verdict.worst_case_ratio:.3f}",
        f"{verdict.rms_ratio:.3f}",
        f"({activation.pytorch.rms_ratio:.3f})",
    )
    worst = "" if verdict.worst is None else f"worst {list(verdict.worst.index)} {verdict.worst.actual:.4g}"
    return f"{numbers}  {worst}"


def _align(name: str, shape: str, worst_case_ratio: str, rms_ratio: str, pytorch: str) -> str:
    return f"{name:40} {shape:16} {worst_case_ratio:>16} {rms_ratio:>9} {pytorch:9}"


def _print_summary(report: ClipReport) -> None:
    """Print the stages and outputs, the transcript, the speed and the verdict."""
    outputs = [output for window in report.windows for output in window.outputs]
    stages: list[Stage | Output] = [*report.before, *outputs, *report.after]
    for stage in stages:
        _print_line(stage.passes, f"{stage.name}: {stage.says}" if isinstance(stage, Stage) else str(stage))
    seconds = report.seconds
    text = report.max.result["text"].strip()
    console.print(Text(f"“{text}”"))
    n_windows, ratio = len(report.openai.windows), seconds["openai"] / seconds["max"]
    speed = f"MAX {seconds['max']:.2f} s, OpenAI Whisper {seconds['openai']:.2f} s: {ratio:.1f} times as fast"
    console.print(Text(f"{report.comparison.n_steps} decoder steps in {n_windows} windows; {speed}"))
    first = report.first_divergence
    if first is None:
        tokens = "tokens identical" if report.comparison.is_equal else "tokens differ only by rounding"
        console.print(Text(f"equal within rounding, {tokens}", "green"))
    else:
        console.print(Text(f"DIFFERENT; the first difference is at {first.name}", "bold red"))


def _print_line(passes: bool, line: str) -> None:
    console.print(Text.assemble(("ok    ", "green") if passes else ("WRONG ", "bold red"), line), soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
