"""Comparison of two programs' transcripts of the same samples, token by token; differences are weighed in float64."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import whisper

from maxwhisper.speech_model import SpeechModel
from maxwhisper.transcription.timing import Alignment, Assignment
from reference.models.float64 import NumpyWhisper
from reference.parity.beams import BeamWitness

# Fields of a segment that must be equal, and those that are computed in floating point, with how far they may differ.
EQUAL_FIELDS = ("id", "seek", "start", "end", "text", "tokens", "temperature")
CLOSE_FIELDS = {"avg_logprob": 1e-3, "compression_ratio": 1e-3, "no_speech_prob": 1e-3}
# Of a word, and where words are timed, of a segment; a window that begins where a word ends begins elsewhere, too.
CLOSE_TIMES = {"start": 0.02, "end": 0.02}
CLOSE_WORD_FIELDS = {**CLOSE_TIMES, "probability": 1e-3}


@dataclass(frozen=True)
class Window:
    """One call of a decoder: what it was prompted with and what it answered, at which temperature."""

    initial_tokens: list[int]
    tokens: list[int]
    temperature: float
    mel: np.ndarray | None = None  # float32 [n_mels, 3000]; none where it is remembered
    logits: Sequence[np.ndarray] = ()  # of MAX, at each step, before any token is forbidden
    allowed: Sequence[np.ndarray] = ()  # by MAX's rules, at each step: a bit for each token
    filters: Sequence[Any] = ()  # of OpenAI Whisper, which forbid tokens
    search: BeamWitness | None = None  # of MAX


@dataclass
class TimedWindow:
    """How the words of a window were timed by MAX, and OpenAI Whisper's tokenizer to judge it with."""

    tokenizer: Any
    alignment: Alignment
    assignment: Assignment | None = None

    @property
    def text(self) -> list[int]:
        """The window's text tokens."""
        return self.alignment.window.text_tokens

    @property
    def tokens(self) -> np.ndarray:
        """The tokens that the decoder is fed, int64 [1, n]."""
        return np.array([[*self.tokenizer.sot_sequence, self.tokenizer.no_timestamps, *self.text, self.tokenizer.eot]])


@dataclass(frozen=True)
class Transcription:
    """A transcript, and what it was made of."""

    result: dict[str, Any]
    windows: list[Window]  # in the order they were decoded, attempts at higher temperatures included
    timed: Sequence[TimedWindow] = ()  # how words were timed in each window with text; of MAX


@dataclass(frozen=True)
class TokenDifference:
    """The first step at which two programs chose different tokens, and whether rounding explains it.

    logits: of MAX's candidate and of OpenAI Whisper's, by "max", "openai" and in "float64". error_max, error_openai: by how much each
    program's float32 logits at this step are off, at most.
    """

    window: int
    step: int
    token_max: int
    token_openai: int
    logits: Mapping[str, tuple[float, float]]
    error_max: float
    error_openai: float

    def __str__(self) -> str:
        logits = "; ".join(f"{name} {ours:.7g} and {theirs:.7g}" for name, (ours, theirs) in self.logits.items())
        chosen = (
            f"window {self.window}, step {self.step}: MAX chose {self.token_max}, OpenAI Whisper {self.token_openai}"
        )
        errors = f"logits off by up to {self.error_max:.2g} (MAX) and {self.error_openai:.2g}"
        return f"{chosen}; their logits: {logits}; margin in float64 {self.margin:.2g}, {errors}"

    @property
    def margin(self) -> float:
        """How far apart the two candidates' logits are in float64."""
        ours, theirs = self.logits["float64"]
        return abs(ours - theirs)

    @property
    def is_rounding(self) -> bool:
        """The candidates are closer than both programs' errors together, so either may come out on top; and ours is no outlier."""
        return self.margin <= self.error_max + self.error_openai and self.error_max <= 4 * self.error_openai


@dataclass
class Comparison:
    """What differs between two transcripts of the same samples."""

    n_steps: int = 0
    n_windows: int = 0
    differences: list[str] = field(default_factory=list)
    n_unexplained: int = 0  # how many of them come before the first token that differs
    token_difference: TokenDifference | None = None

    @property
    def is_equal(self) -> bool:
        """Nothing differs."""
        return not self.differences

    @property
    def passes(self) -> bool:
        """Equal, or different only from a step on at which rounding decides."""
        rounding = self.token_difference is not None and self.token_difference.is_rounding
        return self.is_equal or (rounding and self.n_unexplained == 0)


def compare(
    ours: Transcription, theirs: Transcription, model: SpeechModel, judge: whisper.Whisper, truth: NumpyWhisper | None
) -> Comparison:
    """Compare two transcripts field by field, and where tokens differ, find the first step and weigh it in float64.

    truth: without it nothing is weighed, and no difference is put down to rounding.
    """
    comparison = Comparison(n_steps(theirs), len(theirs.windows))
    before, after = _compare_results(ours.result, theirs.result)
    comparison.token_difference = _first_token_difference(ours, theirs, before, model, judge, truth)
    if comparison.token_difference and not before + after:
        before.append("decoded tokens differ where the transcripts do not")
    comparison.differences = before + after
    comparison.n_unexplained = len(before)
    return comparison


def n_steps(transcription: Transcription) -> int:
    """How many tokens were chosen, ends of text among them."""
    return sum(len(window.tokens) + 1 for window in transcription.windows)


def differences(ours: Transcription, theirs: Transcription) -> list[str]:
    """Everything in which two transcripts differ, tokens of discarded attempts included; nobody is asked why."""
    found = [difference for part in _compare_results(ours.result, theirs.result) for difference in part]
    pairs = zip_longest(*([(w.initial_tokens, w.tokens, w.temperature) for w in t.windows] for t in (ours, theirs)))
    return found + [f"window {i}: {a}, OpenAI {b}" for i, (a, b) in enumerate(pairs) if a != b]


def _compare_results(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs before the first segment whose tokens differ, and what from there on."""
    before: list[str] = []
    after: list[str] = []
    if ours["language"] != theirs["language"]:
        before.append(f"language: {ours['language']!r}, OpenAI {theirs['language']!r}")
    found = before
    timed = any(segment.get("words") for segment in theirs["segments"])
    for a, b in zip(ours["segments"], theirs["segments"]):
        if a.keys() != b.keys():
            found.append(f"segment {b['id']} has {sorted(a)}, OpenAI {sorted(b)}")
            continue
        if a["tokens"] != b["tokens"]:
            found = after
        close = {**CLOSE_FIELDS, **(CLOSE_TIMES if timed else {})}
        found += (
            f"segment {b['id']} {name}: {a[name]!r}, OpenAI {b[name]!r}"
            for name in EQUAL_FIELDS
            if name not in close and a[name] != b[name]
        )
        found += _far_apart(f"segment {b['id']}", a, b, close)
        found += _different_words(f"segment {b['id']}", a.get("words", []), b.get("words", []))
    if len(ours["segments"]) != len(theirs["segments"]):
        after.append(f"{len(ours['segments'])} segments, OpenAI {len(theirs['segments'])}")
    if ours["text"] != theirs["text"]:
        after.append(f"text: {ours['text']!r}, OpenAI {theirs['text']!r}")
    return before, after


def _far_apart(
    what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], limits: Mapping[str, float]
) -> Iterator[str]:
    for name, limit in limits.items():
        if not abs(ours[name] - theirs[name]) <= limit + 1e-9:
            yield f"{what} {name}: {ours[name]:.6f}, OpenAI {theirs[name]:.6f}"


def _different_words(what: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> Iterator[str]:
    if [word["word"] for word in ours] != [word["word"] for word in theirs]:
        yield f"{what} words: {[word['word'] for word in ours]}, OpenAI {[word['word'] for word in theirs]}"
        return
    for i, (a, b) in enumerate(zip(ours, theirs)):
        yield from _far_apart(f"{what} word {i} {b['word']!r}", a, b, CLOSE_WORD_FIELDS)


def _first_token_difference(
    ours: Transcription,
    theirs: Transcription,
    differences: list[str],
    model: SpeechModel,
    judge: whisper.Whisper,
    truth: NumpyWhisper | None,
) -> TokenDifference | None:
    for i, (a, b) in enumerate(zip(ours.windows, theirs.windows)):
        if (a.initial_tokens, a.temperature) != (b.initial_tokens, b.temperature):
            differences.append(
                f"window {i} was prompted with {a.initial_tokens} at {a.temperature}, OpenAI {b.initial_tokens} at {b.temperature}"
            )
            return None
        if a.tokens != b.tokens:
            return _weigh(i, a, b, model, judge, truth) if truth else None
    if len(ours.windows) != len(theirs.windows):
        differences.append(f"{len(ours.windows)} windows decoded, OpenAI {len(theirs.windows)}")
    return None


def _weigh(
    i: int, ours: Window, theirs: Window, model: SpeechModel, judge: whisper.Whisper, truth: NumpyWhisper
) -> TokenDifference:
    assert theirs.mel is not None
    eot = whisper.tokenizer.get_tokenizer(judge.is_multilingual, num_languages=judge.num_languages).eot
    a, b = [*ours.tokens, eot], [*theirs.tokens, eot]
    step = next(k for k, (x, y) in enumerate(zip(a, b)) if x != y)
    tokens = np.array([[*ours.initial_tokens, *a[:step]]])
    mel = theirs.mel[None]
    exact = truth.decoder(tokens, truth.encoder(mel))[0, -1]
    with torch.no_grad():
        openai = judge(torch.from_numpy(mel), torch.from_numpy(tokens)).numpy()[0, -1]
    ours_logits = model.decoder(model.embed_audio(mel)).logits(tokens[None], rows=[tokens.shape[1] - 1])[0, 0, 0]
    pair = [a[step], b[step]]
    return TokenDifference(
        window=i,
        step=step,
        token_max=pair[0],
        token_openai=pair[1],
        logits={
            name: (float(values[pair[0]]), float(values[pair[1]]))
            for name, values in {"max": ours_logits, "openai": openai, "float64": exact}.items()
        },
        error_max=float(abs(ours_logits - exact).max()),
        error_openai=float(abs(openai - exact).max()),
    )
