"""One log-mel window of speech through MAX, OpenAI Whisper and NumPy float64: every activation, and what the production graph shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import whisper
from whisper.model import disable_sdpa
from whisper.tokenizer import Tokenizer

import maxwhisper
from maxwhisper.speech_model import SpeechModel
from reference.flow import whisper as whisper_flow
from reference.models.capture import Activations, capture_max_and_input, capture_openai
from reference.models.float64 import NumpyWhisper, decoder_inputs
from reference.parity.activations import Compared, Error, compare_activations, truth

N_FORCED = 64  # tokens decoded one by one, at least
EARLIER_TEXT = " Thank you for coming. Let us listen to what they have to say."
# How many times as far from float64 as OpenAI Whisper's float32 the production graph's outputs may be, as root mean squares.
MAX_RATIO = 4.0


@dataclass(frozen=True)
class Question:
    """What everybody is asked: a window [n_mels, n_frames], a prompt in one go, and tokens that follow it one by one."""

    mel: np.ndarray
    prompt: Sequence[int]
    forced: Sequence[int]

    @staticmethod
    def about(
        mel: np.ndarray, initial_tokens: Sequence[int], tokens: Sequence[int], tokenizer: Tokenizer, n_ctx: int
    ) -> "Question":
        """The tokens of a transcribed window, over again until there are enough; after some earlier text, be it made up.

        n_ctx: tokens that fit the decoder.
        """
        text = list(tokens) or list(initial_tokens)
        forced = (text * (N_FORCED // len(text) + 1))[: max(N_FORCED, len(text))]
        earlier = (
            [] if initial_tokens[0] == tokenizer.sot_prev else [tokenizer.sot_prev, *tokenizer.encode(EARLIER_TEXT)]
        )
        prompt = [*earlier, *initial_tokens]
        return Question(mel, prompt, forced[: n_ctx - len(prompt)])

    @property
    def tokens(self) -> np.ndarray:
        """int64 [1, n]."""
        return np.array([[*self.prompt, *self.forced]])


@dataclass(frozen=True)
class Output:
    """An output of the production graph, fused as where nobody watches: its cumulative error, and OpenAI Whisper's."""

    name: str
    error: Error
    peer: Error

    @property
    def passes(self) -> bool:
        """No more than `MAX_RATIO` times as far from float64 as OpenAI Whisper."""
        return self.error.rms <= MAX_RATIO * self.peer.rms

    def __str__(self) -> str:
        return f"{self.name}: rms error {self.error.rms:.3g}, OpenAI Whisper's {self.peer.rms:.3g}"


class Window:
    """Everybody's answers to a question."""

    def __init__(
        self, question: Question, instrumented: maxwhisper.Whisper, judge: whisper.Whisper, reference: NumpyWhisper
    ) -> None:
        self.question = question
        self.device = instrumented.device_name
        self.flow = whisper_flow.for_weights(whisper_flow.of_max(instrumented.dims), reference.weights)
        weights = {name: weight.astype(np.float32) for name, weight in reference.weights.items()}
        self.given = {**weights, "log_mel": question.mel[None], **decoder_inputs(question.tokens)}
        self.max: Activations = capture_max_and_input(instrumented, question.mel, question.prompt, question.forced)
        with disable_sdpa():
            self.openai: Activations = capture_openai(judge, question.mel, question.prompt, question.forced)

    @cached_property
    def exact(self) -> Activations:
        """Every activation in float64."""
        return truth(self.flow, self.given)

    def compare(self) -> Iterator[Compared]:
        """Every activation, in data-flow order, and before them the log-mel window, should MAX be given another one."""
        return compare_activations(self.flow, self.max, self.given, self.exact, self.openai, device=self.device)


def answers(question: Question, model: SpeechModel) -> Activations:
    """What a model's graphs return for a question: audio features, and the logits behind each token."""
    audio = model.embed_audio(question.mel)
    decoder = model.decoder(audio)
    calls = [
        decoder.logits(np.array([[tokens]]))[:, 0]
        for tokens in (question.prompt, *([token] for token in question.forced))
    ]
    return {"encoder.ln_post": audio.to_numpy(), "decoder.logits": np.concatenate(calls, axis=1)}


def production_outputs(question: Question, model: SpeechModel, window: Window) -> list[Output]:
    """What the graphs that people run return for the same question."""
    return [
        Output(f"{name}, production graph", *(Error.of(a, window.exact[name]) for a in (array, window.openai[name])))
        for name, array in answers(question, model).items()
    ]
