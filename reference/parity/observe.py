"""Two programs transcribe, and what they do in each window is kept.

MAX tells it through `maxwhisper.transcription.trace`; OpenAI Whisper has no such interface, and is
watched from outside.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import whisper

from maxwhisper.decoding import DecodingOptions, DecodingResult
from maxwhisper.decoding.search import Candidate
from maxwhisper.decoding.trace import DecodingStep
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.sequential import iter_segments_with, transcribe_with
from maxwhisper.transcription.timing import Alignment, Assignment
from reference.parity.beams import BeamWitness
from reference.parity.transcripts import TimedWindow, Transcription, Window


def transcribe_with_max(model: SpeechModel, samples: np.ndarray, **options: Any) -> Transcription:
    """Transcribe as `maxwhisper.transcribe`, and keep every step, window and alignment."""
    recorder = Recorder(steps=True)
    result = transcribe_with(TranscriptionOptions.of(**options), model, samples, trace=recorder)
    return Transcription(dict(result), recorder.windows, recorder.timed)


def transcribe_with_openai(model: whisper.Whisper, samples: np.ndarray, **options: Any) -> Transcription:
    """Transcribe as `whisper.transcribe` in float32, and keep every window."""
    windows: list[Window] = []

    def decode(mel: torch.Tensor, options: whisper.DecodingOptions) -> whisper.DecodingResult:
        task = whisper.decoding.DecodingTask(model, options)
        (result,) = task.run(mel[None])
        windows.append(
            Window(
                list(task.initial_tokens), result.tokens, result.temperature, mel.numpy(), filters=task.logit_filters
            )
        )
        return result

    with mock.patch.object(model, "decode", decode):
        return Transcription(whisper.transcribe(model, samples, fp16=False, **options), windows)


def time_words_with_max(model: SpeechModel, samples: np.ndarray, n_windows: int, **options: Any) -> list[TimedWindow]:
    """Keep how the words of a recording's first windows with text are timed."""
    recorder = Recorder(steps=False)
    segments, _ = iter_segments_with(
        TranscriptionOptions.of(**options, word_timestamps=True), model, samples, trace=recorder
    )
    while len(recorder.timed) < n_windows and next(segments, None):
        pass
    return recorder.timed


class StepRecorder:
    """A `DecodingTrace` of one window at a time, which keeps logits and allowed tokens.

    Beam search is compared with OpenAI Whisper's step by step instead.
    """

    def begin(self, options: DecodingOptions, tokenizer: Tokenizer) -> None:
        """Forget the window before."""
        self.logits = list[np.ndarray]()
        self.allowed = list[np.ndarray]()
        self.search: BeamWitness | None = None
        if options.beam_size is not None:
            self.search = BeamWitness(options.beam_size, tokenizer.eot, options.patience, options.length_penalty)

    def step(self, step: DecodingStep) -> None:
        """Keep the first sequence's logits, and a bit for each token that the filters allow."""
        if self.search is not None:
            self.search.step(step)
            return
        self.logits.append(step.logits[0].copy())
        self.allowed.append(np.packbits(step.filtered[0] != -np.inf))

    def end(self, candidates: Sequence[Sequence[Candidate]], results: Sequence[DecodingResult]) -> None:
        """Compare the candidates of a beam search."""
        if self.search is not None:
            ((found,), (result,)) = candidates, results
            self.search.end(found, result)


class Recorder:
    """A `Trace` that keeps all windows, and how the words of each were timed.

    steps: keep the decoding steps, too, which are then taken on the host.
    """

    def __init__(self, steps: bool) -> None:
        self.decoding = StepRecorder() if steps else None
        self.windows = list[Window]()
        self.timed = list[TimedWindow]()

    def window(self, mel: np.ndarray, initial_tokens: list[int], result: DecodingResult) -> None:
        """Keep an attempt at a window."""
        window = Window(initial_tokens, result.tokens, result.temperature, mel)
        if (steps := self.decoding) is not None:
            window = replace(window, logits=steps.logits, allowed=steps.allowed, search=steps.search)
        self.windows.append(window)

    def alignment(self, alignment: Alignment) -> None:
        """Keep an alignment, with OpenAI Whisper's tokenizer of the same settings."""
        ours = alignment.window.tokenizer
        theirs = whisper.tokenizer.get_tokenizer(
            ours.language is not None, num_languages=ours.num_languages, language=ours.language, task=ours.task
        )
        self.timed.append(TimedWindow(theirs, alignment))

    def assignment(self, assignment: Assignment) -> None:
        """Keep the assignment of words with their alignment."""
        if assignment.alignment:
            self.timed[-1].assignment = assignment
