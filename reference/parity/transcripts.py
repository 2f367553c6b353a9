"""Comparison of two transcripts of the same samples, token by token.

If tokens differ, float64 logits decide whether rounding explains it.
"""

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
from reference.parity.beams import BeamComparison

# Fields of a segment that must be equal, and fields computed in floating point, with tolerances.
EQUAL_FIELDS = ("id", "seek", "start", "end", "text", "tokens", "temperature")
CLOSE_FIELDS = {"avg_logprob": 1e-3, "compression_ratio": 1e-3, "no_speech_prob": 1e-3}
# Tolerances in seconds for words, and for segments with word timestamps: their times, and the next
# window's begin, follow from times of words.
CLOSE_TIMES = {"start": 0.02, "end": 0.02}
CLOSE_WORD_FIELDS = {**CLOSE_TIMES, "probability": 1e-3}


@dataclass(frozen=True)
class Window:
    """One decoding of a window."""

    initial_tokens: list[int]  # the prompt
    tokens: list[int]  # the result
    temperature: float
    mel: np.ndarray | None = None  # float32 [n_mels, 3000]; None for stored transcripts
    logits: Sequence[np.ndarray] = ()  # MAX's at each step, before tokens are masked
    allowed: Sequence[np.ndarray] = ()  # tokens that MAX's rules allow at each step, as packed bits
    filters: Sequence[Any] = ()  # OpenAI Whisper's logit filters
    search: BeamComparison | None = None  # comparison of MAX's beam search


@dataclass
class AlignmentTrace:
    """MAX's alignment of the words of a window, and OpenAI Whisper's tokenizer to judge it."""

    tokenizer: Any
    alignment: Alignment
    assignment: Assignment | None = None

    @property
    def text(self) -> list[int]:
        """The text tokens of the window."""
        return self.alignment.window.text_tokens

    @property
    def tokens(self) -> np.ndarray:
        """The decoder's input tokens: int64 [1, n]."""
        return np.array([[*self.tokenizer.sot_sequence, self.tokenizer.no_timestamps, *self.text, self.tokenizer.eot]])


@dataclass(frozen=True)
class Transcription:
    """A transcript with the record of its windows."""

    result: dict[str, Any]
    windows: list[Window]  # in the order of decoding, including fallbacks to higher temperatures
    alignments: Sequence[AlignmentTrace] = ()  # of each window with text; only of MAX


@dataclass(frozen=True)
class TokenDifference:
    """The first step at which two programs chose different tokens, with their logits."""

    window: int
    step: int
    token_max: int
    token_openai: int
    # Logits of MAX's and of OpenAI Whisper's token: by "max", "openai" and in "float64".
    logits: Mapping[str, tuple[float, float]]
    error_max: float  # largest error of MAX's float32 logits at this step
    error_openai: float  # the same for OpenAI Whisper

    def __str__(self) -> str:
        logits = "; ".join(f"{name} {actual:.7g} and {openai:.7g}" for name, (actual, openai) in self.logits.items())
        chosen = (
            f"window {self.window}, step {self.step}: MAX chose {self.token_max}, OpenAI Whisper {self.token_openai}"
        )
        errors = f"logits off by up to {self.error_max:.2g} (MAX) and {self.error_openai:.2g}"
        return f"{chosen}; their logits: {logits}; margin in float64 {self.margin:.2g}, {errors}"

    @property
    def margin(self) -> float:
        """The difference of the two tokens' logits in float64."""
        actual, openai = self.logits["float64"]
        return abs(actual - openai)

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the difference.

        The margin must not exceed the sum of both programs' errors, so that either token may win.
        MAX's error must not exceed four times OpenAI Whisper's.
        """
        return self.margin <= self.error_max + self.error_openai and self.error_max <= 4 * self.error_openai


@dataclass
class Comparison:
    """The differences between two transcripts of the same samples."""

    n_steps: int = 0
    n_windows: int = 0
    differences: list[str] = field(default_factory=list)
    n_unexplained: int = 0  # number of differences before the first token that differs
    token_difference: TokenDifference | None = None

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    @property
    def passes(self) -> bool:
        """Whether they are equal, or differ only from a step on whose token depends on rounding."""
        rounding = self.token_difference is not None and self.token_difference.is_rounding
        return self.is_equal or (rounding and self.n_unexplained == 0)


def compare(
    actual: Transcription,
    expected: Transcription,
    model: SpeechModel,
    judge: whisper.Whisper,
    truth: NumpyWhisper | None,
) -> Comparison:
    """Compare MAX's transcript with OpenAI Whisper's, field by field.

    If tokens differ, the logits of the first step that differs are compared with float64.

    Args:
        actual: MAX's transcript.
        expected: OpenAI Whisper's transcript.
        model: MAX's model.
        judge: OpenAI Whisper.
        truth: the model in float64. Without it, no difference counts as rounding.
    """
    comparison = Comparison(n_steps(expected), len(expected.windows))
    before, after = _compare_results(actual.result, expected.result)
    comparison.token_difference = _first_token_difference(actual, expected, before, model, judge, truth)
    if comparison.token_difference and not before + after:
        before.append("decoded tokens differ, but the transcripts do not")
    comparison.differences = before + after
    comparison.n_unexplained = len(before)
    return comparison


def n_steps(transcription: Transcription) -> int:
    """Return the number of decoding steps, including those that chose end of text."""
    return sum(len(window.tokens) + 1 for window in transcription.windows)


def differences(actual: Transcription, expected: Transcription) -> list[str]:
    """Return a message for every difference of two transcripts, whether or not it is rounding.

    Tokens of discarded decodings are compared, too.
    """
    messages = [difference for part in _compare_results(actual.result, expected.result) for difference in part]
    pairs = zip_longest(*([(w.initial_tokens, w.tokens, w.temperature) for w in t.windows] for t in (actual, expected)))
    return messages + [f"window {i}: {a}, OpenAI {b}" for i, (a, b) in enumerate(pairs) if a != b]


def _compare_results(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the differences before the first segment whose tokens differ, and those from it on."""
    before: list[str] = []
    after: list[str] = []
    if actual["language"] != expected["language"]:
        before.append(f"language: {actual['language']!r}, OpenAI {expected['language']!r}")
    differences = before
    has_words = any(segment.get("words") for segment in expected["segments"])
    for a, b in zip(actual["segments"], expected["segments"]):
        if a.keys() != b.keys():
            differences.append(f"segment {b['id']} has {sorted(a)}, OpenAI {sorted(b)}")
            continue
        if a["tokens"] != b["tokens"]:
            differences = after
        close = {**CLOSE_FIELDS, **(CLOSE_TIMES if has_words else {})}
        differences += (
            f"segment {b['id']} {name}: {a[name]!r}, OpenAI {b[name]!r}"
            for name in EQUAL_FIELDS
            if name not in close and a[name] != b[name]
        )
        differences += _far_apart(f"segment {b['id']}", a, b, close)
        differences += _different_words(f"segment {b['id']}", a.get("words", []), b.get("words", []))
    if len(actual["segments"]) != len(expected["segments"]):
        after.append(f"{len(actual['segments'])} segments, OpenAI {len(expected['segments'])}")
    if actual["text"] != expected["text"]:
        after.append(f"text: {actual['text']!r}, OpenAI {expected['text']!r}")
    return before, after


def _far_apart(
    place: str, actual: Mapping[str, Any], expected: Mapping[str, Any], limits: Mapping[str, float]
) -> Iterator[str]:
    for name, limit in limits.items():
        if not abs(actual[name] - expected[name]) <= limit + 1e-9:
            yield f"{place} {name}: {actual[name]:.6f}, OpenAI {expected[name]:.6f}"


def _different_words(place: str, actual: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> Iterator[str]:
    if [word["word"] for word in actual] != [word["word"] for word in expected]:
        yield f"{place} words: {[word['word'] for word in actual]}, OpenAI {[word['word'] for word in expected]}"
        return
    for i, (a, b) in enumerate(zip(actual, expected)):
        yield from _far_apart(f"{place} word {i} {b['word']!r}", a, b, CLOSE_WORD_FIELDS)


def _first_token_difference(
    actual: Transcription,
    expected: Transcription,
    differences: list[str],
    model: SpeechModel,
    judge: whisper.Whisper,
    truth: NumpyWhisper | None,
) -> TokenDifference | None:
    for i, (a, b) in enumerate(zip(actual.windows, expected.windows)):
        if (a.initial_tokens, a.temperature) != (b.initial_tokens, b.temperature):
            differences.append(
                f"window {i}: prompt {a.initial_tokens} at temperature {a.temperature},"
                f" OpenAI {b.initial_tokens} at {b.temperature}"
            )
            return None
        if a.tokens != b.tokens:
            return _measure(i, a, b, model, judge, truth) if truth else None
    if len(actual.windows) != len(expected.windows):
        differences.append(f"{len(actual.windows)} windows decoded, OpenAI {len(expected.windows)}")
    return None


def _measure(
    i: int, actual: Window, expected: Window, model: SpeechModel, judge: whisper.Whisper, truth: NumpyWhisper
) -> TokenDifference:
    """Compare the logits of both programs at the first step that differs with float64."""
    assert expected.mel is not None
    eot = whisper.tokenizer.get_tokenizer(judge.is_multilingual, num_languages=judge.num_languages).eot
    a, b = [*actual.tokens, eot], [*expected.tokens, eot]
    step = next(k for k, (x, y) in enumerate(zip(a, b)) if x != y)
    tokens = np.array([[*actual.initial_tokens, *a[:step]]])
    mel = expected.mel[None]
    exact = truth.decoder(tokens, truth.encoder(mel))[0, -1]
    with torch.no_grad():
        openai = judge(torch.from_numpy(mel), torch.from_numpy(tokens)).numpy()[0, -1]
    max_logits = model.decoder(model.embed_audio(mel)).logits(tokens[None], rows=[tokens.shape[1] - 1])[0, 0, 0]
    pair = [a[step], b[step]]
    return TokenDifference(
        window=i,
        step=step,
        token_max=pair[0],
        token_openai=pair[1],
        logits={
            name: (float(values[pair[0]]), float(values[pair[1]]))
            for name, values in {"max": max_logits, "openai": openai, "float64": exact}.items()
        },
        error_max=float(abs(max_logits - exact).max()),
        error_openai=float(abs(openai - exact).max()),
    )
