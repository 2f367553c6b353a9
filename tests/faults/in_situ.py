"""Faults in the network: every activation of real windows, decoded one after the other, judged on the graph's own inputs."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from maxwhisper import Whisper
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import parse
from reference.models.capture import Activations, CapturedModel, capture_max_and_input
from reference.models.float64 import decoder_inputs
from reference.ops.judge import judge_alone, judge_each
from reference.parity.activations import Compared, compare_activations, first_divergence
from reference.parity.window import Question
from tests.faults.plant import Weights


class InSitu:
    """Windows, and the activations of the model without any fault: equal within rounding, as tests of parity show.

    What is computed bit for bit as there, from the same, need not be judged again; so this takes seconds where parity takes a minute.
    """

    def __init__(self, questions: Sequence[Question], sound: Whisper, weights: Weights) -> None:
        self._questions = questions
        self.sound = self.ask(sound)
        self._weights = weights
        self._flow = whisper_flow.of_max(sound.dims)

    def ask(self, model: CapturedModel) -> list[Activations]:
        """What a model makes of the windows, one after the other."""
        return [
            capture_max_and_input(model, question.mel, question.prompt, question.forced) for question in self._questions
        ]

    def culprit(self, answers: Sequence[Activations], known_weights: Weights) -> Compared | None:
        """The log-mel spectrogram, if the graph was given another one, or the first activation that its own op does not explain.

        known_weights: what the judge takes for the model's. The encoder, which keeps nothing from one window to the next, is judged on the
        first of them.
        """
        for i, (question, activations, sound) in enumerate(zip(self._questions, answers, self.sound)):
            given = {**known_weights, "log_mel": question.mel[None], **decoder_inputs(question.tokens)}
            changed = set(
                self._changed({**given, **activations}, {**self._weights, **decoder_inputs(question.tokens), **sound})
            )
            if i > 0:
                changed = {name for name in changed if name.startswith("decoder.")}
            wrong_input = compare_activations(self._flow, activations, given, sound, only=["log_mel"])
            if found := first_divergence(wrong_input) or self._first(activations, given, sound, changed):
                return found
        return None

    def _first(
        self, activations: Activations, given: Activations, sound: Activations, changed: Collection[str]
    ) -> Compared | None:
        wanted = {key: step for key, step in self._flow.items() if parse(key).name in changed}
        for name, judged in judge_each(wanted, {**given, **activations}, verdict=judge_alone):
            if not judged.actual.passes:
                only = compare_activations(self._flow, activations, given, sound, only=[name])
                if found := first_divergence(only):
                    return found
        return None

    def _changed(self, ours: Activations, sound: Activations) -> Iterator[str]:
        """Activations that are others than the sound model's, or are made of what is."""
        same: dict[str, bool] = {}

        def is_same(source: str) -> bool:
            name = parse(source).name
            if name not in same:
                same[name] = ours[name] is sound[name] or np.array_equal(ours[name], sound[name])
            return same[name]

        for key, (_, sources) in self._flow.items():
            if not all(map(is_same, (key, *sources))):
                yield parse(key).name
