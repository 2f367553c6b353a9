"""The references are correct, and comparisons with them detect any difference."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maxwhisper import log_mel_spectrogram, pad_or_trim
from maxwhisper.audio import N_FRAMES
from reference.clips import packaged_clips
from reference.golden.transcripts import recall, transcript_cases
from reference.models.openai import in_float64, reordered
from reference.numerics import definitions as define
from reference.ops import TABLE
from reference.ops.float64_error import apart, may_lose
from reference.parity.observe import transcribe_with_max, transcribe_with_openai
from reference.parity.transcripts import TokenDifference, Transcription, Window, compare, differences
from tests.support.implementations import Implementations

# With random rounding errors in all parts, as in `reference.ops.float64_error`, these features and
# logits change by at most 1.1e-12. The tolerance is eight times that for each side.
FLOAT64_TOLERANCE = 2 * 8 * 1.1e-12


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def as_torch(*arrays: np.ndarray) -> Any:
    return tuple(map(torch.from_numpy, arrays))


def test_definitions_are_pytorchs_in_float64() -> None:
    x, weight, bias = random(2, 7, 12), random(5, 12), random(5)
    scale, shift = random(12), random(12) + 1
    kernel = random(5, 12, 3)
    q, k, v = random(2, 3, 7, 4), random(2, 3, 9, 4), random(2, 3, 9, 4)
    torch_x, torch_kernel, torch_bias = as_torch(x, kernel, bias)
    torch_q, torch_k, torch_v = as_torch(q, k[:, :, :7], v[:, :, :7])
    cases = {
        "layer_norm": ((x, scale, shift), F.layer_norm(torch_x, (12,), *as_torch(scale, shift))),
        "linear": ((x, weight, bias), F.linear(*as_torch(x, weight, bias))),
        "gelu": ((5 * x,), F.gelu(5 * torch_x)),
        "softmax": ((9 * x,), (9 * torch_x).softmax(-1)),
        "attention": ((q, k, v), F.scaled_dot_product_attention(*as_torch(q, k, v))),
        "masked_attention": (
            (q, k[:, :, :7], v[:, :, :7], define.causal_mask(7)),
            F.scaled_dot_product_attention(torch_q, torch_k, torch_v, is_causal=True),
        ),
    }
    for stride in (1, 2):
        pytorch = F.conv1d(torch_x.mT, torch_kernel, torch_bias, stride=stride, padding=1).mT
        cases[f"conv1d_stride{stride}"] = ((x, kernel, bias), pytorch)
    for name, (inputs, pytorch) in cases.items():
        assert apart(TABLE[name].define(*inputs), pytorch.numpy(), may_lose(TABLE[name], inputs)) <= 1, name


def test_the_float64_model_is_openais(tiny_en: Implementations) -> None:
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)[None].astype(np.float64)
    tokens = np.array([[50257, 50363, 1675, 262]])
    features = tiny_en.float64.encoder(mel)
    with torch.no_grad(), in_float64(tiny_en.openai) as openai:
        assert abs(openai.encoder(torch.from_numpy(mel)).numpy() - features).max() < FLOAT64_TOLERANCE
        assert (
            abs(openai(*as_torch(mel, tokens)).numpy() - tiny_en.float64.decoder(tokens, features)).max()
            < FLOAT64_TOLERANCE
        )
    assert tiny_en.openai.decoder.ln.weight.dtype == torch.float32


def test_a_reordered_model_computes_the_same_and_rounds_differently(tiny_en: Implementations) -> None:
    mel = torch.from_numpy(pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)[None])
    tokens = torch.tensor([[50257, 50363, 1675]])
    other, order = reordered(tiny_en.openai, seed=0)
    with torch.no_grad():
        features, other_features = tiny_en.openai.encoder(mel)[..., order], other.encoder(mel)
        logits, other_logits = tiny_en.openai(mel, tokens), other(mel, tokens)
    for a, b in ((features, other_features), (logits, other_logits)):
        assert 0 < abs(a - b).max() < 1e-3 * abs(a).max()


@pytest.fixture(scope="module")
def transcriptions(tiny_en: Implementations) -> tuple[Transcription, Transcription]:
    samples = packaged_clips()["beckett"].samples
    return transcribe_with_max(tiny_en.model, samples, temperature=0), transcribe_with_openai(
        tiny_en.openai, samples, temperature=0
    )


def edit(transcription: Transcription, change: str) -> Transcription:
    """Return a copy of a transcription with one change."""
    changed = copy.deepcopy(transcription)
    segment = changed.result["segments"][0]
    if change == "whole text":
        changed.result["text"] += "!"
    elif change == "text":
        segment["text"] += "!"
    elif change == "window prompt":
        changed.windows[0].initial_tokens.append(1)
    elif change == "window lost":
        changed.windows.pop()
    elif change == "tokens":
        segment["tokens"].append(1)
    elif change == "language":
        changed.result["language"] = "fr"
    elif change == "segment lost":
        changed.result["segments"].pop()
    elif change == "field lost":
        del segment["seek"]
    elif change == "nan":
        segment["avg_logprob"] = np.nan
    elif change in ("avg_logprob", "compression_ratio", "no_speech_prob"):
        segment[change] += 2e-3
    elif change == "window token":
        changed.windows[0].tokens[3] += 1
    else:
        segment[change] += 1
    return changed


CHANGES = [
    *(
        "whole text",
        "language",
        "segment lost",
        "field lost",
        "nan",
        "avg_logprob",
        "compression_ratio",
        "no_speech_prob",
    ),
    *("tokens", "text", "start", "end", "seek", "temperature", "id", "window prompt", "window lost"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_transcript_is_a_difference(change: str, transcriptions: Any, tiny_en: Implementations) -> None:
    actual, openai = transcriptions
    assert compare(actual, openai, tiny_en.model, tiny_en.openai, tiny_en.float64).is_equal
    comparison = compare(edit(actual, change), openai, tiny_en.model, tiny_en.openai, tiny_en.float64)
    assert not comparison.passes
    assert len(comparison.differences) == 1


def test_a_wrong_token_is_found_with_its_margin_and_errors(transcriptions: Any, tiny_en: Implementations) -> None:
    actual, openai = transcriptions
    comparison = compare(edit(actual, "window token"), openai, tiny_en.model, tiny_en.openai, tiny_en.float64)
    difference = comparison.token_difference
    assert difference is not None
    assert (difference.window, difference.step, difference.token_max) == (0, 3, openai.windows[0].tokens[3] + 1)
    assert difference.margin > 0.1
    assert difference.error_max < 1e-3
    assert difference.error_openai < 1e-3
    assert not comparison.passes


@pytest.mark.parametrize(("margin", "is_rounding"), [(0.9e-5, True), (1.1e-5, False), (0.0, True), (np.nan, False)])
def test_rounding_explains_only_margins_below_both_errors(margin: float, is_rounding: bool) -> None:
    assert (
        TokenDifference(0, 0, 1, 2, {"float64": (margin, 0.0)}, error_max=6e-6, error_openai=4e-6).is_rounding
        is is_rounding
    )


def test_rounding_explains_nothing_if_the_error_of_max_is_an_outlier() -> None:
    assert not TokenDifference(0, 0, 1, 2, {"float64": (1e-6, 0.0)}, error_max=4.1e-6, error_openai=1e-6).is_rounding


@pytest.mark.parametrize(("change", "passes"), [("whole text", True), ("language", False), ("avg_logprob", False)])
def test_rounding_excuses_only_differences_after_it(
    change: str, passes: bool, transcriptions: Any, tiny_en: Implementations
) -> None:
    actual, openai = transcriptions
    comparison = compare(edit(actual, change), openai, tiny_en.model, tiny_en.openai, tiny_en.float64)
    comparison.token_difference = TokenDifference(0, 0, 1, 2, {"float64": (1e-6, 0.0)}, 1e-6, 1e-6)
    assert comparison.passes is passes


def test_windows_hold_the_decoded_tokens(transcriptions: Any) -> None:
    actual, openai = transcriptions
    for a, b in zip(actual.windows, openai.windows, strict=True):
        assert isinstance(a, Window)
        assert (a.initial_tokens, a.tokens, a.temperature) == (b.initial_tokens, b.tokens, b.temperature)
    assert actual.windows[0].tokens


def test_stored_transcripts_are_recalled_only_for_the_same_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = transcript_cases()["es/conteo translate"]
    stored = recall(case)
    assert stored is not None
    assert stored.result["language"] == "es"
    for changed in (
        replace(case, model="tiny"),
        replace(case, options=case.options | {"task": "transcribe"}),
        replace(case, clips=("beckett",)),
    ):
        assert recall(changed) is None


def test_every_change_of_a_window_is_a_difference(transcriptions: Any) -> None:
    actual, openai = transcriptions
    assert differences(actual, openai) == []
    first = openai.windows[0]
    for window in (
        replace(first, temperature=0.4),
        replace(first, tokens=first.tokens[:-1]),
        replace(first, initial_tokens=[]),
    ):
        assert len(differences(actual, Transcription(openai.result, [window, *openai.windows[1:]]))) == 1
    assert len(differences(actual, Transcription(openai.result, [*openai.windows, first]))) == 1
    assert len(differences(actual, Transcription(openai.result | {"language": "de"}, openai.windows))) == 1
