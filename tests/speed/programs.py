"""The compared programs, each as a function that loads a model and returns a transcribe function.

All decode greedily, or with the number of beams in their names. None falls back to sampling or uses
the previous text as a prompt, so that each does the same work in every run.
Each program is imported only in its own process, so that no other program's memory is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Transcribe = Callable[[np.ndarray], str]
OPENAI, GGML, CTRANSLATE2 = "openai.pt", "ggml.bin", "ctranslate2"  # file names in `RunSettings.folder`


@dataclass(frozen=True)
class RunSettings:
    """Settings that are the same for all programs."""

    model: str  # name or path
    folder: Path  # the model in all formats, written by `formats.write_formats`
    language: str
    n_threads: int


def maxwhisper(
    compute_type: str = "float32", batch_size: int | None = None, beam_size: int | None = None
) -> Callable[[RunSettings], Transcribe]:
    """Return the loader of maxwhisper, sequential or batched."""

    def load(settings: RunSettings) -> Transcribe:
        import maxwhisper

        maxwhisper.set_num_threads(settings.n_threads)
        model = maxwhisper.load_model(settings.model, compute_type=compute_type)
        options: dict[str, Any] = {"language": settings.language, "temperature": 0.0, "beam_size": beam_size}
        if batch_size is None:
            return lambda samples: str(
                maxwhisper.transcribe(model, samples, condition_on_previous_text=False, **options)["text"]
            )
        return lambda samples: "".join(
            str(result) if isinstance(result, maxwhisper.WhisperError) else str(result["text"])
            for result in maxwhisper.transcribe_batched(
                model, [samples], batch_size, without_timestamps=True, **options
            )
        )

    return load


def openai_whisper(settings: RunSettings) -> Transcribe:
    """Load OpenAI Whisper, on PyTorch in float32."""
    import torch
    import whisper

    torch.set_num_threads(settings.n_threads)
    model = whisper.load_model(str(settings.folder / OPENAI), device="cpu")
    options: dict[str, Any] = {
        "language": settings.language,
        "temperature": 0.0,
        "condition_on_previous_text": False,
        "fp16": False,
    }
    return lambda samples: str(whisper.transcribe(model, samples, **options)["text"])


def faster_whisper(
    compute_type: str, batch_size: int | None = None, beam_size: int = 1
) -> Callable[[RunSettings], Transcribe]:
    """Return the loader of SYSTRAN's faster-whisper, on CTranslate2.

    In batches it splits the audio at pauses that a voice-activity model detects.
    """

    def load(settings: RunSettings) -> Transcribe:
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        folder = settings.folder / CTRANSLATE2
        if not folder.exists():
            raise LookupError(f"no package has {settings.model} in CTranslate2's format; use tiny.en or base")
        model = WhisperModel(str(folder), device="cpu", compute_type=compute_type, cpu_threads=settings.n_threads)
        options: dict[str, Any] = {"language": settings.language, "temperature": 0.0, "beam_size": beam_size}
        if batch_size is None:
            return lambda samples: "".join(
                s.text for s in model.transcribe(samples, condition_on_previous_text=False, **options)[0]
            )
        pipeline = BatchedInferencePipeline(model)
        options |= {"batch_size": batch_size, "without_timestamps": True}
        return lambda samples: "".join(s.text for s in pipeline.transcribe(samples, **options)[0])

    return load


def whisper_cpp(settings: RunSettings) -> Transcribe:
    """Load Georgi Gerganov's whisper.cpp, with weights in float16."""
    from pywhispercpp.model import Model

    options: dict[str, Any] = {
        "temperature_inc": 0.0,
        "no_context": True,
        "greedy": {"best_of": 1},
        "language": settings.language,
    }
    path = str((settings.folder / GGML).resolve(strict=True))
    quiet: dict[str, Any] = {"redirect_whispercpp_logs_to": None, "print_progress": False, "print_realtime": False}
    model = Model(path, n_threads=settings.n_threads, **quiet)
    return lambda samples: "".join(f" {segment.text.strip()}" for segment in model.transcribe(samples, **options))


PROGRAMS: dict[str, Callable[[RunSettings], Transcribe]] = {
    "maxwhisper": maxwhisper(),
    "maxwhisper, int8": maxwhisper("int8"),
    "OpenAI Whisper": openai_whisper,
    "whisper.cpp, float16": whisper_cpp,
    "faster-whisper, float32": faster_whisper("float32"),
    "faster-whisper, int8": faster_whisper("int8"),
    "maxwhisper, 5 beams": maxwhisper(beam_size=5),
    "maxwhisper, int8, 5 beams": maxwhisper("int8", beam_size=5),
    "faster-whisper, float32, 5 beams": faster_whisper("float32", beam_size=5),
    "faster-whisper, int8, 5 beams": faster_whisper("int8", beam_size=5),
    "maxwhisper, batched": maxwhisper(batch_size=8),
    "maxwhisper, int8, batched": maxwhisper("int8", batch_size=8),
    "faster-whisper, float32, batched": faster_whisper("float32", batch_size=8),
    "faster-whisper, int8, batched": faster_whisper("int8", batch_size=8),
}
