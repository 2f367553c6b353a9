"""Words are timed as OpenAI Whisper times them: each step alone, on anything, and all of them on recorded speech."""

import copy
import importlib
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from conftest import Trio
from maxwhisper import DecodingResult, OptionError, Whisper, log_mel_spectrogram, pad_or_trim
from maxwhisper.audio import N_FRAMES, SAMPLE_RATE, TOKENS_PER_SECOND
from maxwhisper.checkpoint.alignment_heads import ALIGNMENT_HEADS
from maxwhisper.tokenizer import get_tokenizer
from maxwhisper.transcription.hallucinations import is_anomalous
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.timing import (
    AlignmentInput,
    WordTiming,
    assign_words,
    dtw,
    find_alignment,
    find_alignments,
    median_filter,
    merge_punctuations,
    standardized,
)
from reference.clips import Clip, all_clips, packaged_clips
from reference.parity.observe import transcribe_with_max, transcribe_with_openai
from reference.parity.transcripts import compare
from reference.parity.words import assigned_by_openai

upstream: Any = importlib.import_module("whisper.timing")


# Each step alone.


@given(
    x=arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=12), elements=st.floats(-8, 8, width=16)),
    width=st.sampled_from([1, 3, 5, 7, 9]),
)
def test_median_filter_is_openais(x: np.ndarray, width: int) -> None:
    if x.ndim == 2:
        x = x[None]  # upstream reflects three dimensions and four, and one or two
    assert np.array_equal(median_filter(x, width), upstream.median_filter(torch.from_numpy(x.copy()), width).numpy())


def test_a_median_has_a_middle() -> None:
    with pytest.raises(ValueError, match="6 is not"):
        median_filter(np.zeros(9), 6)


@settings(deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 25)), elements=st.floats(-4, 4, width=16)),
    scale=st.sampled_from([1.0, 0.0, 1e3]),
)
@example(
    x=np.array([[-1, -4, 2**-22], [2**-22, 2**-22, 2**-22]], np.float32), scale=1.0
)  # a tie in float32, none in float64
def test_warping_is_openais_ties_included(x: np.ndarray, scale: float) -> None:
    x = np.float32(scale) * x
    assert np.array_equal(dtw(x), upstream.dtw(torch.from_numpy(x)))


def test_warping_finds_the_cheapest_way() -> None:
    """By trying all ways."""
    x = np.random.default_rng(0).standard_normal((4, 5))

    def cheapest(i: int, j: int) -> float:
        ways = [cheapest(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
        return float(x[i, j]) + min(ways, default=0.0)

    rows, columns = dtw(x)
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, 3, 4)
    assert x[rows, columns].sum() == pytest.approx(cheapest(3, 4), abs=1e-5)


def test_what_all_tokens_attend_to_alike_says_nothing() -> None:
    weights = np.full((2, 4, 3), 0.25, np.float32)
    weights[:, 1, 1] = 0.5
    assert np.isfinite(standardized(weights)).all()
    assert (standardized(weights)[..., [0, 2]] == 0).all()


words_of_text = st.lists(
    st.sampled_from([" one", " two", "ish", ".", ",", " (", ")", " -", "-", '"', ' "', "?", " ", "…", " three"]),
    min_size=0,
    max_size=12,
)


def timings(texts: list[str], rng: np.random.Generator) -> list[WordTiming]:
    edges = np.sort(rng.integers(0, 400, len(texts) + 1)) / TOKENS_PER_SECOND
    return [
        WordTiming(text, [i, 100 + i], float(edges[i]), float(edges[i + 1]), float(rng.random()))
        for i, text in enumerate(texts)
    ]


def theirs(alignment: list[WordTiming]) -> list[Any]:
    return [upstream.WordTiming(**vars(copy.deepcopy(timing))) for timing in alignment]


@given(
    texts=words_of_text,
    prepended=st.sampled_from([PREPEND_PUNCTUATIONS, "-"]),
    appended=st.sampled_from([APPEND_PUNCTUATIONS, ".,"]),
)
def test_punctuation_is_joined_as_by_openai(texts: list[str], prepended: str, appended: str) -> None:
    ours = timings(texts, np.random.default_rng(0))
    expected = theirs(ours)
    upstream.merge_punctuations(expected, prepended, appended)
    merge_punctuations(ours, prepended, appended)
    assert [vars(timing) for timing in ours] == [vars(timing) for timing in expected]


@given(
    texts=words_of_text,
    seed=st.integers(0, 2**32 - 1),
    n_segments=st.integers(1, 3),
    last=st.sampled_from([0.0, 9.0, 30.0]),
)
@settings(max_examples=300)
def test_words_are_shared_out_as_by_openai(texts: list[str], seed: int, n_segments: int, last: float) -> None:
    rng, eot = np.random.default_rng(seed), 1000
    alignment = timings(texts, rng)
    cuts = [0, *np.sort(rng.integers(0, len(texts) + 1, n_segments - 1)).tolist(), len(texts)]
    edges = np.sort(rng.integers(0, 400, n_segments + 1)) / TOKENS_PER_SECOND + 10
    segments: list[Any] = [
        {
            "seek": 1000,
            "start": float(edges[i]),
            "end": float(edges[i + 1]),
            "tokens": [eot, *(token for timing in alignment[a:b] for token in timing.tokens)],
        }
        for i, (a, b) in enumerate(pairwise(cuts))
    ]
    expected = assigned_by_openai(segments, alignment, eot, (PREPEND_PUNCTUATIONS, APPEND_PUNCTUATIONS), last)
    assign_words(segments, alignment, eot, (PREPEND_PUNCTUATIONS, APPEND_PUNCTUATIONS), last)
    assert segments == expected


@pytest.mark.parametrize("language", [None, "de", "ja", "zh"])
@given(text=st.text(max_size=20), n_cut=st.integers(0, 2))
@settings(deadline=None)
def test_words_are_parted_as_by_openai(language: str | None, text: str, n_cut: int) -> None:
    ours = get_tokenizer(language is not None, language=language)
    judge = whisper.tokenizer.get_tokenizer(language is not None, language=language)
    tokens = judge.encoding.encode_ordinary(text)
    tokens = [*tokens[: len(tokens) - n_cut], judge.eot]  # perhaps in the middle of a character
    assert ours.split_to_word_tokens(tokens) == tuple(judge.split_to_word_tokens(tokens))


def test_alignment_heads_are_openais() -> None:
    n_heads = {"tiny": 6, "base": 8, "small": 12, "medium": 16, "large": 20, "turbo": 20}
    for name, dump in whisper._ALIGNMENT_HEADS.items():
        size = "turbo" if name.endswith("turbo") else name.split(".")[0].split("-")[0]
        model: Any = SimpleNamespace(dims=SimpleNamespace(n_text_head=n_heads[size]))
        Whisper.set_alignment_heads(model, dump)
        assert model.alignment_heads == ALIGNMENT_HEADS[name], name


# Recorded speech.


def text_tokens(trio: Trio, clip: Clip) -> tuple[Any, list[int], Any, int]:
    model = trio.model
    mel = model.log_mel_spectrogram(clip.samples, padding=30 * SAMPLE_RATE)
    n_frames = min(3000, mel.shape[1] - 3000)
    window = np.where(np.arange(3000) < n_frames, mel[:, :3000], 0).astype(np.float32)
    options: dict[str, Any] = {"language": clip.language} if model.is_multilingual else {}
    result = model.decode(window, **options)
    assert isinstance(result, DecodingResult)
    return (
        window,
        [token for token in result.tokens if token < get_tokenizer(model.is_multilingual).eot],
        options,
        n_frames,
    )


@pytest.mark.parametrize(
    ("name", "model"), [("beckett", "tiny.en"), ("en/counting", "tiny.en"), ("ja/weather", "base"), ("beckett", "base")]
)
def test_alignment_is_openais(name: str, model: str, trio: Callable[[str], Trio]) -> None:
    clip = packaged_clips().get(name) or next(clip for clip in packaged_clips().values() if clip.language == name[:2])
    window, tokens, options, n_frames = text_tokens(trio(model), clip)
    multilingual = trio(model).model.is_multilingual
    ours = find_alignment(trio(model).model, get_tokenizer(multilingual, **options), tokens, window, n_frames)
    judge = whisper.tokenizer.get_tokenizer(multilingual, **options)
    expected = upstream.find_alignment(trio(model).judge, judge, tokens, torch.from_numpy(window), n_frames)
    assert [(w.word, w.tokens) for w in ours] == [(w.word, w.tokens) for w in expected]
    assert len(ours) > 3
    for a, b in zip(ours, expected):
        assert (a.start, a.end) == pytest.approx((b.start, b.end), abs=0.02)
        assert a.probability == pytest.approx(b.probability, abs=1e-3)


def test_windows_at_once_are_aligned_as_each_alone(tiny_en: Trio) -> None:
    tokenizer = get_tokenizer(False)
    clips = [packaged_clips()[name] for name in ("beckett", "en/counting", "en/hello_world")]
    windows, tokens, _, n_frames = zip(*(text_tokens(tiny_en, clip) for clip in clips))
    spoken = [AlignmentInput(tokenizer, *some) for some in zip(tokens, n_frames)]
    spoken[1] = AlignmentInput(tokenizer, [], n_frames[1])
    together = find_alignments(tiny_en.model, spoken, tiny_en.model.embed_audio(np.stack(windows)))
    for window, some, found in zip(windows, spoken, together):
        alone = find_alignment(tiny_en.model, tokenizer, some.text_tokens, window, some.n_frames)
        assert [(w.word, w.start, w.end) for w in found] == [(w.word, w.start, w.end) for w in alone]
    assert together[1] == []


@pytest.mark.parametrize("n_frames", [0, 1])
def test_a_single_frame_has_words_at_its_start(n_frames: int, tiny_en: Trio) -> None:
    """OpenAI Whisper's path then leads nowhere, and a word begins one frame before the window."""
    tokenizer = get_tokenizer(False)
    words = find_alignment(
        tiny_en.model, tokenizer, tokenizer.encode(" Try again."), np.zeros((80, 3000), np.float32), n_frames
    )
    assert [(word.start, word.end) for word in words] == [(0.0, 0.0)] * len(words)
    assert "".join(word.word for word in words) == " Try again."


def test_more_text_than_the_context_takes_is_refused(tiny_en: Trio) -> None:
    with pytest.raises(OptionError, match="do not fit a context of 448"):
        find_alignment(tiny_en.model, get_tokenizer(False), [11] * 447, np.zeros((80, 3000), np.float32), 3000)


def time_shifts(model: Whisper, reference: Whisper) -> np.ndarray:
    """By how many frames of 20 ms, in order, the words of ten seconds begin and end elsewhere with one model than with another."""
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)
    tokenizer = get_tokenizer(False)
    result = reference.decode(mel)
    assert isinstance(result, DecodingResult)
    text = [token for token in result.tokens if token < tokenizer.eot]
    ours, theirs = (
        np.array([(word.start, word.end) for word in find_alignment(some, tokenizer, text, mel, 1000)])
        for some in (model, reference)
    )
    return np.sort(np.rint(TOKENS_PER_SECOND * np.abs(ours - theirs)), axis=None)


def compared(trio: Trio, samples: np.ndarray, **options: Any) -> list[str]:
    options = {"temperature": 0.0, "word_timestamps": True, **options}
    ours = transcribe_with_max(trio.model, samples, **options)
    expected = transcribe_with_openai(trio.judge, samples, **options)
    assert any(segment["words"] for segment in expected.result["segments"])
    comparison = compare(ours, expected, trio.model, trio.judge, trio.truth)
    return [] if comparison.passes else [*comparison.differences, str(comparison.token_difference)]


@pytest.mark.parametrize("name", [name for name, clip in all_clips().items() if clip.language == "en"])
def test_words_of_english_clips_by_beams(name: str, tiny_en: Trio) -> None:
    assert compared(tiny_en, all_clips()[name].samples, beam_size=5) == []


@pytest.mark.parametrize("name", packaged_clips())
def test_words_in_nine_languages_by_beams(name: str, base: Trio) -> None:
    assert compared(base, packaged_clips()[name].samples, beam_size=5) == []


SEVERAL = ("beckett", "en/counting", "en/quick_brown_fox", "en/hello_world")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 5},
        {"hallucination_silence_threshold": 0.5},
        {"hallucination_silence_threshold": 2.0, "condition_on_previous_text": False},
        {"clip_timestamps": "1.5,9,12.34,30.5,41"},
        {"without_timestamps": True},
        {"prepend_punctuations": "", "append_punctuations": "."},
        {"initial_prompt": "Samuel Beckett.", "carry_initial_prompt": True},
    ],
)
@pytest.mark.parametrize("model", ["tiny.en", "base"])
def test_several_windows_amid_silence(model: str, options: dict[str, Any], trio: Callable[[str], Trio]) -> None:
    """Where one window's last word ends, the next begins."""
    pause = np.zeros(7 * SAMPLE_RATE, np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(11 * SAMPLE_RATE).astype(np.float32)
    parts = [part for name in SEVERAL for part in (packaged_clips()[name].samples, pause)]
    assert compared(trio(model), np.concatenate([noise, *parts, noise, *parts]), **options) == []


def words(n: int, probability: float, seconds: float) -> Any:
    return {
        "words": [
            {"word": f" w{i}", "start": i * seconds, "end": (i + 1) * seconds, "probability": probability}
            for i in range(n)
        ]
    }


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (words(8, 0.9, 0.3), False),
        (words(8, 0.1, 0.3), True),
        (words(8, 0.9, 0.02), True),
        (words(2, 0.9, 4.0), True),
        (words(0, 0.9, 1.0), False),
        ({"words": [{"word": ".", "start": 0.0, "end": 1.0, "probability": 1.0}]}, True),
    ],
)
def test_strange_words_are_doubted(segment: Any, expected: bool) -> None:
    assert is_anomalous(segment) is expected
