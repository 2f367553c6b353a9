"""OpenAI Whisper's transcripts of packaged recordings, in `golden/transcripts.json`."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maxwhisper.checkpoint import load_checkpoint
from reference.clips import packaged_clips
from reference.models.openai import load_openai
from reference.parity.observe import transcribe_with_openai
from reference.parity.transcripts import Transcription, Window, differences

TRANSCRIPTS = Path(__file__).parents[2] / "golden" / "transcripts.json"


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
    """The transcripts that are kept, by name: greedy ones of nine languages with base, and English over several windows with tiny.en, by
    beams with timed words, too.
    """
    cases = [
        TranscriptCase(f"{clip} {task}", "base", (clip,), {"task": task, "temperature": 0.0})
        for clip in packaged_clips()
        if clip != "beckett"
        for task in ("transcribe", "translate")
    ]
    joined = ("beckett", "en/counting", "en/quick_brown_fox", "en/hello_world") * 5
    cases += [
        TranscriptCase(
            f"joined {name}", "tiny.en", joined, {"condition_on_previous_text": condition, "temperature": 0.0}
        )
        for name, condition in (("conditioned", True), ("unconditioned", False))
    ]
    beams = {"beam_size": 5, "word_timestamps": True, "temperature": 0.0}
    cases += [
        TranscriptCase("joined beams", "tiny.en", joined, beams),
        TranscriptCase("beams in French", "base", ("fr/pangrama",), beams),
    ]
    return {case.name: case for case in cases}


def recall(case: TranscriptCase) -> Transcription | None:
    """OpenAI Whisper's answer, without the windows' log-mels; None where it was given for other samples or options."""
    kept = _read_transcripts().get(case.name)
    if kept is None or kept["asked"] != _asked(case):
        return None
    return Transcription(kept["result"], [Window(**window) for window in kept["windows"]])


def renew(check: bool) -> list[str]:
    """Ask OpenAI Whisper anew; rewrite what is kept, or only check it. Returns what differs."""
    entries, found = dict[str, str](), list[str]()
    judge = cache(lambda model: load_openai(load_checkpoint(model)))
    for case in tqdm(transcript_cases().values(), unit="transcript", disable=None, leave=False):
        answer = transcribe_with_openai(judge(case.model), case.samples, **case.options)
        entries[case.name] = _entry(case, answer)
        kept = recall(case)
        changes = ["was not kept for these samples and options"] if kept is None else differences(kept, answer)
        found += [f"{case.name}: {change}" for change in changes]
    found += [f"{name}: kept, but no longer asked for" for name in _read_transcripts().keys() - entries.keys()]
    if not check:
        TRANSCRIPTS.write_text(_document(entries), encoding="utf-8")
    return found


def _asked(case: TranscriptCase) -> dict[str, Any]:
    return {
        "model": case.model,
        "options": case.options,
        "samples_sha256": hashlib.sha256(case.samples.tobytes()).hexdigest(),
    }


def _entry(case: TranscriptCase, answer: Transcription) -> str:
    kept = ("initial_tokens", "tokens", "temperature")
    windows = [{name: getattr(window, name) for name in kept} for window in answer.windows]
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
