"""Judge faults in the network: every activation of real windows, on the graph's own inputs.

Windows are decoded one after the other.
"""

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
    """The windows, and the activations of the model without any fault.

    The parity tests show that the activations without a fault are equal within rounding. An
    activation that a faulty model computes bit for bit the same, from the same inputs, is therefore
    not judged again. This takes seconds instead of parity's minute.
    """

    def __init__(self, questions: Sequence[Question], correct_model: Whisper, weights: Weights) -> None:
        self._questions = questions
        self.correct_activations = self.capture(correct_model)
        self._weights = weights
        self._flow = whisper_flow.of_max(correct_model.dims)

    def capture(self, model: CapturedModel) -> list[Activations]:
        """Return a model's activations for each window, decoded one after the other."""
        return [
            capture_max_and_input(model, question.mel, question.prompt, question.forced) for question in self._questions
        ]

    def culprit(self, captured: Sequence[Activations], judge_weights: Weights) -> Compared | None:
        """Return the first activation that its own op does not explain.

        The log-mel spectrogram comes first, if the graph's input differs from the window's. The
        encoder keeps no state between windows, so it is judged on the first one only.

        Args:
            captured: The activations of each window, from `capture`.
            judge_weights: The weights that the judge uses, in float32.

        Returns:
            The comparison that failed, or None if all pass.
        """
        for i, (question, activations, correct) in enumerate(zip(self._questions, captured, self.correct_activations)):
            inputs = {**judge_weights, "log_mel": question.mel[None], **decoder_inputs(question.tokens)}
            changed = set(
                self._changed(
                    {**inputs, **activations}, {**self._weights, **decoder_inputs(question.tokens), **correct}
                )
            )
            if i > 0:
                changed = {name for name in changed if name.startswith("decoder.")}
            wrong_input = compare_activations(self._flow, activations, inputs, correct, only=["log_mel"])
            if culprit := first_divergence(wrong_input) or self._first(activations, inputs, correct, changed):
                return culprit
        return None

    def _first(
        self, activations: Activations, inputs: Activations, correct: Activations, changed: Collection[str]
    ) -> Compared | None:
        wanted = {key: step for key, step in self._flow.items() if parse(key).name in changed}
        for name, judged in judge_each(wanted, {**inputs, **activations}, verdict=judge_alone):
            if not judged.actual.passes:
                only = compare_activations(self._flow, activations, inputs, correct, only=[name])
                if culprit := first_divergence(only):
                    return culprit
        return None

    def _changed(self, arrays: Activations, correct: Activations) -> Iterator[str]:
        """Yield the activations that differ from the correct ones, or have inputs that do."""
        same: dict[str, bool] = {}

        def is_same(source: str) -> bool:
            name = parse(source).name
            if name not in same:
                same[name] = arrays[name] is correct[name] or np.array_equal(arrays[name], correct[name])
            return same[name]

        for key, (_, sources) in self._flow.items():
            if not all(map(is_same, (key, *sources))):
                yield parse(key).name
