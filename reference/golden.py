"""`nox -s golden`: what the reference answered is kept in `golden/`, so that tests need not ask it each time."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maxwhisper.checkpoint import load_checkpoint
from reference.clips import packaged_clips
from reference.openai import load_openai
from reference.transcripts import Transcription, Window, differences, transcribe_with_openai

FOLDER = Path(__file__).parents[1] / "golden"
TRANSCRIPTS = FOLDER / "transcripts.json"


@dataclass(frozen=True)
class TranscriptCase:
    """One question to OpenAI Whisper: clips of these names, joined, by this model, with these options."""

    name: str
    model: str
    clips: tuple[str, ...]
    options: dict[str, Any]

    @property
    def samples(self) -> np.ndarray:
        """float32 [n_samples] at 16 kHz."""
        return np.concatenate([packaged_clips()[clip].samples for clip in self.clips])


@cache
def transcript_cases() -> dict[str, TranscriptCase]:
    """The greedy transcripts that are kept, by name: nine languages with base, and English over several windows with tiny.en."""
    cases = [
        TranscriptCase(f"{clip} {task}", "base", (clip,), {"task": task, "temperature": 0.0})
        for clip in packaged_clips()
        if clip != "beckett"
        for task in ("transcribe", "translate")
    ]
    joined = ("beckett", "en/counting", "en/quick_brown_fox", "en/hello_world") * 5
    cases += [
        TranscriptCase(f"joined {name}", "tiny.en", joined, {"condition_on_previous_text": condition, "temperature": 0.0})
        for name, condition in (("conditioned", True), ("unconditioned", False))
    ]
    return {case.name: case for case in cases}


def recall(case: TranscriptCase) -> Transcription | None:
    """OpenAI Whisper's answer, without the windows' log-mels; None where it was given for other samples or options."""
    kept = _read_transcripts().get(case.name)
    if kept is None or kept["asked"] != _asked(case):
        return None
    return Transcription(kept["result"], [Window(**window) for window in kept["windows"]])


def main(argv: Sequence[str] | None = None) -> int:
    """Ask OpenAI Whisper anew; rewrite what is kept, or with `--check` return 1 where it differs."""
    parser = argparse.ArgumentParser(prog="nox -s golden --", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, and exit with 1 where anything differs")
    args = parser.parse_args(argv)
    entries, found = dict[str, str](), list[str]()
    judge = cache(lambda model: load_openai(load_checkpoint(model)))
    for case in tqdm(transcript_cases().values(), unit="transcript", disable=None, leave=False):
        answer = transcribe_with_openai(judge(case.model), case.samples, **case.options)
        entries[case.name] = _entry(case, answer)
        kept = recall(case)
        changes = ["not kept for these samples and options"] if kept is None else differences(kept, answer)
        found += [f"{case.name}: {change}" for change in changes]
    found += [f"{name}: kept, but no longer asked for" for name in _read_transcripts().keys() - entries.keys()]
    if not args.check:
        TRANSCRIPTS.parent.mkdir(exist_ok=True)
        TRANSCRIPTS.write_text(_document(entries), encoding="utf-8")
    print("\n".join(found) or f"{len(entries)} transcripts are as they were")
    return 1 if found and args.check else 0


def _asked(case: TranscriptCase) -> dict[str, Any]:
    return {"model": case.model, "options": case.options, "samples_sha256": hashlib.sha256(case.samples.tobytes()).hexdigest()}


def _entry(case: TranscriptCase, answer: Transcription) -> str:
    windows = [{name: value for name, value in asdict(window).items() if name != "mel"} for window in answer.windows]
    entry = {"asked": _asked(case), "result": answer.result, "windows": windows}
    return json.dumps(entry, ensure_ascii=False)


def _document(entries: dict[str, str]) -> str:
    """A line for each transcript, so that a change shows where it is."""
    by = ", ".join(f"{package} {version(package)}" for package in ("openai-whisper", "torch", "pytest-audioeval"))
    lines = ",\n".join(f"  {json.dumps(name)}: {entry}" for name, entry in entries.items())
    return f'{{\n "written_by": "nox -s golden, in float32, with {by}",\n "transcripts": {{\n{lines}\n }}\n}}\n'


@cache
def _read_transcripts() -> dict[str, Any]:
    return json.loads(TRANSCRIPTS.read_text(encoding="utf-8"))["transcripts"] if TRANSCRIPTS.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
