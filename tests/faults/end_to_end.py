"""Faults anywhere, on real weights and real speech: what OpenAI Whisper says differs, and what usual tests would have said."""

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

STARTS = (0, N_FRAMES)  # of the windows whose stage outputs are compared
N_STEPS = 8  # cached ones, whose logits are compared
# Sampled tokens would differ by chance; and a broken model that never ends need not be listened to for long.
OPTIONS = {"temperature": 0.0, "sample_len": 96}


@dataclass(frozen=True)
class Contrast:
    """What usual tests see at the output of the stage that the fault is in: cosine similarity, and `np.allclose(rtol=1e-3, atol=1e-3)`."""

    stage: str
    cosine: float
    is_close: bool


@dataclass(frozen=True)
class Heard:
    """What came of a recording. before, rules, ways: the first stage that does not pass, outside the network, of those before it, of
    token rules, and of what is made of both. words: how many differ from OpenAI Whisper's, as a share of its own.
    """

    before: str
    rules: str
    ways: str
    differs: bool
    words: float


class EndToEnd:
    """A recording, OpenAI Whisper's answers to it, and those of the model without any fault."""

    def __init__(self, checkpoint: Checkpoint, path: Path, sound: Whisper) -> None:
        self.path = path
        self.judge = load_openai(checkpoint)
        self.tokenizer = whisper.tokenizer.get_tokenizer(
            self.judge.is_multilingual, num_languages=self.judge.num_languages
        )
        self.samples, self.log_mel = self.hear()
        self._asked = dict[str, Transcription]()
        self.theirs = self.ask()
        self.bound = stages.log_mel_bound(self.samples, checkpoint.dims.n_mels)
        self.questions = [self._question(i, mel) for i, mel in enumerate(_windows(self.log_mel))]
        self.right = [_openai_answers(self.judge, question) for question in self.questions]
        self.sound = [answers(question, sound) for question in self.questions]
        self._checkpoint = checkpoint

    @cached_property
    def _truth(self) -> NumpyWhisper:
        return NumpyWhisper(self._checkpoint)

    def _question(self, i: int, mel: np.ndarray) -> Question:
        seen = self.theirs.windows[i]
        question = Question.about(mel, seen.initial_tokens, seen.tokens, self.tokenizer, self.judge.dims.n_text_ctx)
        return replace(question, forced=question.forced[:N_STEPS])

    def ask(self, **options: Any) -> Transcription:
        """OpenAI Whisper's transcript, with further options."""
        if str(options) not in self._asked:
            self._asked[str(options)] = transcribe_with_openai(self.judge, self.samples, **OPTIONS, **options)
        return self._asked[str(options)]

    def hear(self) -> tuple[np.ndarray, np.ndarray]:
        """The recording's samples, and its spectrogram. The fault must be planted, as for all that follows."""
        samples = _audio().load_audio(self.path)
        return samples, _log_mel(samples, self.judge.dims.n_mels)

    def contrast(self, model: CapturedModel, log_mel: np.ndarray, seen: Sequence[Activations]) -> Contrast | None:
        """At the first of two outputs that is another one than without the fault; none where there is no such.

        seen: what the model makes of `questions`, where that is known.
        """
        asked = [replace(question, mel=mel) for question, mel in zip(self.questions, _windows(log_mel))]
        if not seen or not all(np.array_equal(a.mel, b.mel) for a, b in zip(asked, self.questions)):
            seen = [answers(question, model) for question in asked]
        for stage in ("encoder.ln_post", "decoder.logits"):
            pairs = [(a[stage], b[stage]) for a, b in zip(seen, self.right)]
            if not all(np.array_equal(a[stage], b[stage]) for a, b in zip(seen, self.sound)):
                cosine = min(_cosine(a, b) for a, b in pairs)
                return Contrast(stage, cosine, all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs))
        return None

    def listen(
        self,
        model: CapturedModel,
        samples: np.ndarray,
        log_mel: np.ndarray,
        options: Mapping[str, Any],
        is_control: bool,
        is_explained: bool,
    ) -> Heard:
        """All stages outside the network.

        Of a control, differences may be put down to rounding. Where the network explains what is wrong, token rules are not asked.
        """
        before = []
        if not np.array_equal(samples, self.samples):
            before.append(stages.judge_samples(self.path, samples))
        if not np.array_equal(log_mel, self.log_mel):
            before.append(stages.judge_log_mel(samples, log_mel))
        try:
            ours = transcribe_with_max(model, samples, **OPTIONS, **options)
        except (WhisperError, ValueError):  # more tokens, or another position, than there is room for
            return Heard(_first(before), "", "transcribe", True, 1.0)
        truth = self._truth if is_control else None
        theirs = self.ask(**options)
        comparison = compare(ours, theirs, model, self.judge, truth)
        rules = stages.judge_tokens(ours, theirs, self.tokenizer.eot)
        words = (stage for timed in ours.alignments for stage in judge_words(timed, self.judge, self._truth))
        return Heard(
            before=_first(before),
            rules="" if is_explained else _first(chain(rules, words)),
            ways=_first(stages.judge_windows(ours, theirs, comparison, self.bound)),
            differs=not comparison.passes,
            words=_words(ours, theirs),
        )


def _audio() -> Any:
    return import_module("maxwhisper.audio")


def _log_mel(samples: np.ndarray, n_mels: int) -> np.ndarray:
    log_mel: np.ndarray = _audio().log_mel_spectrogram(samples, n_mels, padding=_audio().N_SAMPLES)
    return log_mel


def _windows(log_mel: np.ndarray) -> list[np.ndarray]:
    """As transcription cuts them."""
    module, n = import_module("maxwhisper.transcription.recording"), log_mel.shape[1] - N_FRAMES
    return [module.pad_or_trim(log_mel[:, start : min(start + N_FRAMES, n)], N_FRAMES) for start in STARTS]


def _openai_answers(judge: whisper.Whisper, question: Question) -> dict[str, np.ndarray]:
    with torch.no_grad():
        features = judge.embed_audio(torch.from_numpy(question.mel)[None])
        logits = judge.logits(torch.from_numpy(question.tokens), features)
    return {"encoder.ln_post": features.numpy(), "decoder.logits": logits.numpy()}


def _first(found: Iterable[Stage]) -> str:
    return next((stage.name for stage in found if not stage.passes), "")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _words(ours: Transcription, theirs: Transcription) -> float:
    normalize = EnglishTextNormalizer()
    return float(jiwer.wer(normalize(theirs.result["text"]), normalize(ours.result["text"]) or "nothing"))
