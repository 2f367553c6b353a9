"""Transcription by either program, with a record of each window.

MAX is recorded through `maxwhisper.transcription.trace`. OpenAI Whisper has no such interface, so
its method `decode` is wrapped.
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
from reference.parity.beams import BeamComparison
from reference.parity.transcripts import AlignmentTrace, Transcription, Window


def transcribe_with_max(
    model: SpeechModel, samples: np.ndarray, *, rng: np.random.Generator | None = None, **options: Any
) -> Transcription:
    """Transcribe as `maxwhisper.transcribe`, and record every step, window and alignment."""
    recorder = Recorder(steps=True)
    result = transcribe_with(TranscriptionOptions.of(**options), model, samples, rng=rng, trace=recorder)
    return Transcription(dict(result), recorder.windows, recorder.alignments)


def transcribe_with_openai(model: whisper.Whisper, samples: np.ndarray, **options: Any) -> Transcription:
    """Transcribe as `whisper.transcribe` in float32, and record every window."""
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


def time_words_with_max(
    model: SpeechModel, samples: np.ndarray, n_windows: int, **options: Any
) -> list[AlignmentTrace]:
    """Return the alignments of a recording's first `n_windows` windows with text."""
    recorder = Recorder(steps=False)
    segments, _ = iter_segments_with(
        TranscriptionOptions.of(**options, word_timestamps=True), model, samples, trace=recorder
    )
    while len(recorder.alignments) < n_windows and next(segments, None):
        pass
    return recorder.alignments


class StepRecorder:
    """A `DecodingTrace` that records the logits and allowed tokens of one window at a time.

    Of a beam search, it records the comparison with OpenAI Whisper's beam search instead.
    """

    def begin(self, options: DecodingOptions, tokenizer: Tokenizer) -> None:
        """Start the record of a window, and discard the previous one."""
        self.logits = list[np.ndarray]()
        self.allowed = list[np.ndarray]()
        self.search: BeamComparison | None = None
        if options.beam_size is not None:
            self.search = BeamComparison(options.beam_size, tokenizer.eot, options.patience, options.length_penalty)

    def step(self, step: DecodingStep) -> None:
        """Record the first sequence's logits, and one bit for each token: 1 if it is allowed."""
        if self.search is not None:
            self.search.step(step)
            return
        self.logits.append(step.logits[0].copy())
        self.allowed.append(np.packbits(step.filtered[0] != -np.inf))

    def end(self, candidates: Sequence[Sequence[Candidate]], results: Sequence[DecodingResult]) -> None:
        """Compare the candidates of a beam search."""
        if self.search is not None:
            ((finalists,), (result,)) = candidates, results
            self.search.end(finalists, result)


class Recorder:
    """A `Trace` that records all windows and the alignments of their words.

    Args:
        steps: also record the decoding steps. Decoding then runs step by step on the host.
    """

    def __init__(self, steps: bool) -> None:
        self.decoding = StepRecorder() if steps else None
        self.windows = list[Window]()
        self.alignments = list[AlignmentTrace]()

    def window(self, mel: np.ndarray, initial_tokens: list[int], result: DecodingResult) -> None:
        """Record one decoding of a window; there is one for each temperature tried."""
        window = Window(initial_tokens, result.tokens, result.temperature, mel)
        if (steps := self.decoding) is not None:
            window = replace(window, logits=steps.logits, allowed=steps.allowed, search=steps.search)
        self.windows.append(window)

    def alignment(self, alignment: Alignment) -> None:
        """Record an alignment, with OpenAI Whisper's tokenizer of the same settings."""
        tokenizer = alignment.window.tokenizer
        openai_tokenizer = whisper.tokenizer.get_tokenizer(
            tokenizer.language is not None,
            num_languages=tokenizer.num_languages,
            language=tokenizer.language,
            task=tokenizer.task,
        )
        self.alignments.append(AlignmentTrace(openai_tokenizer, alignment))

    def assignment(self, assignment: Assignment) -> None:
        """Record the assignment of words to segments, with their alignment."""
        if assignment.alignment:
            self.alignments[-1].assignment = assignment
