"""Fingerprints of models' activations in float64, in `golden/activations/`.

A fingerprint is small, and reveals any change of its activation. Two references compute the
activations: NumPy's definitions, and OpenAI Whisper in float64. If one of them drifts after an
upgrade, the other does not. If neither drifts but MAX's activations do, the cause is MAX.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from whisper.model import disable_sdpa
from whisper.tokenizer import get_tokenizer

from maxwhisper.audio import N_FRAMES, N_SAMPLES
from maxwhisper.checkpoint import load_checkpoint
from reference.clips import packaged_clips
from reference.flow import whisper as whisper_flow
from reference.models.capture import Activations, capture_openai
from reference.models.float64 import NumpyWhisper, decoder_inputs
from reference.models.openai import in_float64, load_openai
from reference.numerics.definitions import log_mel_spectrogram
from reference.parity.activations import rms
from reference.parity.observe import transcribe_with_openai
from reference.parity.window import Question

FOLDER = Path(__file__).parents[2] / "golden" / "activations"
CASES = {"tiny.en": "beckett", "base": "es/pangrama"}  # one clip for each model
N_SAMPLED = 16  # elements of each activation
# Relative. Nine digits are stored, which is an error of at most 5e-9, for both the stored and the
# computed rms and largest value. In addition, float64 rounding: with random rounding errors in all
# parts, as in `reference.ops.float64_error`, no element of tiny.en and base moves by more than
# 4.7e-11 of its activation's root mean square. Stored elements are at least as large as that. The
# limit allows eight times as much, for the stored and the computed values.
REFERENCE_DRIFT = 2 * 5e-9 + 1e-9
MAX_DRIFT = 1e-3  # relative; float32 is off by at most 1e-4 for elements this large


class Case:
    """A model and a clip, whose first window is given to the references."""

    def __init__(self, model: str) -> None:
        checkpoint = load_checkpoint(model)
        self.model = model
        self.clip = packaged_clips()[CASES[model]]
        self.judge, self.truth = load_openai(checkpoint), NumpyWhisper(checkpoint)
        self.tokenizer = get_tokenizer(self.judge.is_multilingual, num_languages=self.judge.num_languages)

    def question(self, stored: dict[str, Any]) -> Question:
        """Return the clip's first window, with stored tokens and its log-mel in float64."""
        samples = np.pad(self.clip.samples, (0, N_SAMPLES))
        mel = log_mel_spectrogram(samples, self.judge.dims.n_mels)[:, :N_FRAMES]
        return Question.about(
            mel, stored["initial_tokens"], stored["tokens"], self.tokenizer, self.judge.dims.n_text_ctx
        )

    def by_numpy(self, question: Question) -> Activations:
        """Compute every activation by the NumPy definitions."""
        inputs = {"log_mel": question.mel[None], **decoder_inputs(question.tokens)}
        return self.truth.evaluate(whisper_flow.whole(self.judge.dims), inputs)

    def by_openai(self, question: Question) -> Activations:
        """Compute every activation by OpenAI Whisper in float64."""
        with in_float64(self.judge) as judge, disable_sdpa():
            return capture_openai(judge, question.mel, question.prompt, question.forced)

    def compute(self) -> dict[str, Any]:
        """Compute the document to store."""
        transcript = transcribe_with_openai(self.judge, self.clip.samples, temperature=0.0)
        first = transcript.windows[0]
        document = {
            "written_by": f"nox -s golden, by reference.numerics.definitions in float64, with numpy {version('numpy')}",
            "model": self.model,
            "clip": self.clip.name,
            "samples_sha256": hashlib.sha256(self.clip.samples.tobytes()).hexdigest(),
            "text": transcript.result["text"],
            "initial_tokens": first.initial_tokens,
            "tokens": first.tokens,
        }
        activations = self.by_numpy(self.question(document))
        return {**document, "activations": {name: fingerprint(name, array) for name, array in activations.items()}}


def fingerprint(name: str, array: np.ndarray) -> dict[str, Any]:
    """Return the shape, root mean square and largest magnitude of an activation, and samples.

    The sampled elements are at least as large as the root mean square. They are stored with their
    indices in the flat array.
    """
    finite = np.where(np.isfinite(array), array, 0).ravel()
    size = rms(finite)
    candidates = np.flatnonzero(np.abs(finite) >= size)
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    at = np.sort(rng.choice(candidates, min(N_SAMPLED, len(candidates)), replace=False))
    return {
        "shape": list(array.shape),
        "rms": float(f"{size:.9g}"),
        "largest": float(f"{np.abs(finite).max():.9g}"),
        "at": at.tolist(),
        "values": [float(f"{value:.9g}") for value in finite[at]],
    }


def drift(document: dict[str, Any], activations: Activations, limit: float) -> Iterator[str]:
    """Compare activations with stored fingerprints.

    Args:
        document: as returned by `recall`.
        activations: all activations, by name.
        limit: largest relative difference of root mean square, largest magnitude and samples.

    Yields:
        A message for each difference, in data-flow order.
    """
    if missing := set(document["activations"]) ^ set(activations):
        yield f"{', '.join(sorted(missing))}: stored or computed, but not both"
    for name, stored in document["activations"].items():
        if name not in activations:
            continue
        array = activations[name]
        if list(array.shape) != stored["shape"]:
            yield f"{name}: shape {list(array.shape)}, stored {stored['shape']}"
            continue
        values = array.ravel()[stored["at"]].astype(np.float64)
        computed = fingerprint(name, array)
        for figure in ("rms", "largest"):
            if not abs(computed[figure] / stored[figure] - 1) <= limit:
                yield f"{name}: {figure} is {computed[figure]:.9g}, stored {stored[figure]:.9g}"
        difference = np.abs(values / np.array(stored["values"]) - 1)
        if not (difference <= limit).all():
            worst = int(np.argmax(difference))
            yield f"{name}: element {stored['at'][worst]} is {values[worst]:.9g}, stored {stored['values'][worst]:.9g}"


def recall(model: str) -> dict[str, Any]:
    """Read the stored document of a model."""
    return json.loads((FOLDER / f"{model}.json").read_text(encoding="utf-8"))


def update(model: str, check: bool) -> Iterator[str]:
    """Compute a model's activations by both references, and compare them with the stored ones.

    Args:
        model: its name.
        check: write nothing; otherwise the new fingerprints are stored.

    Yields:
        A message for each difference.
    """
    case, path = Case(model), FOLDER / f"{model}.json"
    stored = recall(model) if path.exists() else None
    computed = case.compute()
    if stored is None:
        yield f"activations of {model}: were not stored"
    else:
        for field in ("clip", "samples_sha256", "text", "initial_tokens", "tokens"):
            if stored[field] != computed[field]:
                yield f"activations of {model}: {field} is {computed[field]!r}, stored {stored[field]!r}"
        question = case.question(stored)
        for reference, compute in (("NumPy", case.by_numpy), ("OpenAI Whisper", case.by_openai)):
            for difference in drift(stored, compute(question), REFERENCE_DRIFT):
                yield f"activations of {model}: {reference} has drifted: {difference}"
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(_serialize(computed), encoding="utf-8")


def _serialize(document: dict[str, Any]) -> str:
    """Return JSON with one line for each activation, so that a diff shows which of them changed."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in document["activations"].items())
    rest = json.dumps(
        {name: value for name, value in document.items() if name != "activations"}, ensure_ascii=False, indent=1
    )
    return f'{rest[:-2]},\n "activations": {{\n{lines}\n }}\n}}\n'
