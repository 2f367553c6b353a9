"""Comparison of MAX, OpenAI Whisper and NumPy float64 on one log-mel window of speech."""

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

N_FORCED = 64  # minimum number of tokens decoded one by one
EARLIER_TEXT = " Thank you for coming. Let us listen to what they have to say."
# Limit for the RMS error of the production graph's outputs, relative to OpenAI Whisper's.
MAX_RATIO = 4.0


@dataclass(frozen=True)
class Question:
    """The input of a comparison: a log-mel window, a prompt, and tokens to decode."""

    mel: np.ndarray  # [n_mels, n_frames]
    prompt: Sequence[int]  # tokens of the prefill
    forced: Sequence[int]  # tokens fed one by one after the prompt

    @staticmethod
    def about(
        mel: np.ndarray, initial_tokens: Sequence[int], tokens: Sequence[int], tokenizer: Tokenizer, n_ctx: int
    ) -> "Question":
        """Build the input from a transcribed window.

        The forced tokens are the window's tokens, repeated until there are at least `N_FORCED`. If
        the prompt has no previous text, `EARLIER_TEXT` is added.

        Args:
            mel: the log-mel window [n_mels, n_frames].
            initial_tokens: the prompt of the window.
            tokens: the tokens decoded from it.
            tokenizer: OpenAI Whisper's.
            n_ctx: size of the decoder's context, in tokens.
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
        """Prompt and forced tokens: int64 [1, n]."""
        return np.array([[*self.prompt, *self.forced]])


@dataclass(frozen=True)
class Output:
    """An output of the production graph, which is fused and exposes no activations."""

    name: str
    error: Error  # cumulative
    peer: Error  # OpenAI Whisper's

    @property
    def passes(self) -> bool:
        """Whether its RMS error is at most `MAX_RATIO` times OpenAI Whisper's."""
        return self.error.rms <= MAX_RATIO * self.peer.rms

    def __str__(self) -> str:
        return f"{self.name}: rms error {self.error.rms:.3g}, OpenAI Whisper's {self.peer.rms:.3g}"


class Window:
    """The activations of all implementations for the same input.

    Args:
        question: the input.
        instrumented: MAX's model with all activations captured.
        judge: OpenAI Whisper.
        reference: the model in float64.
    """

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
        """All activations in float64."""
        return truth(self.flow, self.given)

    def compare(self) -> Iterator[Compared]:
        """Compare every activation, in data-flow order.

        If the encoder's graph got a different log-mel window, that is yielded first.
        """
        return compare_activations(self.flow, self.max, self.given, self.exact, self.openai, device=self.device)


def answers(question: Question, model: SpeechModel) -> Activations:
    """Return the audio features, and the logits after each token, that a model's graphs compute."""
    audio = model.embed_audio(question.mel)
    decoder = model.decoder(audio)
    calls = [
        decoder.logits(np.array([[tokens]]))[:, 0]
        for tokens in (question.prompt, *([token] for token in question.forced))
    ]
    return {"encoder.ln_post": audio.to_numpy(), "decoder.logits": np.concatenate(calls, axis=1)}


def production_outputs(question: Question, model: SpeechModel, window: Window) -> list[Output]:
    """Compare the outputs of the production graphs with float64.

    Args:
        question: the input.
        model: MAX's model without captured activations.
        window: the activations of the other implementations for the same input.
    """
    return [
        Output(f"{name}, production graph", *(Error.of(a, window.exact[name]) for a in (array, window.openai[name])))
        for name, array in answers(question, model).items()
    ]
