"""Comparison of both programs on one recording."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jiwer
import numpy as np
import whisper
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint
from reference.clips import Clip
from reference.models.capture import activation_names
from reference.models.float64 import NumpyWhisper
from reference.models.openai import load_openai
from reference.parity import stages, transcripts
from reference.parity.activations import Compared
from reference.parity.observe import time_words_with_max, transcribe_with_max, transcribe_with_openai
from reference.parity.stages import Stage
from reference.parity.transcripts import Comparison, Transcription, compare
from reference.parity.window import Output, Question, Window, production_outputs
from reference.parity.words import judge_words


class Programs:
    """A checkpoint in all implementations: MAX, OpenAI Whisper and NumPy float64."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.model = Whisper(checkpoint, device)
        self.judge: whisper.Whisper = load_openai(checkpoint)
        self.truth = NumpyWhisper(checkpoint)
        self._checkpoint, self._device = checkpoint, device
        self.tokenizer = whisper.tokenizer.get_tokenizer(
            self.judge.is_multilingual, num_languages=self.judge.num_languages
        )

    @cached_property
    def instrumented(self) -> Whisper:
        """The model on MAX with every activation as an output of its graphs."""
        return Whisper(self._checkpoint, self._device, capture=activation_names(self._checkpoint.dims))

    def question(self, window: transcripts.Window) -> Question:
        """Return the inputs with which all implementations compute a window of OpenAI Whisper's."""
        return Question.about(
            np.asarray(window.mel), window.initial_tokens, window.tokens, self.tokenizer, self.model.dims.n_text_ctx
        )


@dataclass
class WindowReport:
    """The comparison of one window."""

    index: int  # of the window in the recording
    question: Question
    attention: np.ndarray  # last layer's cross-attention, mean of its heads: [n_tokens, n_audio_ctx]
    activations: list[Compared]
    outputs: list[Output]  # of the production graph


@dataclass
class ClipReport:
    """The comparison of one recording."""

    clip: Clip
    samples: np.ndarray
    sha256: str  # of the file
    max: Transcription
    openai: Transcription
    seconds: dict[str, float]  # to transcribe, by "max" and "openai"
    comparison: Comparison
    before: list[Stage] = field(default_factory=list)  # stages before the network
    windows: list[WindowReport] = field(default_factory=list)
    after: list[Stage] = field(default_factory=list)  # stages after the network

    @property
    def first_divergence(self) -> Any:
        """The first stage, activation or output that does not pass, in data-flow order, or None."""
        network: list[Any] = [part for window in self.windows for part in (*window.activations, *window.outputs)]
        return next((part for part in (*self.before, *network, *self.after) if not part.passes), None)

    @property
    def word_error_rate(self) -> float | None:
        """The word error rate of MAX's transcript, or None if the clip has no reference text.

        Texts are normalized as in Whisper's paper.
        """
        if not self.clip.text:
            return None
        language = self.max.result["language"]
        normalize = (
            EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(split_letters=language in ("zh", "ja"))
        )
        return float(jiwer.wer(normalize(self.clip.text), normalize(self.max.result["text"])))


def compare_clip(
    clip: Clip, programs: Programs, show: Callable[[Iterator[Compared], int], Iterator[Compared]], n_windows: int = 1
) -> ClipReport:
    """Compare both programs on one recording: transcripts, and activations of its first windows.

    Args:
        clip: the recording.
        programs: the implementations to compare.
        show: shows progress. Called with the iterator of a window's activations and their number;
            returns an iterator of the same activations.
        n_windows: number of windows whose activations are compared.

    Raises:
        AudioError: if the recording can't be read.
    """
    samples = clip.samples
    seconds, transcriptions = {}, {}
    runs: dict[str, tuple[Callable[..., Transcription], Any]] = {
        "max": (transcribe_with_max, programs.model),
        "openai": (transcribe_with_openai, programs.judge),
    }
    for name, (transcribe, program) in runs.items():
        begin = time.perf_counter()
        transcriptions[name] = transcribe(program, samples, temperature=0.0)  # sampled tokens are random
        seconds[name] = time.perf_counter() - begin
    actual, openai = transcriptions["max"], transcriptions["openai"]
    comparison = compare(actual, openai, programs.model, programs.judge, programs.truth)
    sha256 = hashlib.sha256(clip.path.read_bytes()).hexdigest()
    report = ClipReport(clip, samples, sha256, actual, openai, seconds, comparison)

    device, log_mel = programs.model.device_name, stages.log_mel(programs.model, samples)
    report.before = [stages.judge_samples(clip.path, samples), stages.judge_log_mel(samples, log_mel, device)]
    if not openai.windows:
        report.before.append(
            Stage(
                "transcribe.window.0",
                False,
                f"{len(samples)} samples are too few to transcribe; nothing was compared",
            )
        )
    for index, transcribed in enumerate(openai.windows[:n_windows]):
        question = programs.question(transcribed)
        window = Window(question, programs.instrumented, programs.judge, programs.truth)
        activations = list(show(window.compare(), len(window.flow)))
        attention = window.openai[f"decoder.blocks.{programs.model.dims.n_text_layer - 1}.cross_attn.weights"][0].mean(
            axis=0
        )
        outputs = production_outputs(question, programs.model, window)
        report.windows.append(WindowReport(index, question, attention, activations, outputs))
    bound = stages.log_mel_bound(samples, programs.model.dims.n_mels, device)
    report.after = [
        *stages.judge_tokens(actual, openai, programs.tokenizer.eot),
        *stages.judge_windows(actual, openai, comparison, bound),
        *_judge_words(samples, programs, n_windows),
    ]
    return report


def _judge_words(samples: np.ndarray, programs: Programs, n_windows: int) -> Iterator[Stage]:
    """Judge the word timestamps of the first windows."""
    for timed in time_words_with_max(programs.model, samples, n_windows, temperature=0.0):
        yield from judge_words(timed, programs.judge, programs.truth)
