"""One recording through both programs: everything that is compared, and the first thing that differs."""

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
from reference.models.capture import names
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
    """A checkpoint on MAX, as it is and with all activations shown, in OpenAI Whisper, and in NumPy float64."""

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
        """The same graphs, with every activation as an output."""
        return Whisper(self._checkpoint, self._device, capture=names(self._checkpoint.dims))

    def question(self, seen: transcripts.Window) -> Question:
        """What everybody is asked about a window that OpenAI Whisper has transcribed."""
        return Question.about(
            np.asarray(seen.mel), seen.initial_tokens, seen.tokens, self.tokenizer, self.model.dims.n_text_ctx
        )


@dataclass
class WindowReport:
    """What came of one window's activations, and of the production graph's outputs.

    attention: of the last layer's cross-attention, the mean of its heads, [n_tokens, n_audio_ctx].
    """

    index: int
    question: Question
    attention: np.ndarray
    activations: list[Compared]
    outputs: list[Output]


@dataclass
class ClipReport:
    """What came of one recording, in data-flow order."""

    clip: Clip
    samples: np.ndarray
    sha256: str
    ours: Transcription
    theirs: Transcription
    seconds: dict[str, float]
    comparison: Comparison
    before: list[Stage] = field(default_factory=list)
    windows: list[WindowReport] = field(default_factory=list)
    after: list[Stage] = field(default_factory=list)

    @property
    def first_divergence(self) -> Any:
        """The first stage, activation or output that does not pass, in data-flow order; None where all do."""
        inside: list[Any] = [part for window in self.windows for part in (*window.activations, *window.outputs)]
        return next((part for part in (*self.before, *inside, *self.after) if not part.passes), None)

    @property
    def word_error_rate(self) -> float | None:
        """Words that differ from what was said, after the normalisation of Whisper's paper; None where that is not known."""
        if not self.clip.text:
            return None
        language = self.ours.result["language"]
        normalize = (
            EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(split_letters=language in ("zh", "ja"))
        )
        return float(jiwer.wer(normalize(self.clip.text), normalize(self.ours.result["text"])))


def compare_clip(
    clip: Clip, programs: Programs, show: Callable[[Iterator[Compared], int], Iterator[Compared]], n_windows: int = 1
) -> ClipReport:
    """Both programs on one recording: transcripts, and every activation of its first windows.

    show: is handed a window's activations as they come and their number, and hands them on; for progress.

    Raises AudioError where the recording can't be read.
    """
    samples = clip.samples
    seconds, transcriptions = {}, {}
    runs: dict[str, tuple[Callable[..., Transcription], Any]] = {
        "max": (transcribe_with_max, programs.model),
        "openai": (transcribe_with_openai, programs.judge),
    }
    for name, (transcribe, program) in runs.items():
        begin = time.perf_counter()
        transcriptions[name] = transcribe(program, samples, temperature=0.0)  # sampled tokens would differ by chance
        seconds[name] = time.perf_counter() - begin
    ours, theirs = transcriptions["max"], transcriptions["openai"]
    comparison = compare(ours, theirs, programs.model, programs.judge, programs.truth)
    sha256 = hashlib.sha256(clip.path.read_bytes()).hexdigest()
    report = ClipReport(clip, samples, sha256, ours, theirs, seconds, comparison)

    device, log_mel = programs.model.device_name, stages.log_mel(programs.model, samples)
    report.before = [stages.judge_samples(clip.path, samples), stages.judge_log_mel(samples, log_mel, device)]
    if not theirs.windows:
        report.before.append(
            Stage(
                "transcribe.window.0",
                False,
                f"{len(samples)} samples are too few to be transcribed: nothing was compared",
            )
        )
    for index, seen in enumerate(theirs.windows[:n_windows]):
        question = programs.question(seen)
        window = Window(question, programs.instrumented, programs.judge, programs.truth)
        activations = list(show(window.compare(), len(window.flow)))
        attention = window.openai[f"decoder.blocks.{programs.model.dims.n_text_layer - 1}.cross_attn.weights"][0].mean(
            axis=0
        )
        outputs = production_outputs(question, programs.model, window)
        report.windows.append(WindowReport(index, question, attention, activations, outputs))
    bound = stages.log_mel_bound(samples, programs.model.dims.n_mels, device)
    report.after = [
        *stages.judge_tokens(ours, theirs, programs.tokenizer.eot),
        *stages.judge_windows(ours, theirs, comparison, bound),
        *_judge_words(samples, programs, n_windows),
    ]
    return report


def _judge_words(samples: np.ndarray, programs: Programs, n_windows: int) -> Iterator[Stage]:
    """Judge how words are timed in the first windows."""
    for timed in time_words_with_max(programs.model, samples, n_windows, temperature=0.0):
        yield from judge_words(timed, programs.judge, programs.truth)
