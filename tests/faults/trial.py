"""A fault, or a control, through all three comparisons."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from conftest import remembering
from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint, load_checkpoint
from reference.models.capture import CapturedModel, activation_names
from reference.models.openai import load_openai
from tests.faults.end_to_end import Contrast, EndToEnd
from tests.faults.in_situ import InSitu
from tests.faults.isolated import Isolated
from tests.faults.plant import Fault, Weights
from tests.faults.table import CONTROLS, FAULTS, OF_OPS
from tests.faults.together import compile_together
from tests.torch_model import TorchModel

MODEL = "tiny.en"
MAX_OTHER_WORDS = 0.05
MIN_COSINE = 0.999


@dataclass(frozen=True)
class Outcome:
    """What came of one: what the op suite says (None where it has no row), which activation or stage is blamed, whether the transcript
    differs, how many of its words, and what usual tests see.
    """

    name: str
    expected: str
    blamed: str
    isolated: bool | None
    in_situ: bool
    end_to_end: bool
    looks_like: str
    words: float
    contrast: Contrast | None

    @property
    def is_caught(self) -> bool:
        """By whichever comparison."""
        return bool(self.isolated or self.in_situ or self.end_to_end)

    @property
    def is_blamed_rightly(self) -> bool:
        """The first name given is the expected one."""
        return self.blamed == self.expected

    @property
    def is_as_expected(self) -> bool:
        """A fault caught and blamed rightly; a control let alone."""
        return self.is_caught == bool(self.expected) and self.is_blamed_rightly

    @property
    def let_through(self) -> list[str]:
        """Usual tests that would have let it pass."""
        found = []
        if self.contrast and self.contrast.cosine > MIN_COSINE:
            found.append("cosine")
        if self.contrast and self.contrast.is_close:
            found.append("allclose")
        if self.words <= MAX_OTHER_WORDS:
            found.append("text")
        return found

    def to_json(self) -> dict[str, Any]:
        """For `report/faults.json`."""
        return {
            **asdict(self),
            "caught": self.is_caught,
            "blamed_rightly": self.is_blamed_rightly,
            "let_through": self.let_through,
        }


class Trials:
    """Everything that faults are tried on, made when it is first needed: tiny.en with every activation as an output, and a recording.

    Any other model is tried as it is, end to end alone.
    """

    def __init__(self, faults: Iterable[Fault], recording: Path, device: str = "cpu") -> None:
        self.faults, self.recording, self.device = list(faults), recording, device
        self._heard: dict[str, EndToEnd] = {}
        self._sound: dict[str, Whisper] = {}

    @cached_property
    def isolated(self) -> Isolated:
        """The op suite with the faults in it."""
        return Isolated([*self.faults, *OF_OPS.values()], self.device)

    @cached_property
    def variants(self) -> dict[str, Whisper]:
        """The models with a fault in their graphs."""
        return compile_together(self.faults, self.sound(MODEL))

    @cached_property
    def in_situ(self) -> InSitu:
        """The recording's windows."""
        return InSitu(self.end_to_end(MODEL).questions, self.sound(MODEL), self.right_weights)

    @cached_property
    def right_weights(self) -> Weights:
        """What the judge takes for the model's, in float32."""
        return _widened(self.checkpoint(MODEL))

    def run(self, fault: Fault) -> Outcome:
        """One of the faults through all comparisons."""
        isolated = self.isolated.finds(fault) if fault.op else None
        model = self.faulty(fault)
        known = _widened(fault.checkpoint(self.checkpoint(MODEL))) if fault.knows else self.right_weights
        end_to_end, in_situ = (
            self.end_to_end(fault.model),
            self.in_situ,
        )  # of the sound models, before anything is planted
        with fault.planted(), mock.patch.object(model, "embed_audio", remembering(model.embed_audio)):
            seen = in_situ.ask(model) if fault.model == MODEL else []
            culprit = in_situ.culprit(seen, known)
            samples, log_mel = end_to_end.hear()
            contrast = end_to_end.contrast(model, log_mel, seen)
            seen.clear()  # gigabytes
            is_explained = culprit is not None
            heard = end_to_end.listen(
                model, samples, log_mel, fault.options, is_control=not fault.blames, is_explained=is_explained
            )
            model.activations.clear()
        blamed = [heard.before, culprit.name if culprit else "", heard.rules, heard.ways]
        return Outcome(
            name=fault.name,
            expected=fault.blames,
            blamed=next(filter(None, blamed), ""),
            isolated=None if isolated is None else bool(isolated),
            in_situ=any(blamed[:3]),
            end_to_end=heard.differs,
            looks_like=culprit.resembles if culprit else "",
            words=heard.words,
            contrast=contrast,
        )

    def end_to_end(self, name: str) -> EndToEnd:
        """The recording, for one of the models."""
        if name not in self._heard:
            self._heard[name] = EndToEnd(self.checkpoint(name), self.recording, self.sound(name))
        return self._heard[name]

    def faulty(self, fault: Fault) -> CapturedModel:
        """A model with the fault in its graphs, or in its weights."""
        if fault.by_torch:
            return TorchModel(load_openai(self.checkpoint(fault.model)), capture=True)
        if fault.is_in_graphs:
            return self.variants[fault.name]
        return (
            self._load(fault.model, fault.checkpoint(self.checkpoint(fault.model)))
            if fault.weights
            else self.sound(fault.model)
        )

    def sound(self, name: str) -> Whisper:
        """A model without any fault."""
        if name not in self._sound:
            self._sound[name] = self._load(name, self.checkpoint(name))
        return self._sound[name]

    def _load(self, name: str, checkpoint: Checkpoint) -> Whisper:
        return Whisper(checkpoint, self.device, capture=activation_names(checkpoint.dims) if name == MODEL else ())

    @staticmethod
    @cache
    def checkpoint(name: str) -> Checkpoint:
        """The right weights, as they are stored."""
        return load_checkpoint(name)


def _widened(checkpoint: Checkpoint) -> Weights:
    return {name: np.asarray(weight, np.float32) for name, weight in checkpoint.weights.items()}


def compile_by_two(trials: Trials) -> None:
    """MAX's compiler keeps a core and a half busy, so two processes compile what all faults need, and leave it in MAX's cache."""
    other = get_context("spawn").Process(target=_compile_the_rest, args=(trials.device,))
    other.start()
    assert trials.variants
    other.join()


def _compile_the_rest(device: str) -> None:
    """Ops with faults, and other models."""
    faults = [*FAULTS.values(), *CONTROLS.values()]
    trials = Trials(faults, Path(), device)
    assert trials.isolated
    for name in {fault.model for fault in faults} - {MODEL}:
        trials.sound(name)
