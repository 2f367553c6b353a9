"""`nox -s golden`: what the reference answers is kept in `golden/`, so that a change of it is seen, and tests need not ask it each time.

Kept are small inputs of every op with the float64 outputs of the NumPy definitions, signatures of real models' activations in float64
(`reference.signatures`), and OpenAI Whisper's transcripts.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maxwhisper.checkpoint import load_checkpoint
from reference import signatures
from reference.clips import packaged_clips
from reference.float64 import apart, may_lose
from reference.inputs import Example, sized
from reference.openai import load_openai
from reference.table import TABLE
from reference.transcripts import Transcription, Window, differences, transcribe_with_openai

FOLDER = Path(__file__).parents[1] / "golden"
TRANSCRIPTS = FOLDER / "transcripts.json"
OPS = FOLDER / "ops"
MAX_NUMBERS = 10_000  # of an input; of more only the sha256 is kept


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
        TranscriptCase(f"joined {name}", "tiny.en", joined, {"condition_on_previous_text": condition, "temperature": 0.0})
        for name, condition in (("conditioned", True), ("unconditioned", False))
    ]
    beams = {"beam_size": 5, "word_timestamps": True, "temperature": 0.0}
    cases += [TranscriptCase("joined beams", "tiny.en", joined, beams), TranscriptCase("beams in French", "base", ("fr/pangrama",), beams)]
    return {case.name: case for case in cases}


def recall(case: TranscriptCase) -> Transcription | None:
    """OpenAI Whisper's answer, without the windows' log-mels; None where it was given for other samples or options."""
    kept = _read_transcripts().get(case.name)
    if kept is None or kept["asked"] != _asked(case):
        return None
    return Transcription(kept["result"], [Window(**window) for window in kept["windows"]])


@dataclass(frozen=True)
class GoldenOp:
    """Inputs of an op, all of them numbers that every dtype holds, and its float64 output."""

    inputs: list[np.ndarray]
    output: np.ndarray


def make_op(name: str) -> GoldenOp:
    """Ask the NumPy definition."""
    sizes = sized(name, 4, batch=2, n_head=2, n=3, n_frames=5, n_kv=5, n_out=3, n_vocab=6, n_mlp=5, n_ctx=6, n_samples=320)
    arrays = Example(name, "float32", sizes).arrays()
    # Multiples of 1/8 below 4 are exact in eight significant bits, and their sums in few more. Scales, which are small, have more.
    steps = [2**14 if spec.values == ("scales",) else 8 for spec in TABLE[name].inputs.values()]
    inputs = [
        a if a.dtype.kind == "i" else np.where(np.isfinite(a), np.clip(np.round(step * a) / step, -4, 4), a)
        for a, step in zip(arrays, steps)
    ]
    return GoldenOp(inputs, np.asarray(TABLE[name].define(*(a if a.dtype.kind == "i" else a.astype(np.float64) for a in inputs))))


def recall_op(name: str) -> GoldenOp:
    """What is kept of an op."""
    kept = json.loads((OPS / f"{name}.json").read_text(encoding="utf-8"))
    inputs = []
    for (key, spec), made in zip(TABLE[name].inputs.items(), make_op(name).inputs, strict=True):
        numbers = kept["inputs"][key]
        if isinstance(numbers, str) and numbers != _digest(made):
            raise ValueError(f"{name} was kept for another {key}")
        inputs.append(made if isinstance(numbers, str) else np.array(numbers, np.dtype(spec.dtype or "float32")))
    return GoldenOp(inputs, np.array(kept["output"], np.float64))


def _digest(array: np.ndarray) -> str:
    """In place of many numbers."""
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(array, np.float64).tobytes()).hexdigest()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the reference anew; rewrite what is kept, or with `--check` return 1 where it differs."""
    parser = argparse.ArgumentParser(prog="nox -s golden --", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, and exit with 1 where anything differs")
    args = parser.parse_args(argv)
    OPS.mkdir(parents=True, exist_ok=True)
    activations = (difference for model in signatures.CASES for difference in signatures.renew(model, args.check))
    found = [*_renew_ops(args.check), *activations, *_renew_transcripts(args.check)]
    kept = f"{len(TABLE)} ops, the activations of {len(signatures.CASES)} models and {len(transcript_cases())} transcripts"
    print("\n".join(found) or f"{kept} are as they were")
    if found:
        print("if that was intended, keep it: nox -s golden" if args.check else "all of this is rewritten in golden/")
    return 1 if found and args.check else 0


def _renew_ops(check: bool) -> list[str]:
    found = []
    for name in TABLE:
        golden, path = make_op(name), OPS / f"{name}.json"
        change = change_of(name, golden) if path.exists() else "was not kept"
        found += [f"{name}: {change}"] if change else []
        if not check:
            path.write_text(_op_document(name, golden), encoding="utf-8")
    for path in sorted(OPS.glob("*.json")):
        if path.stem not in TABLE:
            found.append(f"{path.stem}: is kept, but not in the table")
            if not check:
                path.unlink()
    return found


def change_of(name: str, golden: GoldenOp) -> str:
    """How what is kept differs from what the definition says now; empty where it does not."""
    try:
        kept = recall_op(name)
        same_inputs = all(np.array_equal(a, b) for a, b in zip(golden.inputs, kept.inputs, strict=True))
    except (KeyError, ValueError):
        same_inputs = False
    if not same_inputs:
        return "was kept for other inputs"
    if golden.output.shape != kept.output.shape:
        return f"the output's shape was {kept.output.shape} and is {golden.output.shape}"
    share = apart(golden.output, kept.output, may_lose(TABLE[name], golden.inputs))
    return f"the output differs by {share:.3g} times what float64 may lose" if share > 1 else ""


def _op_document(name: str, golden: GoldenOp) -> str:
    numbers = (array.tolist() if array.size <= MAX_NUMBERS else _digest(array) for array in golden.inputs)
    inputs = ",\n".join(f"  {json.dumps(key)}: {json.dumps(kept)}" for key, kept in zip(TABLE[name].inputs, numbers, strict=True))
    by = f"nox -s golden, by reference.definitions in float64, with numpy {version('numpy')} and scipy {version('scipy')}"
    return f'{{\n "written_by": "{by}",\n "inputs": {{\n{inputs}\n }},\n "output": {json.dumps(golden.output.tolist())}\n}}\n'


def _renew_transcripts(check: bool) -> list[str]:
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
    return {"model": case.model, "options": case.options, "samples_sha256": hashlib.sha256(case.samples.tobytes()).hexdigest()}


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


if __name__ == "__main__":
    sys.exit(main())
