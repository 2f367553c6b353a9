"""The report as JSON, `report/parity.json`; `schema.json` describes every field."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from maxwhisper.checkpoint import Checkpoint
from reference.parity.activations import Compared, Error
from reference.parity.clip import ClipReport
from reference.parity.transcripts import TokenDifference
from reference.parity.window import Output
from reference.report.page import number

SCHEMA = json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))
PACKAGES = ("max", "numpy", "torch", "openai-whisper")


def document(
    clips: Sequence[ClipReport], unread: Mapping[str, str], model: str, checkpoint: Checkpoint, device: str
) -> dict[str, Any]:
    """Return the report as JSON data.

    Args:
        clips: the compared recordings.
        unread: messages about the recordings that could not be compared, by name.
        model: name of the model.
        checkpoint: its weights.
        device: "cpu" or "gpu": the device that MAX ran on.
    """
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "machine": {"device": device, "processor": platform.machine(), "system": platform.system()},
        "model": {"name": model, "sha256": weights_sha256(checkpoint)},
        "equal": bool(clips) and not unread and all(clip.first_divergence is None for clip in clips),
        "unread": dict(unread),
        "clips": [_clip(clip) for clip in clips],
    }


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Compute the sha256 of all weights in float32, in the order of their names.

    It does not depend on the format of the model's file.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(checkpoint.weights[name], np.float32).tobytes())
    return digest.hexdigest()


def _clip(report: ClipReport) -> dict[str, Any]:
    first = report.first_divergence
    actual, openai = report.max.result, report.openai.result
    return {
        "name": report.clip.name,
        "sha256": report.sha256,
        "duration": len(report.samples) / 16000,
        "language": actual["language"],
        "text": {"max": actual["text"], "openai": openai["text"]},
        "tokens_equal": [w.tokens for w in report.max.windows] == [w.tokens for w in report.openai.windows],
        "text_equal": actual["text"] == openai["text"],
        "wer": report.word_error_rate,
        "seconds": report.seconds,
        "first_divergence": first and first.name,
        "says": str(getattr(first, "says", first)) if first else "",
        "stages": [vars(stage) for stage in (*report.before, *report.after)],
        "token_difference": _token_difference(report.comparison.token_difference),
        "activations": [
            {"window": w.index, **_activation(activation)} for w in report.windows for activation in w.activations
        ],
        "outputs": [{"window": w.index, **_output(output)} for w in report.windows for output in w.outputs],
    }


def _activation(compared: Compared) -> dict[str, Any]:
    verdict, worst = compared.in_situ, compared.in_situ.worst
    return {
        "name": compared.name,
        "op": compared.op,
        "shape": list(compared.shape),
        "passes": compared.passes,
        "failures": verdict.failures,
        "resembles": compared.resembles,
        "rewritten": compared.rewritten,
        "share": number(verdict.worst_case_ratio),
        "sharp_share": number(verdict.rms_ratio),
        "vacuous": verdict.n_vacuous,
        "worst": worst
        and {
            "index": list(worst.index),
            "max": number(worst.actual),
            "float64": number(worst.expected),
            "error": number(worst.error),
            "bound": number(worst.bound),
        },
        "pytorch": {
            "share": number(compared.pytorch.worst_case_ratio),
            "sharp_share": number(compared.pytorch.rms_ratio),
        },
        "size": number(compared.size),
        "cumulative": {"max": _error(compared.error), "openai": compared.peer and _error(compared.peer)},
    }


def _output(output: Output) -> dict[str, Any]:
    return {"name": output.name, "passes": output.passes, "max": _error(output.error), "openai": _error(output.peer)}


def _token_difference(difference: TokenDifference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    logits = {name: [number(logit) for logit in pair] for name, pair in difference.logits.items()}
    numbers = {name: number(getattr(difference, name)) for name in ("error_max", "error_openai", "margin")}
    return {**asdict(difference), "logits": logits, **numbers, "is_rounding": difference.is_rounding}


def _error(error: Error) -> dict[str, Any]:
    return {"rms": number(error.rms), "largest": number(error.largest)}
