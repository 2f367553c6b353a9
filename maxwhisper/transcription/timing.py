"""When each word was said: what each token attends to, warped onto the audio, as OpenAI Whisper's `timing.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
    """A word of a window, the tokens it is made of, when it was said, in seconds from the window's start, and how sure the model is."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Spoken:
    """What was said in a window: text tokens, of which `n_frames` frames of its spectrogram speak."""

    tokenizer: Tokenizer
    text_tokens: list[int]
    n_frames: int


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
    """The words of a window, log-mel [n_mels, 3000] or its features, of which `num_frames` frames hold audio; as
    `whisper.timing.find_alignment`.

    medfilt_width: over how many encoder frames attention is smoothed; qk_scale: what scores are multiplied with.

    Raises OptionError where the tokens are more than the model's context takes.
    """
    audio = mel if isinstance(mel, AudioFeatures) else model.embed_audio(mel)
    return find_alignments(model, [Spoken(tokenizer, text_tokens, num_frames)], audio, medfilt_width=medfilt_width, qk_scale=qk_scale)[0]


def find_alignments(
    model: SpeechModel, windows: Sequence[Spoken], audio: AudioFeatures, *, medfilt_width: int = 7, qk_scale: float = 1.0
) -> list[list[WordTiming]]:
    """`find_alignment` of many windows at once."""
    if not any(window.text_tokens for window in windows):
        return [[] for _ in windows]
    n_before = len(windows[0].tokenizer.sot_sequence)
    sequences = [[*w.tokenizer.sot_sequence, w.tokenizer.no_timestamps, *w.text_tokens] for w in windows]
    n_longest = max(map(len, sequences)) + 1  # all end, and some are filled up: no token sees what comes behind it
    tokens = np.array([[[*some, *[w.tokenizer.eot] * (n_longest - len(some))]] for w, some in zip(windows, sequences)])
    logits, scores = model.decoder(audio).alignment(tokens, range(n_before, n_longest - 2), model.alignment_heads)
    found = list[list[WordTiming]]()
    for window, some, its_logits, its_scores in zip(windows, sequences, logits[:, 0], scores):
        if not window.text_tokens:
            found.append([])
            continue
        weights = attention_weights(its_scores[:, : len(some) + 1] * np.float32(qk_scale), window.n_frames)
        matrix = median_filter(standardized(weights), medfilt_width).mean(axis=0)[n_before:-1]
        probabilities = token_probabilities(its_logits[:, : window.tokenizer.eot], window.text_tokens)
        found.append(words_along(dtw(-matrix), window, probabilities))
    return found


def attention_weights(scores: np.ndarray, n_frames: int) -> np.ndarray:
    """Softmax over the frames that hold audio, no others. scores float32 [n_heads, n, n_audio_ctx]; n_frames: of the spectrogram, two to
    one of the encoder.
    """
    return softmax(scores[..., : max(1, n_frames // 2)])


def standardized(weights: np.ndarray) -> np.ndarray:
    """Less the mean over all tokens, by their standard deviation; 0 where that is 0. weights [n_heads, n, n_frames]."""
    deviation = weights.std(axis=-2, keepdims=True)
    return np.divide(weights - weights.mean(axis=-2, keepdims=True), deviation, out=np.zeros_like(weights), where=deviation > 0)


def median_filter(x: np.ndarray, filter_width: int) -> np.ndarray:
    """The median of `filter_width` neighbours, an odd number, along the last dimension, reflected at the ends; x itself if it is shorter.

    As `whisper.timing.median_filter`. Raises ValueError for an even width.
    """
    if filter_width < 1 or filter_width % 2 == 0:
        raise ValueError(f"a filter's width must be odd, but {filter_width} is not")
    x = np.asarray(x)
    half, n = filter_width // 2, x.shape[-1]
    if n <= half:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    filtered = np.empty_like(x)
    for index in np.ndindex(x.shape[:-2]):  # so much as the processor's cache holds
        neighbours = [padded[index][..., i : i + n] for i in range(filter_width)]
        for lowest in range(half + 1):  # bubble up as many as needed
            for i in range(filter_width - 1, lowest, -1):
                low, high = neighbours[i - 1], neighbours[i]
                neighbours[i - 1], neighbours[i] = np.minimum(low, high), np.maximum(low, high)
        filtered[index] = neighbours[half]
    return filtered


def dtw(x: np.ndarray) -> np.ndarray:
    """Dynamic time warping: the cheapest way from the first to the last element of x [n, m], one step down, right or both at a time.

    Returns the way's rows and columns, int64 [2, n_path]. Summed in float64, and ties decided, as by `whisper.timing.dtw`.
    """
    x = np.asarray(x)
    n, m = x.shape
    skewed = np.zeros((n, n + m))  # row i moved by i, so that a column holds what can be computed at once
    skewed[:, :m] = x
    diagonals = np.ascontiguousarray(skewed.ravel()[:-n].reshape(n, n + m - 1).T)
    # [i + j, i], of the first i rows and j columns. Upstream's reads as float32, but numba makes it float64 (`ones(float32) * inf`).
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
    of_rows = as_strided(trace, (n + 1, m + 1), (sum(trace.strides), trace.strides[0]))  # [i, j] is [i + j, i] of the diagonals
    return backtrace(of_rows)


dtw_cpu = dtw_cuda = dtw


def backtrace(trace: np.ndarray) -> np.ndarray:
    """The way from the first to the last element of a matrix [n, m], by marks [n + 1, m + 1] of how each was reached from the one before:
    0 for one step down and right, 1 for down, 2 for right.

    Returns its rows and columns, int64 [2, n_path].
    """
    i, j = trace.shape[0] - 1, trace.shape[1] - 1
    path = [(i, j)]
    while (i, j) != (1, 1):
        way = _DOWN if j == 1 else _RIGHT if i == 1 else trace[i, j]
        i, j = i - (way != _RIGHT), j - (way != _DOWN)
        path.append((i, j))
    return np.array(path[::-1]).T - 1


_BOTH, _DOWN, _RIGHT = range(3)


def token_probabilities(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """How likely each token is behind those before it, float32 [n]. logits float32 [at least n, n_vocab]."""
    logits = logits[: len(tokens)]
    return np.exp(logits[np.arange(len(tokens)), tokens] - logsumexp(logits))


def words_along(path: np.ndarray, window: Spoken, probabilities: np.ndarray) -> list[WordTiming]:
    """The words of a window, where a path [2, n_path] reaches them: of tokens, from the one before the text on, and encoder frames."""
    eot = window.tokenizer.eot
    words, word_tokens = window.tokenizer.split_to_word_tokens([*window.text_tokens, eot])
    rows, frames = path
    times = frames[np.diff(rows, prepend=-1) > 0] / TOKENS_PER_SECOND  # when each token begins
    ends = np.cumsum([len(tokens) for tokens in word_tokens[:-1]])
    return [
        WordTiming(word, tokens, float(times[end - len(tokens)]), float(times[end]), float(probabilities[end - len(tokens) : end].mean()))
        for word, tokens, end in zip(words, word_tokens, ends)
    ]


def merge_punctuations(alignment: list[WordTiming], prepended: str, appended: str) -> None:
    """Join punctuation to the word behind it or before it, in place; what is joined to another is left without word and tokens."""
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
    """Give the segments of a window their `words`, in place, and times that fit them; as `whisper.timing.add_word_timestamps`.

    last_speech_timestamp: when, in seconds from the recording's start, the last word before them ended. The others as in
    `find_alignment`.
    """
    alignment = find_alignment(model, tokenizer, text_tokens(segments, tokenizer.eot), mel, num_frames, **kwargs)
    place_words(segments, alignment, tokenizer.eot, (prepend_punctuations, append_punctuations), last_speech_timestamp)


def place_words(
    segments: list[Segment], alignment: list[WordTiming], eot: int, punctuations: tuple[str, str], last_speech_timestamp: float
) -> None:
    """`add_word_timestamps` of words that are found: shared out among segments, in place. punctuations: to prepend, and to append."""
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


def _shorten_at_sentence_ends(alignment: list[WordTiming], longest: float) -> None:
    """A pause between sentences is no part of the mark that ends one, nor of the word that begins the next."""
    for before, timing in pairwise(alignment):
        if timing.end - timing.start > longest:
            if timing.word in _SENTENCE_ENDS:
                timing.end = timing.start + longest
            elif before.word in _SENTENCE_ENDS:
                timing.start = timing.end - longest


def _shorten_after_pause(words: list[Word], last_speech_timestamp: float, usual: float, longest: float) -> None:
    """A pause before a segment is no part of its first words."""
    first, second = words[0], words[1] if len(words) > 1 else None
    both_are_long = second is not None and second["end"] - first["start"] > 2 * longest
    if first["end"] - last_speech_timestamp > 4 * usual and (first["end"] - first["start"] > longest or both_are_long):
        if second is not None and second["end"] - second["start"] > longest:
            first["end"] = second["start"] = max(second["end"] / 2, second["end"] - longest)
        first["start"] = max(0, first["end"] - longest)


def _fit_to_segment(words: list[Word], segment: Segment, usual: float) -> None:
    """Where a segment's first or last word reaches far beyond it, it is cut there; else the segment begins and ends with its words."""
    first, last = words[0], words[-1]
    if segment["start"] < first["end"] and segment["start"] - 0.5 > first["start"]:
        first["start"] = max(0, min(first["end"] - usual, segment["start"]))
    else:
        segment["start"] = first["start"]
    if segment["end"] > last["start"] and segment["end"] + 0.5 < last["end"]:
        last["end"] = max(last["start"] + usual, segment["end"])
    else:
        segment["end"] = last["end"]
