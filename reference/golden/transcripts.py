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
    """A transcript to store: the names of the clips joined, the model, and the options."""

    name: str
    model: str
    clips: tuple[str, ...]
    options: dict[str, Any]

    @property
    def samples(self) -> np.ndarray:
        """Samples of the joined clips at 16 kHz: float32 [n_samples]."""
        return np.concatenate([packaged_clips()[clip].samples for clip in self.clips])


@cache
def transcript_cases() -> dict[str, TranscriptCase]:
    """Return the transcripts to store, by name.

    With base: greedy decoding of nine languages, and beam search in French. With tiny.en: English
    over several windows, by greedy decoding and by beam search. Beam search has word timestamps.
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
    """Read a stored transcript, without the windows' log-mel spectrograms.

    Returns:
        None if no transcript is stored for the case's model, samples and options.
    """
    entry = _read_transcripts().get(case.name)
    if entry is None or entry["asked"] != _key(case):
        return None
    return Transcription(entry["result"], [Window(**window) for window in entry["windows"]])


def update(check: bool) -> list[str]:
    """Transcribe all cases with OpenAI Whisper, and compare the results with the stored ones.

    Args:
        check: write nothing; otherwise the new transcripts are stored.

    Returns:
        A message for each difference.
    """
    entries, changes = dict[str, str](), list[str]()
    judge = cache(lambda model: load_openai(load_checkpoint(model)))
    for case in tqdm(transcript_cases().values(), unit="transcript", disable=None, leave=False):
        transcription = transcribe_with_openai(judge(case.model), case.samples, **case.options)
        entries[case.name] = _entry(case, transcription)
        stored = recall(case)
        differing = (
            ["was not stored for these samples and options"] if stored is None else differences(stored, transcription)
        )
        changes += [f"{case.name}: {difference}" for difference in differing]
    changes += [f"{name}: stored, but no longer a case" for name in _read_transcripts().keys() - entries.keys()]
    if not check:
        TRANSCRIPTS.write_text(_document(entries), encoding="utf-8")
    return changes


def _key(case: TranscriptCase) -> dict[str, Any]:
    """Return what a stored transcript is valid for."""
    return {
        "model": case.model,
        "options": case.options,
        "samples_sha256": hashlib.sha256(case.samples.tobytes()).hexdigest(),
    }


def _entry(case: TranscriptCase, transcription: Transcription) -> str:
    fields = ("initial_tokens", "tokens", "temperature")
    windows = [{name: getattr(window, name) for name in fields} for window in transcription.windows]
    entry = {"asked": _key(case), "result": transcription.result, "windows": windows}
    return json.dumps(entry, ensure_ascii=False)


def _document(entries: dict[str, str]) -> str:
    """Return JSON with one line for each transcript, so that a diff shows which of them changed."""
    by = ", ".join(f"{package} {version(package)}" for package in ("openai-whisper", "torch", "pytest-audioeval"))
    lines = ",\n".join(f"  {json.dumps(name)}: {entry}" for name, entry in entries.items())
    return f'{{\n "written_by": "nox -s golden, in float32, with {by}",\n "transcripts": {{\n{lines}\n }}\n}}\n'


@cache
def _read_transcripts() -> dict[str, Any]:
    return json.loads(TRANSCRIPTS.read_text(encoding="utf-8"))["transcripts"] if TRANSCRIPTS.exists() else {}
