"""The programs that are compared, each as a function that loads a model and returns one that turns samples into text.

All decode greedily, without falling back to sampling and without the text before as a prompt, so that each does the same work every time.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from maxwhisper.checkpoint import Checkpoint
from maxwhisper.checkpoint.catalog import OFFICIAL

Transcribe = Callable[[np.ndarray], str]


@dataclass(frozen=True)
class Question:
    """What all programs are asked: a model, by its checkpoint and its official name or path, in a language, on that many threads.

    folder: where a program may write the model in its own format.
    """

    model: str
    checkpoint: Checkpoint
    language: str
    n_threads: int
    folder: Path


def maxwhisper(question: Question) -> Transcribe:
    """Ours."""
    import maxwhisper

    maxwhisper.set_num_threads(question.n_threads)
    model = maxwhisper.Whisper(question.checkpoint)
    options: dict[str, Any] = {"language": question.language, "temperature": 0.0, "condition_on_previous_text": False}
    return lambda samples: str(maxwhisper.transcribe(model, samples, **options)["text"])


def openai_whisper(question: Question) -> Transcribe:
    """The original, by PyTorch in float32."""
    import torch
    import whisper

    from reference.openai import load_openai

    torch.set_num_threads(question.n_threads)
    model = load_openai(question.checkpoint)
    options: dict[str, Any] = {"language": question.language, "temperature": 0.0, "condition_on_previous_text": False, "fp16": False}
    return lambda samples: str(whisper.transcribe(model, samples, **options)["text"])


def faster_whisper(compute_type: str, batch_size: int | None = None) -> Callable[[Question], Transcribe]:
    """SYSTRAN's, on CTranslate2; in batches it splits where a voice-activity model hears a pause."""

    def load(question: Question) -> Transcribe:
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        folder = _ctranslate2_folder(question)
        model = WhisperModel(str(folder), device="cpu", compute_type=compute_type, cpu_threads=question.n_threads)
        options: dict[str, Any] = {"language": question.language, "temperature": 0.0, "beam_size": 1}
        if batch_size is None:
            return lambda samples: "".join(s.text for s in model.transcribe(samples, condition_on_previous_text=False, **options)[0])
        pipeline = BatchedInferencePipeline(model)
        options |= {"batch_size": batch_size, "without_timestamps": False}
        return lambda samples: "".join(s.text for s in pipeline.transcribe(samples, **options)[0])

    return load


def _ctranslate2_folder(question: Question) -> Path:
    """The model as packages bring it."""
    official = OFFICIAL.get(question.model)
    if official is None or official.packaged is None:
        raise LookupError(f"{question.model} comes in no package, and only tiny.en and base do in CTranslate2's format")
    folder = question.folder / "ctranslate2"
    if not folder.exists():
        folder.mkdir()
        for package, file in official.packaged.parts:
            spec = find_spec(package)
            assert spec is not None and spec.submodule_search_locations
            path = Path(spec.submodule_search_locations[0], file)
            with path.open("rb") as part, (folder / "model.bin").open("ab") as whole:
                shutil.copyfileobj(part, whole)
            for other in path.parent.iterdir():
                if other.suffix in (".json", ".txt"):
                    shutil.copy(other, folder)
    return folder


def whisper_cpp(question: Question) -> Transcribe:
    """Georgi Gerganov's, in C++, weights in float16."""
    from pywhispercpp.model import Model

    from reference.speed.ggml import write_ggml

    path = question.folder / "ggml.bin"
    write_ggml(question.checkpoint, path)
    options: dict[str, Any] = {"temperature_inc": 0.0, "no_context": True, "greedy": {"best_of": 1}, "language": question.language}
    model = Model(str(path), n_threads=question.n_threads, redirect_whispercpp_logs_to=None, print_progress=False, print_realtime=False)
    return lambda samples: "".join(f" {segment.text.strip()}" for segment in model.transcribe(samples, **options))


PROGRAMS: dict[str, Callable[[Question], Transcribe]] = {
    "maxwhisper": maxwhisper,
    "OpenAI Whisper": openai_whisper,
    "whisper.cpp, float16": whisper_cpp,
    "faster-whisper, float32": faster_whisper("float32"),
    "faster-whisper, int8": faster_whisper("int8"),
    "faster-whisper, float32, batched": faster_whisper("float32", batch_size=8),
    "faster-whisper, int8, batched": faster_whisper("int8", batch_size=8),
}
