"""Word timestamps by attention to the audio, as in OpenAI Whisper's `timing.py`."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from maxwhisper.audio import HOP_LENGTH, SAMPLE_RATE, TOKENS_PER_SECOND
from maxwhisper.decoding.search import logsumexp, softmax
from maxwhisper.engine.decoder import AudioFeatures
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcript import Segment, Word, text_tokens
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS

_SENTENCE_ENDS = ".。!！?？"


@dataclass
class WordTiming:
    """A word of a window and its times."""

    word: str
    tokens: list[int]
    start: float  # in seconds from the window's start
    end: float
    probability: float  # the mean over the word's tokens


@dataclass(frozen=True)
class AlignmentInput:
    """The text of a window that is to be aligned with its audio."""

    tokenizer: Tokenizer
    text_tokens: list[int]
    n_frames: int  # the number of frames of the window's spectrogram that hold audio


@dataclass(frozen=True)
class Alignment:
    """How the text of a window was aligned with its audio: the result of each stage.

    `n` counts the tokens from the start of the prompt to the end of the text, `n_text` those of the
    text.
    """

    window: AlignmentInput
    features: np.ndarray  # float32 [1, n_audio_ctx, n_audio_state], of the encoder
    scores: np.ndarray  # float32 [n_heads, n, n_audio_ctx], of the alignment heads
    weights: np.ndarray  # float32 [n_heads, n, n_frames], after `attention_weights`
    standardized: np.ndarray  # of the same shape, after `standardized`
    filtered: np.ndarray  # of the same shape, after `median_filter`
    matrix: np.ndarray  # float32 [n_text + 1, n_frames], the mean of the heads, from the token before the text on
    path: np.ndarray  # int64 [2, n_path], after `dtw` of the negative matrix
    logits: np.ndarray  # float32 [n_text, eot], of the text tokens
    probabilities: np.ndarray  # float32 [n_text], after `token_probabilities`
    words: list[WordTiming]  # after `words_from_path`


@dataclass(frozen=True)
class Assignment:
    """How words were assigned to segments: the arguments of `assign_words`, and its result."""

    segments: list[Segment]
    alignment: list[WordTiming]
    eot: int
    punctuations: tuple[str, str]
    last_speech_timestamp: float
    result: list[Segment]


class TimingTrace(Protocol):
    """Receives the stages of timing words."""

    def alignment(self, alignment: Alignment) -> None:
        """Receive the alignment of a window that has text."""
        ...

    def assignment(self, assignment: Assignment) -> None:
        """Receive the assignment of a window's words to its segments."""
        ...


def find_alignment(
    model: SpeechModel,
    tokenizer: Tokenizer,
    text_tokens: list[int],
    mel: np.ndarray | AudioFeatures,
    num_frames: int,
    *,
    medfilt_width: int = 7,
    qk_scale: float = 1.0,
) -> list[WordTiming]:
    """Find the words of a window and their times, as `whisper.timing.find_alignment`.

    Args:
        model: The model.
        tokenizer: The tokenizer of the window's language and task.
        text_tokens: The window's text, without special tokens.
        mel: The log-mel window, float32 [n_mels, 3000], or its audio features.
        num_frames: The number of its frames that hold audio.
        medfilt_width: The number of encoder frames over which attention is smoothed, odd.
        qk_scale: The factor of attention scores.

    Raises:
        OptionError: There are more tokens than fit the model's context.
    """
    audio = mel if isinstance(mel, AudioFeatures) else model.embed_audio(mel)
    window = AlignmentInput(tokenizer, text_tokens, num_frames)
    (words,) = find_alignments(model, [window], audio, medfilt_width=medfilt_width, qk_scale=qk_scale)
    return words


def find_alignments(
    model: SpeechModel,
    windows: Sequence[AlignmentInput],
    audio: AudioFeatures,
    *,
    medfilt_width: int = 7,
    qk_scale: float = 1.0,
    trace: TimingTrace | None = None,
) -> list[list[WordTiming]]:
    """Find the words of many windows at once, as `find_alignment`.

    Args:
        model: The model.
        windows: The text of each window.
        audio: The audio features of all windows.
        medfilt_width: As in `find_alignment`.
        qk_scale: As in `find_alignment`.
        trace: Receives the alignment of each window that has text.

    Returns:
        The words of each window.
    """
    if not any(window.text_tokens for window in windows):
        return [[] for _ in windows]
    n_before = len(windows[0].tokenizer.sot_sequence)
    sequences = [[*w.tokenizer.sot_sequence, w.tokenizer.no_timestamps, *w.text_tokens] for w in windows]
    n_longest = max(map(len, sequences)) + 1  # with eot; padding changes nothing, as no token sees later ones
    tokens = np.array(
        [[[*tokens, *[w.tokenizer.eot] * (n_longest - len(tokens))]] for w, tokens in zip(windows, sequences)]
    )
    logits, scores = model.decoder(audio).alignment(tokens, range(n_before, n_longest - 2), model.alignment_heads)
    alignments = list[list[WordTiming]]()
    for i, (window, sequence) in enumerate(zip(windows, sequences)):
        if not window.text_tokens:
            alignments.append([])
            continue
        window_scores = scores[i][:, : len(sequence) + 1] * np.float32(qk_scale)
        weights = attention_weights(window_scores, window.n_frames)
        standard = standardized(weights)
        filtered = median_filter(standard, medfilt_width)
        matrix = filtered.mean(axis=0)[n_before:-1]
        path = dtw(-matrix)
        window_logits = logits[i, 0, : len(window.text_tokens), : window.tokenizer.eot]
        probabilities = token_probabilities(window_logits, window.text_tokens)
        words = words_from_path(path, window, probabilities)
        alignments.append(words)
        if trace is not None:
            stages = (window_scores, weights, standard, filtered, matrix, path, window_logits, probabilities)
            trace.alignment(Alignment(window, audio.to_numpy()[i : i + 1], *stages, deepcopy(words)))
    return alignments


def attention_weights(scores: np.ndarray, n_frames: int) -> np.ndarray:
    """Return attention weights: the softmax of scores over the frames that hold audio.

    Args:
        scores: float32 [n_heads, n, n_audio_ctx].
        n_frames: The number of frames of the spectrogram that hold audio, twice that of the
            encoder.

    Returns:
        float32 [n_heads, n, max(1, n_frames // 2)].
    """
    return softmax(scores[..., : max(1, n_frames // 2)])


def standardized(weights: np.ndarray) -> np.ndarray:
    """Standardize weights [n_heads, n, n_frames] over tokens.

    Subtract the mean and divide by the standard deviation; where that is 0, the result is 0.
    """
    deviation = weights.std(axis=-2, keepdims=True)
    return np.divide(
        weights - weights.mean(axis=-2, keepdims=True), deviation, out=np.zeros_like(weights), where=deviation > 0
    )


def median_filter(x: np.ndarray, filter_width: int) -> np.ndarray:
    """Apply a median filter along the last dimension, as `whisper.timing.median_filter`.

    Args:
        x: Any array; reflected at its ends. One that is no longer than half the filter is returned
            as it is.
        filter_width: The number of neighbours to take the median of, odd.

    Raises:
        ValueError: The width is even.
    """
    if filter_width < 1 or filter_width % 2 == 0:
        raise ValueError(f"a filter's width must be odd, but {filter_width} is not")
    x = np.asarray(x)
    half, n = filter_width // 2, x.shape[-1]
    if n <= half:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    filtered = np.empty_like(x)
    for index in np.ndindex(x.shape[:-2]):  # one matrix at a time, which the processor's cache holds
        neighbours = [padded[index][..., i : i + n] for i in range(filter_width)]
        for lowest in range(half + 1):  # bubble sort, as far as the middle
            for i in range(filter_width - 1, lowest, -1):
                low, high = neighbours[i - 1], neighbours[i]
                neighbours[i - 1], neighbours[i] = np.minimum(low, high), np.maximum(low, high)
        filtered[index] = neighbours[half]
    return filtered


def dtw(x: np.ndarray) -> np.ndarray:
    """Find the cheapest path from the first to the last element of x [n, m]: dynamic time warping.

    Each step goes down, right or both. Costs are summed in float64, and ties are decided, as in
    `whisper.timing.dtw`.

    Returns:
        The rows and columns of the path, int64 [2, n_path].
    """
    x = np.asarray(x)
    n, m = x.shape
    skewed = np.zeros((n, n + m))  # row i is shifted by i, so that the elements of a column don't depend on each other
    skewed[:, :m] = x
    diagonals = np.ascontiguousarray(skewed.ravel()[:-n].reshape(n, n + m - 1).T)
    # cost[i + j, i] is the cost of the first i rows and j columns. It looks like float32 in OpenAI
    # Whisper, but numba makes it float64 (`ones(float32) * inf`).
    cost = np.full((n + m + 1, n + 1), np.inf)
    trace = np.zeros((n + m + 1, n + 1), np.int8)
    cost[0, 0] = 0
    for d in range(2, n + m + 1):
        first, last = max(1, d - m), min(n, d - 1)
        both, down = cost[d - 2, first - 1 : last], cost[d - 1, first - 1 : last]
        right = cost[d - 1, first : last + 1]
        is_both, is_down = (both < down) & (both < right), (down < both) & (down < right)
        step = np.where(is_both, both, np.where(is_down, down, right))
        cost[d, first : last + 1] = diagonals[d - 2, first - 1 : last] + step
        trace[d, first : last + 1] = np.where(is_both, _BOTH, np.where(is_down, _DOWN, _RIGHT))
    # Element [i, j] of the view is [i + j, i] of the diagonals.
    trace_by_rows = as_strided(trace, (n + 1, m + 1), (sum(trace.strides), trace.strides[0]))
    return backtrace(trace_by_rows)


dtw_cpu = dtw_cuda = dtw


def backtrace(trace: np.ndarray) -> np.ndarray:
    """Follow a cheapest path from the last element of a matrix [n, m] back to the first.

    Args:
        trace: [n + 1, m + 1], the step that led to each element: 0 down and right, 1 down, 2 right.

    Returns:
        The rows and columns of the path, int64 [2, n_path].
    """
    i, j = trace.shape[0] - 1, trace.shape[1] - 1
    path = [(i, j)]
    while (i, j) != (1, 1):
        step = _DOWN if j == 1 else _RIGHT if i == 1 else trace[i, j]
        i, j = i - (step != _RIGHT), j - (step != _DOWN)
        path.append((i, j))
    return np.array(path[::-1]).T - 1


_BOTH, _DOWN, _RIGHT = range(3)


def token_probabilities(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Return the probability of each token after those before it.

    Args:
        logits: float32 [at least n, n_vocab].
        tokens: The n tokens.

    Returns:
        float32 [n].
    """
    logits = logits[: len(tokens)]
    return np.exp(logits[np.arange(len(tokens)), tokens] - logsumexp(logits))


def words_from_path(path: np.ndarray, window: AlignmentInput, probabilities: np.ndarray) -> list[WordTiming]:
    """Return the words of a window with the times at which the path reaches them.

    Args:
        path: int64 [2, n_path], tokens, counted from the one before the text, and encoder frames.
        window: The window's text.
        probabilities: float32 [n], of the text tokens.
    """
    eot = window.tokenizer.eot
    words, word_tokens = window.tokenizer.split_to_word_tokens([*window.text_tokens, eot])
    rows, frames = path
    times = frames[np.diff(rows, prepend=-1) > 0] / TOKENS_PER_SECOND  # the start of each token, in seconds
    ends = np.cumsum([len(tokens) for tokens in word_tokens[:-1]])
    return [
        WordTiming(
            word,
            tokens,
            float(times[end - len(tokens)]),
            float(times[end]),
            float(probabilities[end - len(tokens) : end].mean()),
        )
        for word, tokens, end in zip(words, word_tokens, ends)
    ]


def merge_punctuations(alignment: list[WordTiming], prepended: str, appended: str) -> None:
    """Join punctuation marks to words, in place; a joined mark is left empty.

    Args:
        alignment: Words and marks, in order.
        prepended: Marks to join to the word after them.
        appended: Marks to join to the word before them.
    """
    following = len(alignment) - 1
    for i in reversed(range(len(alignment) - 1)):
        mark, word = alignment[i], alignment[following]
        if mark.word.startswith(" ") and mark.word.strip() in prepended:
            word.word, word.tokens = mark.word + word.word, mark.tokens + word.tokens
            mark.word, mark.tokens = "", []
        else:
            following = i
    previous = 0
    for i in range(1, len(alignment)):
        word, mark = alignment[previous], alignment[i]
        if not word.word.endswith(" ") and mark.word in appended:
            word.word, word.tokens = word.word + mark.word, word.tokens + mark.tokens
            mark.word, mark.tokens = "", []
        else:
            previous = i


def add_word_timestamps(
    *,
    segments: list[Segment],
    model: SpeechModel,
    tokenizer: Tokenizer,
    mel: np.ndarray | AudioFeatures,
    num_frames: int,
    prepend_punctuations: str = PREPEND_PUNCTUATIONS,
    append_punctuations: str = APPEND_PUNCTUATIONS,
    last_speech_timestamp: float,
    **kwargs: Any,
) -> None:
    """Add `words` to the segments of a window, in place, as `whisper.timing.add_word_timestamps`.

    The segments' own times are fitted to their words.

    Args:
        segments: The segments.
        model: The model.
        tokenizer: The tokenizer of the window's language and task.
        mel: The log-mel window, float32 [n_mels, 3000], or its audio features.
        num_frames: The number of its frames that hold audio.
        prepend_punctuations: Marks to join to the word after them.
        append_punctuations: Marks to join to the word before them.
        last_speech_timestamp: When the last word before these segments ended, in seconds from the
            recording's start.
        kwargs: Further arguments of `find_alignment`.
    """
    alignment = find_alignment(model, tokenizer, text_tokens(segments, tokenizer.eot), mel, num_frames, **kwargs)
    assign_words(segments, alignment, tokenizer.eot, (prepend_punctuations, append_punctuations), last_speech_timestamp)


def assign_words(
    segments: list[Segment],
    alignment: list[WordTiming],
    eot: int,
    punctuations: tuple[str, str],
    last_speech_timestamp: float,
    trace: TimingTrace | None = None,
) -> None:
    """Assign the words of a window to its segments, in place.

    Args:
        segments: The segments, which get `words` and times that fit them.
        alignment: The words of all segments; changed in place.
        eot: The token that ends a text.
        punctuations: Marks to join to the word after them, and to the word before them.
        last_speech_timestamp: When the last word before these segments ended, in seconds from the
            recording's start.
        trace: Receives the assignment.
    """
    arguments = deepcopy((segments, alignment, eot, punctuations, last_speech_timestamp)) if trace is not None else None
    durations = [timing.end - timing.start for timing in alignment if timing.end != timing.start]
    usual = min(0.7, float(np.median(durations))) if durations else 0.0
    longest = 2 * usual
    if durations:
        _shorten_at_sentence_ends(alignment, longest)
    merge_punctuations(alignment, *punctuations)
    left = iter(alignment)
    for segment in segments:
        offset = segment["seek"] * HOP_LENGTH / SAMPLE_RATE
        segment["words"] = words = list[Word]()
        n_left = len(text_tokens([segment], eot))
        while n_left > 0 and (timing := next(left, None)):
            n_left -= len(timing.tokens)
            if timing.word:
                start, end = round(offset + timing.start, 2), round(offset + timing.end, 2)
                words.append({"word": timing.word, "start": start, "end": end, "probability": timing.probability})
        if words:
            _shorten_after_pause(words, last_speech_timestamp, usual, longest)
            _fit_to_segment(words, segment, usual)
            last_speech_timestamp = segment["end"]
    if trace is not None and arguments is not None:
        trace.assignment(Assignment(*arguments, deepcopy(segments)))


def _shorten_at_sentence_ends(alignment: list[WordTiming], longest: float) -> None:
    """Cut pauses between sentences off the marks and words next to them."""
    for before, timing in pairwise(alignment):
        if timing.end - timing.start > longest:
            if timing.word in _SENTENCE_ENDS:
                timing.end = timing.start + longest
            elif before.word in _SENTENCE_ENDS:
                timing.start = timing.end - longest


def _shorten_after_pause(words: list[Word], last_speech_timestamp: float, usual: float, longest: float) -> None:
    """Cut the pause before a segment off its first two words."""
    first, second = words[0], words[1] if len(words) > 1 else None
    both_are_long = second is not None and second["end"] - first["start"] > 2 * longest
    if first["end"] - last_speech_timestamp > 4 * usual and (first["end"] - first["start"] > longest or both_are_long):
        if second is not None and second["end"] - second["start"] > longest:
            first["end"] = second["start"] = max(second["end"] / 2, second["end"] - longest)
        first["start"] = max(0, first["end"] - longest)


def _fit_to_segment(words: list[Word], segment: Segment, usual: float) -> None:
    """Cut words that reach far beyond their segment; else fit the segment to its words."""
    first, last = words[0], words[-1]
    if segment["start"] < first["end"] and segment["start"] - 0.5 > first["start"]:
        first["start"] = max(0, min(first["end"] - usual, segment["start"]))
    else:
        segment["start"] = first["start"]
    if segment["end"] > last["start"] and segment["end"] + 0.5 < last["end"]:
        last["end"] = max(last["start"] + usual, segment["end"])
    else:
        segment["end"] = last["end"]
