"""Judge faults on real weights and real speech: all stages outside the network, and the transcript.

Also record the results of the usual tests, such as cosine similarity.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import whisper
from whisper.normalizers import EnglishTextNormalizer

from maxwhisper import Whisper, WhisperError
from maxwhisper.audio import N_FRAMES
from maxwhisper.checkpoint import Checkpoint
from reference.models.capture import Activations, CapturedModel
from reference.models.float64 import NumpyWhisper
from reference.models.openai import load_openai
from reference.parity import stages
from reference.parity.observe import transcribe_with_max, transcribe_with_openai
from reference.parity.stages import Stage
from reference.parity.transcripts import Transcription, compare
from reference.parity.window import Question, answers
from reference.parity.words import judge_words

STARTS = (0, N_FRAMES)  # first frames of the windows whose stage outputs are compared
N_STEPS = 8  # decoding steps with the KV cache whose logits are compared
# Temperature 0, because sampled tokens would differ by chance. sample_len limits broken models that
# never end.
OPTIONS: Mapping[str, Any] = {"temperature": 0.0, "sample_len": 96}


@dataclass(frozen=True)
class Contrast:
    """The results of usual tests at the output of the stage that has the fault."""

    # The stage: `encoder.ln_post` or `decoder.logits`.
    stage: str
    # The smallest cosine similarity to OpenAI Whisper's output over the windows.
    cosine: float
    # Whether `np.allclose(rtol=1e-3, atol=1e-3)` holds for all windows.
    is_close: bool


@dataclass(frozen=True)
class OutsideNetwork:
    """The verdict on all stages outside the network, and on the transcript.

    The first three fields name the first stage that fails, or are empty if none does.
    """

    # Of the stages before the network: samples and spectrogram.
    audio: str
    # Of token rules and word timing.
    rules: str
    # Of prompts, windows, tokens and segments.
    windows: str
    transcript_differs: bool
    # Words that differ from OpenAI Whisper's, as a share of its words.
    other_words: float


class EndToEnd:
    """A recording, and the results of OpenAI Whisper and of the model without any fault."""

    def __init__(self, checkpoint: Checkpoint, path: Path, correct_model: Whisper) -> None:
        self.path = path
        self.judge = load_openai(checkpoint)
        self.tokenizer = whisper.tokenizer.get_tokenizer(
            self.judge.is_multilingual, num_languages=self.judge.num_languages
        )
        self.samples, self.log_mel = self.read_audio()
        self._openai_transcriptions = dict[str, Transcription]()
        self.openai = self.transcribe_with_openai()
        self.bound = stages.log_mel_bound(self.samples, checkpoint.dims.n_mels)
        self.questions = [self._question(i, mel) for i, mel in enumerate(_windows(self.log_mel))]
        self.openai_outputs = [_openai_outputs(self.judge, question) for question in self.questions]
        self.correct_outputs = [answers(question, correct_model) for question in self.questions]
        self._checkpoint = checkpoint

    @cached_property
    def _truth(self) -> NumpyWhisper:
        return NumpyWhisper(self._checkpoint)

    def _question(self, i: int, mel: np.ndarray) -> Question:
        window = self.openai.windows[i]
        question = Question.about(mel, window.initial_tokens, window.tokens, self.tokenizer, self.judge.dims.n_text_ctx)
        return replace(question, forced=question.forced[:N_STEPS])

    def transcribe_with_openai(self, **options: Any) -> Transcription:
        """Return OpenAI Whisper's transcription with further options."""
        key = str(options)
        if key not in self._openai_transcriptions:
            transcription = transcribe_with_openai(self.judge, self.samples, **OPTIONS, **options)
            self._openai_transcriptions[key] = transcription
        return self._openai_transcriptions[key]

    def read_audio(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the recording's samples and its spectrogram.

        This and the following methods must be called while the fault is planted.
        """
        samples = _audio().load_audio(self.path)
        return samples, _log_mel(samples, self.judge.dims.n_mels)

    def contrast(self, model: CapturedModel, log_mel: np.ndarray, captured: Sequence[Activations]) -> Contrast | None:
        """Run usual tests on the first stage output that the fault changes.

        Args:
            model: The faulty model.
            log_mel: The spectrogram that `read_audio` returned.
            captured: The model's activations for `questions`; empty if not captured.

        Returns:
            The results, or None if the fault changes neither the encoder's output nor the logits.
        """
        questions = [replace(question, mel=mel) for question, mel in zip(self.questions, _windows(log_mel))]
        if not captured or not all(np.array_equal(a.mel, b.mel) for a, b in zip(questions, self.questions)):
            captured = [answers(question, model) for question in questions]
        for stage in ("encoder.ln_post", "decoder.logits"):
            pairs = [(a[stage], b[stage]) for a, b in zip(captured, self.openai_outputs)]
            if not all(np.array_equal(a[stage], b[stage]) for a, b in zip(captured, self.correct_outputs)):
                cosine = min(_cosine(a, b) for a, b in pairs)
                return Contrast(stage, cosine, all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs))
        return None

    def judge_outside_network(
        self,
        model: CapturedModel,
        samples: np.ndarray,
        log_mel: np.ndarray,
        options: Mapping[str, Any],
        is_control: bool,
        is_explained: bool,
    ) -> OutsideNetwork:
        """Judge all stages outside the network.

        Args:
            model: The faulty model.
            samples: The samples that `read_audio` returned.
            log_mel: The spectrogram that `read_audio` returned.
            options: Options of transcription.
            is_control: Whether a different transcript may be explained by rounding.
            is_explained: Whether an activation fails. Token rules are not judged then.
        """
        audio_stages = []
        if not np.array_equal(samples, self.samples):
            audio_stages.append(stages.judge_samples(self.path, samples))
        if not np.array_equal(log_mel, self.log_mel):
            audio_stages.append(stages.judge_log_mel(samples, log_mel))
        try:
            actual = transcribe_with_max(model, samples, **OPTIONS, **options)
        except (WhisperError, ValueError):  # too many tokens, or a position out of range
            return OutsideNetwork(_first_failure(audio_stages), "", "transcribe", True, 1.0)
        truth = self._truth if is_control else None
        openai = self.transcribe_with_openai(**options)
        comparison = compare(actual, openai, model, self.judge, truth)
        rules = stages.judge_tokens(actual, openai, self.tokenizer.eot)
        words = (stage for timed in actual.alignments for stage in judge_words(timed, self.judge, self._truth))
        return OutsideNetwork(
            audio=_first_failure(audio_stages),
            rules="" if is_explained else _first_failure(chain(rules, words)),
            windows=_first_failure(stages.judge_windows(actual, openai, comparison, self.bound)),
            transcript_differs=not comparison.passes,
            other_words=_other_words(actual, openai),
        )


def _audio() -> Any:
    return import_module("maxwhisper.audio")


def _log_mel(samples: np.ndarray, n_mels: int) -> np.ndarray:
    log_mel: np.ndarray = _audio().log_mel_spectrogram(samples, n_mels, padding=_audio().N_SAMPLES)
    return log_mel


def _windows(log_mel: np.ndarray) -> list[np.ndarray]:
    """Cut the windows as transcription does."""
    module, n = import_module("maxwhisper.transcription.recording"), log_mel.shape[1] - N_FRAMES
    return [module.pad_or_trim(log_mel[:, start : min(start + N_FRAMES, n)], N_FRAMES) for start in STARTS]


def _openai_outputs(judge: whisper.Whisper, question: Question) -> dict[str, np.ndarray]:
    with torch.no_grad():
        features = judge.embed_audio(torch.from_numpy(question.mel)[None])
        logits = judge.logits(torch.from_numpy(question.tokens), features)
    return {"encoder.ln_post": features.numpy(), "decoder.logits": logits.numpy()}


def _first_failure(judged: Iterable[Stage]) -> str:
    return next((stage.name for stage in judged if not stage.passes), "")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _other_words(actual: Transcription, openai: Transcription) -> float:
    normalize = EnglishTextNormalizer()
    return float(jiwer.wer(normalize(openai.result["text"]), normalize(actual.result["text"]) or "nothing"))
