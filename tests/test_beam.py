"""Beam search finds the same sequences as OpenAI Whisper's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maxwhisper import DecodingResult, Whisper, decode, log_mel_spectrogram, pad_or_trim, transcribe
from maxwhisper.audio import N_FRAMES
from maxwhisper.decoding.search import BeamSearchDecoder, top_k
from reference.clips import english_speech, packaged_clips
from reference.parity.transcripts import CLOSE_FIELDS, EQUAL_FIELDS
from tests.support.decoding import SUM_ERROR
from tests.support.implementations import Implementations

EOT = 7
N_VOCAB = 12


@given(
    n_audio=st.integers(1, 3),
    beam_size=st.integers(1, 5),
    patience=st.sampled_from([None, 0.5, 1.0, 2.0]),
    n_steps=st.integers(1, 8),
    ending=st.sampled_from([-3.0, 0.0, 2.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=200)
def test_beam_search_follows_the_same_sequences_as_openais(
    n_audio: int, beam_size: int, patience: float | None, n_steps: int, ending: float, seed: int
) -> None:
    """On random logits, both keep the same sequences in the same order and return equal candidates.

    OpenAI's search takes one window at a time. Ours takes several windows, and a window that is
    done gets no more candidates while others continue.
    """
    assume(beam_size * (patience or 1) > 0.5)
    rng = np.random.default_rng(seed)
    sources_max, sources_openai = list[list[list[int]]](), list[list[int]]()
    actual = BeamSearchDecoder(beam_size, EOT, lambda sources: sources_max.append(sources.tolist()), patience)
    inference: Any = SimpleNamespace(rearrange_kv_cache=sources_openai.append)
    openai = [whisper.decoding.BeamSearchDecoder(beam_size, EOT, inference, patience) for _ in range(n_audio)]
    tokens, sums = np.tile([[1, 2]], (n_audio * beam_size, 1)), np.zeros(n_audio * beam_size)
    openai_tokens = [torch.tensor([[1, 2]] * beam_size) for _ in range(n_audio)]
    openai_sums, openai_ends = [torch.zeros(beam_size) for _ in range(n_audio)], [False] * n_audio
    for step in range(n_steps):
        logits = rng.standard_normal((n_audio * beam_size, N_VOCAB)).astype(np.float32)
        logits[:, EOT] += ending
        if step == 0:  # all sequences of a window are equal
            logits = np.repeat(logits[::beam_size], beam_size, axis=0)
        tokens, ended = actual.update(tokens, logits, sums)
        for i in range(n_audio):
            if openai_ends[i]:
                continue
            group = slice(i * beam_size, (i + 1) * beam_size)
            openai_tokens[i], openai_ends[i] = openai[i].update(
                openai_tokens[i], torch.from_numpy(logits[group]), openai_sums[i]
            )
            assert tokens[group].tolist() == openai_tokens[i].tolist()
            # OpenAI's sums are computed in float32, u = 6e-8.
            assert np.allclose(sums[group], openai_sums[i].numpy(), atol=1e-5)
            if step > 0:  # in the first step, all sources are equal
                assert sources_max[-1][i] == sources_openai[-1]
        assert ended == all(openai_ends)
        if ended:
            break
    shape = (n_audio, beam_size, -1)
    candidates = actual.finalize(tokens.reshape(shape), sums.reshape(shape[:2]), sample_begin=2)
    for i, window_candidates in enumerate(candidates):
        (openai_candidates,), (totals,) = openai[i].finalize(openai_tokens[i][None], openai_sums[i][None])
        assert [[1, 2, *candidate.tokens, EOT] for candidate in window_candidates] == [
            candidate.tolist() for candidate in openai_candidates
        ]
        sums_of_candidates = [candidate.sum_logprob for candidate in window_candidates]
        assert np.allclose(sums_of_candidates, totals, atol=1e-5)  # OpenAI's are in float32, too


def test_top_k_repeats_no_token_if_the_others_are_forbidden() -> None:
    logits = np.full((2, 9), -np.inf, np.float32)
    logits[0, 5], logits[1, [2, 0]] = 1, [3, 4]
    assert top_k(logits, 4).tolist() == [[5, 0, 1, 2], [0, 2, 1, 3]]


def test_beam_search_in_graphs_equals_beam_search_on_the_host(
    tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search step by step in NumPy finds the same sequences."""
    if not tiny_en.model.searches_in_graph:
        pytest.skip("on this device NumPy searches")
    mel = np.stack(
        [pad_or_trim(log_mel_spectrogram(packaged_clips()[name].samples), N_FRAMES) for name in ("beckett", ENGLISH)]
    )
    audio = tiny_en.model.embed_audio(mel)
    for options in ({}, {"without_timestamps": True}, {"temperature": 0.5}, {"suppress_tokens": None, "sample_len": 9}):
        with monkeypatch.context() as patch:
            patch.setattr(Whisper, "searches_in_graph", property(lambda model: False))
            host = decode(tiny_en.model, audio, beam_size=5, **options)
        in_graph = decode(tiny_en.model, audio, beam_size=5, **options)
        assert isinstance(in_graph, list) and isinstance(host, list)
        for a, b in zip(in_graph, host, strict=True):
            assert a.tokens == b.tokens
            assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=SUM_ERROR)


def decode_both(implementations: Implementations, mel: np.ndarray, **options: Any) -> list[tuple[Any, Any]]:
    """Decode windows [n_audio, n_mels, 3000] and return pairs of results: MAX's and OpenAI's.

    MAX decodes them as a batch. OpenAI Whisper can only decode them one by one.
    """
    actual = decode(implementations.model, mel, **options)
    assert isinstance(actual, list)
    openai_options = whisper.DecodingOptions(**options, fp16=False)
    return [
        (result, implementations.openai.decode(torch.from_numpy(window), openai_options))
        for result, window in zip(actual, mel, strict=True)
    ]


def assert_same_text(actual: DecodingResult, openai: Any) -> None:
    assert actual.tokens == openai.tokens
    assert actual.text == openai.text
    assert actual.avg_logprob == pytest.approx(openai.avg_logprob, abs=CLOSE_FIELDS["avg_logprob"])


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 5},
        {"beam_size": 2, "patience": 2.0},
        {"beam_size": 5, "patience": 0.4},
        {"beam_size": 3, "length_penalty": 0.6},
        {"beam_size": 5, "without_timestamps": True},
        {"beam_size": 4, "prompt": [400] * 220, "sample_len": 20},
    ],
)
def test_beam_search_of_two_windows_is_openais(tiny_en: Implementations, options: dict[str, Any]) -> None:
    """The windows are a person speaking and a person counting."""
    clips = packaged_clips()
    mel = np.stack([pad_or_trim(log_mel_spectrogram(clips[name].samples), N_FRAMES) for name in ("beckett", ENGLISH)])
    for actual, openai in decode_both(tiny_en, mel, language="en", **options):
        assert_same_text(actual, openai)


ENGLISH = next(name for name, clip in packaged_clips().items() if clip.language == "en" and name != "beckett")


@pytest.mark.parametrize("name", [name for name in packaged_clips() if name != "beckett"][::4])
def test_beam_search_in_other_languages_is_openais(base: Implementations, name: str) -> None:
    clip = packaged_clips()[name]
    mel = pad_or_trim(log_mel_spectrogram(clip.samples), N_FRAMES)[None]
    ((actual, openai),) = decode_both(base, mel, beam_size=5, language=clip.language)
    assert_same_text(actual, openai)


def test_beam_search_of_a_long_recording_is_openais(tiny_en: Implementations) -> None:
    samples = english_speech()
    options: dict[str, Any] = {"beam_size": 5, "temperature": 0.0, "language": "en"}
    actual: Any = transcribe(tiny_en.model, samples, **options)
    openai = whisper.transcribe(tiny_en.openai, samples, fp16=False, **options)
    for a, b in zip(actual["segments"], openai["segments"], strict=True):
        assert {name: a[name] for name in EQUAL_FIELDS} == {name: b[name] for name in EQUAL_FIELDS}
        assert all(a[name] == pytest.approx(b[name], abs=tolerance) for name, tolerance in CLOSE_FIELDS.items())
    assert actual["text"] == openai["text"]
