"""Word times are OpenAI Whisper's: each step on random inputs, and all steps on recorded speech."""

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

from maxwhisper import DecodingResult, OptionError, Whisper
from maxwhisper.audio import SAMPLE_RATE, TOKENS_PER_SECOND
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
from tests.support.clips import IN_THREE_LANGUAGES, ONE_OF_EACH_LANGUAGE, some_always
from tests.support.implementations import Implementations

upstream: Any = importlib.import_module("whisper.timing")


# Single steps.


@given(
    x=arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=12), elements=st.floats(-8, 8, width=16)),
    width=st.sampled_from([1, 3, 5, 7, 9]),
)
def test_median_filter_is_openais(x: np.ndarray, width: int) -> None:
    if x.ndim == 2:
        x = x[None]  # compare matrices in three dimensions
    assert np.array_equal(median_filter(x, width), upstream.median_filter(torch.from_numpy(x.copy()), width).numpy())


def test_an_even_median_width_is_refused() -> None:
    with pytest.raises(ValueError, match="6 is not"):
        median_filter(np.zeros(9), 6)


@given(
    x=arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 25)), elements=st.floats(-4, 4, width=16)),
    scale=st.sampled_from([1.0, 0.0, 1e3]),
)
# A tie in float32, but not in float64.
@example(x=np.array([[-1, -4, 2**-22], [2**-22, 2**-22, 2**-22]], np.float32), scale=1.0)
def test_dtw_is_openais_including_ties(x: np.ndarray, scale: float) -> None:
    x = np.float32(scale) * x
    assert np.array_equal(dtw(x), upstream.dtw(torch.from_numpy(x)))


def test_dtw_finds_the_cheapest_path() -> None:
    """Compare with the cheapest of all paths."""
    x = np.random.default_rng(0).standard_normal((4, 5))

    def cheapest(i: int, j: int) -> float:
        costs = [cheapest(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
        return float(x[i, j]) + min(costs, default=0.0)

    rows, columns = dtw(x)
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, 3, 4)
    assert x[rows, columns].sum() == pytest.approx(cheapest(3, 4), abs=1e-5)


def test_frames_with_equal_attention_of_all_tokens_become_zero() -> None:
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


def openai_timings(alignment: list[WordTiming]) -> list[Any]:
    return [upstream.WordTiming(**vars(copy.deepcopy(timing))) for timing in alignment]


@given(
    texts=words_of_text,
    prepended=st.sampled_from([PREPEND_PUNCTUATIONS, "-"]),
    appended=st.sampled_from([APPEND_PUNCTUATIONS, ".,"]),
)
def test_punctuation_is_joined_as_by_openai(texts: list[str], prepended: str, appended: str) -> None:
    actual = timings(texts, np.random.default_rng(0))
    expected = openai_timings(actual)
    upstream.merge_punctuations(expected, prepended, appended)
    merge_punctuations(actual, prepended, appended)
    assert [vars(timing) for timing in actual] == [vars(timing) for timing in expected]


@given(
    texts=words_of_text,
    seed=st.integers(0, 2**32 - 1),
    n_segments=st.integers(1, 3),
    last=st.sampled_from([0.0, 9.0, 30.0]),
)
@settings(max_examples=300)
def test_words_are_assigned_to_segments_as_by_openai(texts: list[str], seed: int, n_segments: int, last: float) -> None:
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
def test_tokens_are_split_into_words_as_by_openai(language: str | None, text: str, n_cut: int) -> None:
    tokenizer = get_tokenizer(language is not None, language=language)
    openai_tokenizer = whisper.tokenizer.get_tokenizer(language is not None, language=language)
    tokens = openai_tokenizer.encoding.encode_ordinary(text)
    tokens = [*tokens[: len(tokens) - n_cut], openai_tokenizer.eot]  # may split a character
    assert tokenizer.split_to_word_tokens(tokens) == tuple(openai_tokenizer.split_to_word_tokens(tokens))


def test_alignment_heads_are_openais() -> None:
    n_heads = {"tiny": 6, "base": 8, "small": 12, "medium": 16, "large": 20, "turbo": 20}
    for name, dump in whisper._ALIGNMENT_HEADS.items():
        size = "turbo" if name.endswith("turbo") else name.split(".")[0].split("-")[0]
        model: Any = SimpleNamespace(dims=SimpleNamespace(n_text_head=n_heads[size]))
        Whisper.set_alignment_heads(model, dump)
        assert model.alignment_heads == ALIGNMENT_HEADS[name], name


# Recorded speech.


def decode_clip(implementations: Implementations, clip: Clip) -> tuple[np.ndarray, list[int], dict[str, Any], int]:
    """Decode the first window of a clip.

    Returns:
        The window, float32 [n_mels, 3000], its text tokens, the language option of the tokenizer,
        and the number of frames that are not padding.
    """
    model = implementations.model
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
def test_alignment_is_openais(name: str, model: str, implementations: Callable[[str], Implementations]) -> None:
    clip = packaged_clips().get(name) or next(clip for clip in packaged_clips().values() if clip.language == name[:2])
    window, tokens, options, n_frames = decode_clip(implementations(model), clip)
    multilingual = implementations(model).model.is_multilingual
    actual = find_alignment(
        implementations(model).model, get_tokenizer(multilingual, **options), tokens, window, n_frames
    )
    openai_tokenizer = whisper.tokenizer.get_tokenizer(multilingual, **options)
    expected = upstream.find_alignment(
        implementations(model).openai, openai_tokenizer, tokens, torch.from_numpy(window), n_frames
    )
    assert [(w.word, w.tokens) for w in actual] == [(w.word, w.tokens) for w in expected]
    assert len(actual) > 3
    for a, b in zip(actual, expected):
        assert (a.start, a.end) == pytest.approx((b.start, b.end), abs=0.02)
        assert a.probability == pytest.approx(b.probability, abs=1e-3)


def test_windows_of_a_batch_are_aligned_as_alone(tiny_en: Implementations) -> None:
    tokenizer = get_tokenizer(False)
    clips = [packaged_clips()[name] for name in ("beckett", "en/counting", "en/hello_world")]
    windows, tokens, _, n_frames = zip(*(decode_clip(tiny_en, clip) for clip in clips))
    inputs = [AlignmentInput(tokenizer, *arguments) for arguments in zip(tokens, n_frames)]
    inputs[1] = AlignmentInput(tokenizer, [], n_frames[1])
    together = find_alignments(tiny_en.model, inputs, tiny_en.model.embed_audio(np.stack(windows)))
    for window, single, words in zip(windows, inputs, together):
        alone = find_alignment(tiny_en.model, tokenizer, single.text_tokens, window, single.n_frames)
        assert [(w.word, w.start, w.end) for w in words] == [(w.word, w.start, w.end) for w in alone]
    assert together[1] == []


@pytest.mark.parametrize("n_frames", [0, 1])
def test_a_single_frame_has_words_at_its_start(n_frames: int, tiny_en: Implementations) -> None:
    """In OpenAI Whisper the path is then invalid, and a word begins one frame before the window."""
    tokenizer = get_tokenizer(False)
    words = find_alignment(
        tiny_en.model, tokenizer, tokenizer.encode(" Try again."), np.zeros((80, 3000), np.float32), n_frames
    )
    assert [(word.start, word.end) for word in words] == [(0.0, 0.0)] * len(words)
    assert "".join(word.word for word in words) == " Try again."


def test_text_that_exceeds_the_context_is_refused(tiny_en: Implementations) -> None:
    with pytest.raises(OptionError, match="do not fit a context of 448"):
        find_alignment(tiny_en.model, get_tokenizer(False), [11] * 447, np.zeros((80, 3000), np.float32), 3000)


def transcript_differences(implementations: Implementations, samples: np.ndarray, **options: Any) -> list[str]:
    """Return how transcripts with words differ, or nothing if rounding explains the differences."""
    options = {"temperature": 0.0, "word_timestamps": True, **options}
    actual = transcribe_with_max(implementations.model, samples, **options)
    expected = transcribe_with_openai(implementations.openai, samples, **options)
    assert any(segment["words"] for segment in expected.result["segments"])
    comparison = compare(actual, expected, implementations.model, implementations.openai, implementations.float64)
    return [] if comparison.passes else [*comparison.differences, str(comparison.token_difference)]


ENGLISH = [name for name, clip in all_clips().items() if clip.language == "en"]


@pytest.mark.parametrize("name", some_always(set(packaged_clips()), ENGLISH))
def test_words_of_english_clips_with_beam_search(name: str, tiny_en: Implementations) -> None:
    assert transcript_differences(tiny_en, all_clips()[name].samples, beam_size=5) == []


@pytest.mark.parametrize("name", some_always(ONE_OF_EACH_LANGUAGE, packaged_clips()))
def test_words_in_nine_languages(name: str, base: Implementations) -> None:
    beams = {"beam_size": 5} if name in IN_THREE_LANGUAGES else {}
    assert transcript_differences(base, packaged_clips()[name].samples, **beams) == []


SEVERAL = ("beckett", "en/counting", "en/quick_brown_fox", "en/hello_world")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.thorough),
        {"beam_size": 5},
        pytest.param({"hallucination_silence_threshold": 0.5}, marks=pytest.mark.thorough),
        {"hallucination_silence_threshold": 2.0, "condition_on_previous_text": False},
        {"clip_timestamps": "1.5,9,12.34,30.5,41"},
        pytest.param({"without_timestamps": True}, marks=pytest.mark.thorough),
        pytest.param({"prepend_punctuations": "", "append_punctuations": "."}, marks=pytest.mark.thorough),
        {"initial_prompt": "Samuel Beckett.", "carry_initial_prompt": True},
    ],
)
@pytest.mark.parametrize("model", ["tiny.en", pytest.param("base", marks=pytest.mark.thorough)])
def test_words_of_several_windows_between_silences(
    model: str, options: dict[str, Any], implementations: Callable[[str], Implementations]
) -> None:
    """Each window begins at the end of the last word of the window before."""
    pause = np.zeros(7 * SAMPLE_RATE, np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(11 * SAMPLE_RATE).astype(np.float32)
    parts = [part for name in SEVERAL for part in (packaged_clips()[name].samples, pause)]
    recording = np.concatenate([noise, *parts, noise, *parts])
    assert transcript_differences(implementations(model), recording, **options) == []


def segment_of(n_words: int, probability: float, seconds: float) -> Any:
    return {
        "words": [
            {"word": f" w{i}", "start": i * seconds, "end": (i + 1) * seconds, "probability": probability}
            for i in range(n_words)
        ]
    }


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (segment_of(8, 0.9, 0.3), False),
        (segment_of(8, 0.1, 0.3), True),
        (segment_of(8, 0.9, 0.02), True),
        (segment_of(2, 0.9, 4.0), True),
        (segment_of(0, 0.9, 1.0), False),
        ({"words": [{"word": ".", "start": 0.0, "end": 1.0, "probability": 1.0}]}, True),
    ],
)
def test_anomalous_segments_are_recognised(segment: Any, expected: bool) -> None:
    assert is_anomalous(segment) is expected
