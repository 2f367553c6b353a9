"""What `golden/activations/` keeps of a model's activations in float64: enough to see any of them change, in little space.

Two references compute them, NumPy's definitions and OpenAI Whisper in float64; so if one of them drifts after an upgrade, it is seen
which. Where neither does and MAX's activations are no longer those, MAX has.
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
# Relative: nine digits are kept, 5e-9 of a number at most, and of rms and largest nine digits are computed. Where errors are drawn for all
# parts, as `reference.ops.float64_error` does, no element of tiny.en and base moves by more than 4.7e-11 of its activation's root mean
# square, which those that are kept reach; eight times that for each side.
REFERENCE_DRIFT = 2 * 5e-9 + 1e-9
MAX_DRIFT = 1e-3  # relative; float32 is within 1e-4 of elements this large


class Case:
    """A model, a clip, and what its first window is asked."""

    def __init__(self, model: str) -> None:
        checkpoint = load_checkpoint(model)
        self.model = model
        self.clip = packaged_clips()[CASES[model]]
        self.judge, self.truth = load_openai(checkpoint), NumpyWhisper(checkpoint)
        self.tokenizer = get_tokenizer(self.judge.is_multilingual, num_languages=self.judge.num_languages)

    def question(self, kept: dict[str, Any]) -> Question:
        """With the log-mel in float64, so that everybody starts from the same numbers."""
        samples = np.pad(self.clip.samples, (0, N_SAMPLES))
        mel = log_mel_spectrogram(samples, self.judge.dims.n_mels)[:, :N_FRAMES]
        return Question.about(mel, kept["initial_tokens"], kept["tokens"], self.tokenizer, self.judge.dims.n_text_ctx)

    def by_numpy(self, question: Question) -> Activations:
        """Every activation, by definitions."""
        given = {"log_mel": question.mel[None], **decoder_inputs(question.tokens)}
        return self.truth.evaluate(whisper_flow.whole(self.judge.dims), given)

    def by_openai(self, question: Question) -> Activations:
        """Every activation, by OpenAI Whisper in float64."""
        with in_float64(self.judge) as judge, disable_sdpa():
            return capture_openai(judge, question.mel, question.prompt, question.forced)

    def ask(self) -> dict[str, Any]:
        """Everything that is to be kept."""
        transcript = transcribe_with_openai(self.judge, self.clip.samples, temperature=0.0)
        first = transcript.windows[0]
        kept = {
            "written_by": f"nox -s golden, by reference.numerics.definitions in float64, with numpy {version('numpy')}",
            "model": self.model,
            "clip": self.clip.name,
            "samples_sha256": hashlib.sha256(self.clip.samples.tobytes()).hexdigest(),
            "text": transcript.result["text"],
            "initial_tokens": first.initial_tokens,
            "tokens": first.tokens,
        }
        activations = self.by_numpy(self.question(kept))
        return {**kept, "activations": {name: signature(name, array) for name, array in activations.items()}}


def signature(name: str, array: np.ndarray) -> dict[str, Any]:
    """Shape, root mean square, largest, and some elements of at least the root mean square, by their place in the flat array."""
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


def drift(kept: dict[str, Any], activations: Activations, limit: float) -> Iterator[str]:
    """What is no longer as it was kept, in data-flow order; sampled elements may differ by `limit`, relatively."""
    if missing := set(kept["activations"]) ^ set(activations):
        yield f"{', '.join(sorted(missing))}: kept or computed, but not both"
    for name, was in kept["activations"].items():
        if name not in activations:
            continue
        array = activations[name]
        if list(array.shape) != was["shape"]:
            yield f"{name}: shape {list(array.shape)}, kept {was['shape']}"
            continue
        values = array.ravel()[was["at"]].astype(np.float64)
        now = signature(name, array)
        for figure in ("rms", "largest"):
            if not abs(now[figure] / was[figure] - 1) <= limit:
                yield f"{name}: {figure} is {now[figure]:.9g}, kept {was[figure]:.9g}"
        off = np.abs(values / np.array(was["values"]) - 1)
        if not (off <= limit).all():
            worst = int(np.argmax(off))
            yield f"{name}: element {was['at'][worst]} is {values[worst]:.9g}, kept {was['values'][worst]:.9g}"


def recall(model: str) -> dict[str, Any]:
    """What is kept of a model."""
    return json.loads((FOLDER / f"{model}.json").read_text(encoding="utf-8"))


def renew(model: str, check: bool) -> Iterator[str]:
    """Ask both references anew; rewrite what is kept, or with `check` leave it; say what differs."""
    case, path = Case(model), FOLDER / f"{model}.json"
    kept = recall(model) if path.exists() else None
    asked = case.ask()
    if kept is None:
        yield f"activations of {model}: were not kept"
    else:
        for field in ("clip", "samples_sha256", "text", "initial_tokens", "tokens"):
            if kept[field] != asked[field]:
                yield f"activations of {model}: {field} is {asked[field]!r}, kept {kept[field]!r}"
        question = case.question(kept)
        for reference, compute in (("NumPy", case.by_numpy), ("OpenAI Whisper", case.by_openai)):
            for difference in drift(kept, compute(question), REFERENCE_DRIFT):
                yield f"activations of {model}: {reference} has drifted: {difference}"
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(_document(asked), encoding="utf-8")


def _document(kept: dict[str, Any]) -> str:
    """A line for each activation, so that a change shows where it is."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in kept["activations"].items())
    rest = json.dumps(
        {name: value for name, value in kept.items() if name != "activations"}, ensure_ascii=False, indent=1
    )
    return f'{rest[:-2]},\n "activations": {{\n{lines}\n }}\n}}\n'
