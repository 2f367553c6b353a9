"""Try a fault or a control in all three comparisons."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint, load_checkpoint
from maxwhisper.engine.ops import portable
from reference.models.capture import CapturedModel, activation_names
from reference.models.openai import load_openai
from tests.faults.all_faults import CONTROLS, FAULTS, OF_OPS
from tests.faults.end_to_end import Contrast, EndToEnd
from tests.faults.in_situ import InSitu
from tests.faults.isolated import Isolated
from tests.faults.plant import Fault, Weights
from tests.faults.together import compile_together
from tests.support.implementations import cached_encoder
from tests.support.torch_model import TorchModel

MODEL = "tiny.en"
MAX_OTHER_WORDS = 0.05
MIN_COSINE = 0.999


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fault or a control."""

    name: str
    # The activation or stage that must be blamed; empty for a control.
    expected: str
    # The activation or stage that is blamed; empty if none is.
    blamed: str
    # Whether the op suite fails; None if no row shows the fault.
    isolated: bool | None
    # Whether an activation or a stage fails in situ.
    in_situ: bool
    # Whether the transcript differs.
    end_to_end: bool
    # The resemblance that the parity report mentions.
    looks_like: str
    # The share of words that differ from OpenAI Whisper's.
    words: float
    # What usual tests see, or None if no stage output changes.
    contrast: Contrast | None

    @property
    def is_caught(self) -> bool:
        """Whether any comparison caught it."""
        return bool(self.isolated or self.in_situ or self.end_to_end)

    @property
    def is_blamed_rightly(self) -> bool:
        """Whether the first name that failed is the expected one."""
        return self.blamed == self.expected

    @property
    def is_as_expected(self) -> bool:
        """Whether a fault is caught and the expected name blamed, or a control is not reported."""
        return self.is_caught == bool(self.expected) and self.is_blamed_rightly

    @property
    def let_through(self) -> list[str]:
        """The usual tests that would have passed."""
        tests = []
        if self.contrast and self.contrast.cosine > MIN_COSINE:
            tests.append("cosine")
        if self.contrast and self.contrast.is_close:
            tests.append("allclose")
        if self.words <= MAX_OTHER_WORDS:
            tests.append("text")
        return tests

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `report/faults.json`."""
        return {
            **asdict(self),
            "caught": self.is_caught,
            "blamed_rightly": self.is_blamed_rightly,
            "let_through": self.let_through,
        }


class Trials:
    """The models and the recording on which faults are tried, each made when it is first needed.

    tiny.en has every activation as an output. Other models are tried end to end only.
    """

    def __init__(self, faults: Iterable[Fault], recording: Path, device: str = "cpu") -> None:
        self.faults, self.recording, self.device = list(faults), recording, device
        self._end_to_end: dict[str, EndToEnd] = {}
        self._correct_models: dict[str, Whisper] = {}

    @cached_property
    def isolated(self) -> Isolated:
        """The op suite, with the rows that have a fault."""
        return Isolated([*self.faults, *OF_OPS.values()], self.device)

    @cached_property
    def variants(self) -> dict[str, Whisper]:
        """The models with a fault in their graphs."""
        return compile_together(self.faults, self.correct_model(MODEL))

    @cached_property
    def in_situ(self) -> InSitu:
        """The recording's windows, for tiny.en."""
        return InSitu(self.end_to_end(MODEL).questions, self.correct_model(MODEL), self.correct_weights)

    @cached_property
    def correct_weights(self) -> Weights:
        """The original weights of tiny.en, in float32."""
        return _in_float32(self.checkpoint(MODEL))

    def run(self, fault: Fault) -> Outcome:
        """Try a fault or a control in all comparisons."""
        op_failure = self.isolated.failure(fault) if fault.op else None
        model = self.faulty(fault)
        judge_weights = (
            _in_float32(fault.checkpoint(self.checkpoint(MODEL))) if fault.judge_sees_weights else self.correct_weights
        )
        # Both come from correct models, so they must be made before the fault is planted.
        end_to_end, in_situ = self.end_to_end(fault.model), self.in_situ
        with fault.planted(), mock.patch.object(model, "embed_audio", cached_encoder(model.embed_audio)):
            captured = in_situ.capture(model) if fault.model == MODEL else []
            culprit = in_situ.culprit(captured, judge_weights)
            samples, log_mel = end_to_end.read_audio()
            contrast = end_to_end.contrast(model, log_mel, captured)
            captured.clear()  # frees gigabytes
            is_explained = culprit is not None
            outside = end_to_end.judge_outside_network(
                model, samples, log_mel, fault.options, is_control=not fault.expected_culprit, is_explained=is_explained
            )
            model.activations.clear()
        blamed = [outside.audio, culprit.name if culprit else "", outside.rules, outside.windows]
        return Outcome(
            name=fault.name,
            expected=fault.expected_culprit,
            blamed=next(filter(None, blamed), ""),
            isolated=None if op_failure is None else bool(op_failure),
            in_situ=any(blamed[:3]),
            end_to_end=outside.transcript_differs,
            looks_like=culprit.resembles if culprit else "",
            words=outside.other_words,
            contrast=contrast,
        )

    def end_to_end(self, name: str) -> EndToEnd:
        """Return the end-to-end comparison of the recording for one model."""
        if name not in self._end_to_end:
            self._end_to_end[name] = EndToEnd(self.checkpoint(name), self.recording, self.correct_model(name))
        return self._end_to_end[name]

    def faulty(self, fault: Fault) -> CapturedModel:
        """Return a model with the fault in its graphs or in its weights, else the correct model."""
        if fault.by_torch:
            return TorchModel(load_openai(self.checkpoint(fault.model)), capture=True)
        if fault.is_in_graphs:
            return self.variants[fault.name]
        return (
            self._load(fault.model, fault.checkpoint(self.checkpoint(fault.model)))
            if fault.weights
            else self.correct_model(fault.model)
        )

    def correct_model(self, name: str) -> Whisper:
        """Return a model without any fault."""
        if name not in self._correct_models:
            self._correct_models[name] = self._load(name, self.checkpoint(name))
        return self._correct_models[name]

    def _load(self, name: str, checkpoint: Checkpoint) -> Whisper:
        captured = activation_names(checkpoint.dims) if name == MODEL else ()
        # Faults are planted where graphs are built, and a GPU's own kernels replace much of that.
        # Those have faults of their own: `tests/gpu/test_nvidia_faults.py`.
        backend = None if self.device == "cpu" else portable
        return Whisper(checkpoint, self.device, captured, backend=backend)

    @staticmethod
    @cache
    def checkpoint(name: str) -> Checkpoint:
        """Return a model's original checkpoint."""
        return load_checkpoint(name)


def _in_float32(checkpoint: Checkpoint) -> Weights:
    return {name: np.asarray(weight, np.float32) for name, weight in checkpoint.weights.items()}


def compile_by_two(trials: Trials) -> None:
    """Compile all graphs that the faults need, in two processes.

    MAX's compiler uses about one and a half cores. The second process leaves its results in MAX's
    cache.
    """
    other = get_context("spawn").Process(target=_compile_the_rest, args=(trials.device,))
    other.start()
    assert trials.variants
    other.join()


def _compile_the_rest(device: str) -> None:
    """Compile the ops with faults, and the models other than tiny.en."""
    faults = [*FAULTS.values(), *CONTROLS.values()]
    trials = Trials(faults, Path(), device)
    assert trials.isolated
    for name in {fault.model for fault in faults} - {MODEL}:
        trials.correct_model(name)
