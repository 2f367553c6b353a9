"""Beam search finds the sequences that OpenAI Whisper's finds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import Trio
from maxwhisper import DecodingResult, Whisper, decode, log_mel_spectrogram, pad_or_trim, transcribe
from maxwhisper.audio import N_FRAMES
from maxwhisper.decoding.search import BeamSearchDecoder, top_k
from reference.clips import english_speech, packaged_clips
from reference.parity.transcripts import CLOSE_FIELDS, EQUAL_FIELDS
from tests.test_next_token import SUM_ERROR

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
@settings(max_examples=200, deadline=None)
def test_it_follows_what_openais_does(
    n_audio: int, beam_size: int, patience: float | None, n_steps: int, ending: float, seed: int
) -> None:
    """On random logits: the same sequences in the same places, gone on from the same ones, and the same candidates in the end.

    Theirs takes one window at a time; ours several, of which none has more to choose from because another one is not done.
    """
    assume(beam_size * (patience or 1) > 0.5)
    rng = np.random.default_rng(seed)
    asked, told = list[list[list[int]]](), list[list[int]]()
    ours = BeamSearchDecoder(beam_size, EOT, lambda sources: asked.append(sources.tolist()), patience)
    inference: Any = SimpleNamespace(rearrange_kv_cache=told.append)
    theirs = [whisper.decoding.BeamSearchDecoder(beam_size, EOT, inference, patience) for _ in range(n_audio)]
    tokens, sums = np.tile([[1, 2]], (n_audio * beam_size, 1)), np.zeros(n_audio * beam_size)
    their_tokens = [torch.tensor([[1, 2]] * beam_size) for _ in range(n_audio)]
    their_sums, their_ends = [torch.zeros(beam_size) for _ in range(n_audio)], [False] * n_audio
    for step in range(n_steps):
        logits = rng.standard_normal((n_audio * beam_size, N_VOCAB)).astype(np.float32)
        logits[:, EOT] += ending
        if step == 0:  # all of a window's sequences are one
            logits = np.repeat(logits[::beam_size], beam_size, axis=0)
        tokens, ended = ours.update(tokens, logits, sums)
        for i in range(n_audio):
            if their_ends[i]:
                continue
            group = slice(i * beam_size, (i + 1) * beam_size)
            their_tokens[i], their_ends[i] = theirs[i].update(
                their_tokens[i], torch.from_numpy(logits[group]), their_sums[i]
            )
            assert tokens[group].tolist() == their_tokens[i].tolist()
            assert np.allclose(
                sums[group], their_sums[i].numpy(), atol=1e-5
            )  # theirs are added up in float32, u = 6e-8
            if step > 0:  # at first it is all the same from which
                assert asked[-1][i] == told[-1]
        assert ended == all(their_ends)
        if ended:
            break
    shape = (n_audio, beam_size, -1)
    candidates = ours.finalize(tokens.reshape(shape), sums.reshape(shape[:2]), sample_begin=2)
    for i, mine in enumerate(candidates):
        (others,), (totals,) = theirs[i].finalize(their_tokens[i][None], their_sums[i][None])
        assert [[1, 2, *candidate.tokens, EOT] for candidate in mine] == [other.tolist() for other in others]
        assert np.allclose([candidate.sum_logprob for candidate in mine], totals, atol=1e-5)  # in float32, too


def test_none_is_taken_twice_though_all_others_are_forbidden() -> None:
    logits = np.full((2, 9), -np.inf, np.float32)
    logits[0, 5], logits[1, [2, 0]] = 1, [3, 4]
    assert top_k(logits, 4).tolist() == [[5, 0, 1, 2], [0, 2, 1, 3]]


def test_the_graph_finds_what_the_filters_allow(tiny_en: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step in NumPy the same sequences come out."""
    if not tiny_en.model.searches_in_graph:
        pytest.skip("it is NumPy that searches there")
    mel = np.stack(
        [pad_or_trim(log_mel_spectrogram(packaged_clips()[name].samples), N_FRAMES) for name in ("beckett", ENGLISH)]
    )
    audio = tiny_en.model.embed_audio(mel)
    for options in ({}, {"without_timestamps": True}, {"temperature": 0.5}, {"suppress_tokens": None, "sample_len": 9}):
        with monkeypatch.context() as patch:
            patch.setattr(Whisper, "searches_in_graph", property(lambda model: False))
            slow = decode(tiny_en.model, audio, beam_size=5, **options)
        fast = decode(tiny_en.model, audio, beam_size=5, **options)
        assert isinstance(fast, list) and isinstance(slow, list)
        for a, b in zip(fast, slow, strict=True):
            assert a.tokens == b.tokens
            assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=SUM_ERROR)


def decoded(trio: Trio, mel: np.ndarray, **options: Any) -> list[tuple[Any, Any]]:
    """Our results on windows [n_audio, n_mels, 3000] together, and OpenAI Whisper's, which takes them one by one only."""
    ours = decode(trio.model, mel, **options)
    assert isinstance(ours, list)
    their_options = whisper.DecodingOptions(**options, fp16=False)
    return [
        (result, trio.judge.decode(torch.from_numpy(window), their_options))
        for result, window in zip(ours, mel, strict=True)
    ]


def assert_same(ours: DecodingResult, theirs: Any) -> None:
    assert ours.tokens == theirs.tokens
    assert ours.text == theirs.text
    assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=CLOSE_FIELDS["avg_logprob"])


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
def test_windows_together(tiny_en: Trio, options: dict[str, Any]) -> None:
    """A person who speaks, and one who counts, at once."""
    clips = packaged_clips()
    mel = np.stack([pad_or_trim(log_mel_spectrogram(clips[name].samples), N_FRAMES) for name in ("beckett", ENGLISH)])
    for ours, theirs in decoded(tiny_en, mel, language="en", **options):
        assert_same(ours, theirs)


ENGLISH = next(name for name, clip in packaged_clips().items() if clip.language == "en" and name != "beckett")


@pytest.mark.parametrize("name", [name for name in packaged_clips() if name != "beckett"][::4])
def test_other_languages(base: Trio, name: str) -> None:
    clip = packaged_clips()[name]
    mel = pad_or_trim(log_mel_spectrogram(clip.samples), N_FRAMES)[None]
    ((ours, theirs),) = decoded(base, mel, beam_size=5, language=clip.language)
    assert_same(ours, theirs)


def test_several_windows(tiny_en: Trio) -> None:
    samples = english_speech()
    options: dict[str, Any] = {"beam_size": 5, "temperature": 0.0, "language": "en"}
    ours: Any = transcribe(tiny_en.model, samples, **options)
    theirs = whisper.transcribe(tiny_en.judge, samples, fp16=False, **options)
    for a, b in zip(ours["segments"], theirs["segments"], strict=True):
        assert {name: a[name] for name in EQUAL_FIELDS} == {name: b[name] for name in EQUAL_FIELDS}
        assert all(a[name] == pytest.approx(b[name], abs=off) for name, off in CLOSE_FIELDS.items())
    assert ours["text"] == theirs["text"]
