"""`nox -s parity`: the same recordings through MAX and through OpenAI Whisper, side by side."""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from maxwhisper import Whisper, WhisperError, available_models, set_num_threads
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.checkpoint import load_checkpoint
from reference.clips import Clip, packaged_clips
from reference.numpy_whisper import NumpyWhisper
from reference.openai import N_THREADS, load_openai
from reference.transcripts import Comparison, Transcription, compare, transcribe_with_max, transcribe_with_openai


def main(argv: Sequence[str] | None = None) -> int:
    """Compare greedy transcripts, print a table, and return 0 where every clip's is equal within rounding, else 1."""
    parser = argparse.ArgumentParser(prog="nox -s parity --", description=__doc__)
    parser.add_argument("audio", nargs="*", help="recordings to compare on; by default, speech that comes in packages")
    parser.add_argument("--model", default="tiny.en", help=f"one of {', '.join(available_models())}, or a model's file or folder")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    args = parser.parse_args(argv)
    if hasattr(os, "sched_getaffinity"):
        set_num_threads(min(N_THREADS, len(os.sched_getaffinity(0))))  # as many as OpenAI Whisper has
    try:
        checkpoint = load_checkpoint(args.model)
        model = Whisper(checkpoint, args.device)
        clips = [Clip(path, Path(path), "") for path in args.audio] or _default_clips(model.is_multilingual)
        recordings = [(clip, clip.samples) for clip in clips]
    except WhisperError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 1
    judge, truth = load_openai(checkpoint), NumpyWhisper(checkpoint)
    programs: tuple[tuple[Any, Any], ...] = ((transcribe_with_max, model), (transcribe_with_openai, judge))

    table = Table("clip", "text by MAX", "equal", "differs by", "WER", "MAX", "OpenAI", title=f"{args.model}: MAX beside OpenAI Whisper")
    passed, steps, speed_ups = True, 0, []
    for transcribe, program in programs:
        transcribe(program, recordings[0][1][:SAMPLE_RATE])  # warm up
    for clip, samples in tqdm(recordings, unit="clip", disable=None, leave=False):
        seconds: list[float] = []
        transcriptions: list[Transcription] = []
        for transcribe, program in programs:
            begin = time.perf_counter()
            transcriptions.append(transcribe(program, samples, temperature=0.0))  # sampled tokens would differ by chance
            seconds.append(time.perf_counter() - begin)
        ours, theirs = transcriptions
        comparison = compare(ours, theirs, model, judge, truth)
        passed &= comparison.passes
        steps += comparison.n_steps
        speed_ups.append(seconds[1] / seconds[0])
        rate = _word_error_rate(clip, ours.result["text"], ours.result["language"])
        table.add_row(clip.name, ours.result["text"].strip(), *_verdict(comparison), rate, *(f"{s:.2f} s" for s in seconds))
    console = Console()
    console.print(table)
    verdict = "[green]equal[/]" if passed else "[red]DIFFERENT[/]"
    median = statistics.median(speed_ups)
    console.print(f"{verdict} over {steps} decoder steps; MAX {median:.1f} times as fast (median; {N_THREADS} threads)")
    return 0 if passed else 1


def _default_clips(multilingual: bool) -> list[Clip]:
    return [clip for clip in packaged_clips().values() if multilingual or clip.language == "en"]


def _verdict(comparison: Comparison) -> tuple[str, str]:
    if comparison.is_equal:
        return "[green]yes", ""
    if comparison.passes:
        difference = comparison.token_difference
        return "[yellow]but for rounding", f"{difference}"
    return "[red]NO", "\n".join(comparison.differences)


def _word_error_rate(clip: Clip, text: str, language: str) -> str:
    """Words that differ from what was said, after the normalisation that Whisper's paper uses; empty where that is not known."""
    if not clip.text:
        return ""
    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(split_letters=language in ("zh", "ja"))
    said, heard = normalize(clip.text), normalize(text)
    return f"{jiwer.wer(said, heard):.0%}"


if __name__ == "__main__":
    raise SystemExit(main())
