"""Judgement of how words are timed: each stage by what OpenAI Whisper makes of the output of the stage before it."""

import importlib
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import whisper
from whisper.model import disable_sdpa

from reference.flow import whisper as whisper_flow
from reference.models.float64 import NumpyWhisper, decoder_inputs
from reference.ops import TABLE
from reference.ops.judge import judge
from reference.parity.activations import Error
from reference.parity.stages import Stage
from reference.parity.transcripts import TimedWindow
from reference.parity.window import MAX_RATIO

UPSTREAM: Any = importlib.import_module("whisper.timing")


def judge_words(timed: TimedWindow, openai: whisper.Whisper, truth: NumpyWhisper) -> Iterator[Stage]:
    """Yield a stage `words.…` for each stage of timing words, up to the first whose shape can't be judged."""
    found = timed.alignment
    scores = found.scores
    exact = _exact_scores(timed, openai, truth)
    ours, peer = Error.of(scores, exact), Error.of(_openai_scores(timed, openai), exact)
    passes = ours.rms <= MAX_RATIO * peer.rms
    yield Stage("words.scores", passes, f"rms error {ours.rms:.3g}, OpenAI Whisper's {peer.rms:.3g}")

    seen = scores[:, :, : max(1, found.window.n_frames // 2)]
    weights = found.weights
    if weights.shape != seen.shape:
        yield Stage("words.weights", False, f"shape {weights.shape}, where {seen.shape} of the scores are of audio")
        return
    verdict = judge(TABLE["softmax"], "float32", [seen[None]], [weights[None]]).actual
    yield Stage("words.weights", verdict.passes, str(verdict))

    standard = found.standardized
    std, mean = torch.std_mean(torch.from_numpy(weights), dim=-2, keepdim=True, unbiased=False)
    wide = weights.astype(np.float64)
    exact_standard = (wide - wide.mean(axis=-2, keepdims=True)) / wide.std(axis=-2, keepdims=True)
    ours, peer = (
        Error.of(array, exact_standard) for array in (standard, ((torch.from_numpy(weights) - mean) / std).numpy())
    )
    yield Stage(
        "words.standardized",
        ours.rms <= MAX_RATIO * peer.rms,
        f"rms error {ours.rms:.3g}, OpenAI Whisper's {peer.rms:.3g}",
    )

    filtered = found.filtered
    same = np.array_equal(filtered, UPSTREAM.median_filter(torch.from_numpy(standard), 7).numpy())
    yield Stage("words.filtered", same, "" if same else "not the median of 7 frames")

    matrix, rows = found.matrix, slice(len(timed.tokenizer.sot_sequence), -1)
    mean_of_heads, size = (array.mean(axis=0, dtype=np.float64)[rows] for array in (filtered, np.abs(filtered)))
    fits = matrix.shape == mean_of_heads.shape and bool(
        (np.abs(matrix - mean_of_heads) <= len(filtered) * 2.0**-24 * size).all()
    )
    yield Stage(
        "words.matrix",
        fits,
        "" if fits else "not the mean of the heads, of the tokens from the one before the text to its last",
    )

    same = np.array_equal(found.path, UPSTREAM.dtw(torch.from_numpy(-matrix)))
    yield Stage("words.path", same, "" if same else "not the cheapest way through the matrix")

    logits = found.logits.astype(np.float64)
    probabilities = torch.from_numpy(logits).softmax(dim=-1).numpy()[np.arange(len(timed.text)), timed.text]
    # Of logits up to 50, by u = 6e-8: a logarithm of their size, a difference of it, and a sum in pairs of 17 levels, together 5e-6.
    off = float(np.abs(found.probabilities - probabilities).max())
    yield Stage("words.probabilities", off <= 1e-5 and logits.shape[1] == timed.tokenizer.eot, f"off by {off:.2g}")

    words, expected = [(w.word, w.start, w.end) for w in found.words], list(_times(timed, found.path))
    yield Stage("words.times", words == expected, "" if words == expected else f"{words}, OpenAI Whisper {expected}")
    if (given := timed.assignment) is not None:
        expected_segments = assigned_by_openai(
            given.segments, given.alignment, given.eot, given.punctuations, given.last_speech_timestamp
        )
        same = given.result == expected_segments
        yield Stage("words.segments", same, "" if same else f"{given.result}, OpenAI Whisper {expected_segments}")


def assigned_by_openai(
    segments: list[Any], alignment: list[Any], eot: int, punctuations: tuple[str, str], last_speech_timestamp: float
) -> list[Any]:
    """Return what OpenAI Whisper makes of the arguments of `maxwhisper.transcription.timing.assign_words`."""
    segments, theirs = deepcopy(segments), [UPSTREAM.WordTiming(**vars(deepcopy(timing))) for timing in alignment]
    prepended, appended = punctuations
    with mock.patch.object(UPSTREAM, "find_alignment", return_value=theirs):
        UPSTREAM.add_word_timestamps(
            segments=segments,
            model=None,
            tokenizer=SimpleNamespace(eot=eot),
            mel=None,
            num_frames=0,  # not used
            prepend_punctuations=prepended,
            append_punctuations=appended,
            last_speech_timestamp=last_speech_timestamp,
        )
    return segments


def _exact_scores(timed: TimedWindow, openai: whisper.Whisper, truth: NumpyWhisper) -> np.ndarray:
    """In float64, of the heads that OpenAI Whisper takes: [n_heads, n, n_audio_ctx]."""
    flow = whisper_flow.cross_kv(truth.dims) | whisper_flow.decoder(truth.dims, fused=True)
    known = truth.evaluate(
        flow, {"encoder.ln_post": timed.alignment.features.astype(np.float64), **decoder_inputs(timed.tokens)}
    )
    head_dim = truth.dims.n_text_state // truth.dims.n_text_head

    def of(layer: int, head: int) -> np.ndarray:
        here = slice(head * head_dim, (head + 1) * head_dim)
        q, k = (known[f"decoder.blocks.{layer}.cross_attn.{name}"][0, :, here] for name in ("query", "key"))
        return q @ k.T / np.sqrt(head_dim)

    return np.stack([of(*head) for head in openai.alignment_heads.indices().T.tolist()])


def _openai_scores(timed: TimedWindow, openai: whisper.Whisper) -> np.ndarray:
    """As `whisper.timing.find_alignment` gets them."""
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        block.cross_attn.register_forward_hook(lambda _, inputs, outputs, i=i: seen.update({i: outputs[-1][0]}))
        for i, block in enumerate(openai.decoder.blocks)
    ]
    with torch.no_grad(), disable_sdpa():
        openai.decoder(torch.from_numpy(timed.tokens), torch.from_numpy(timed.alignment.features))
    for hook in hooks:
        hook.remove()
    return np.stack([seen[layer][head].numpy() for layer, head in openai.alignment_heads.indices().T.tolist()])


def _times(timed: TimedWindow, path: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """Words, and when they begin and end, by whisper's tokenizer and the arithmetic of its `find_alignment`."""
    words, word_tokens = timed.tokenizer.split_to_word_tokens([*timed.text, timed.tokenizer.eot])
    frames = [path[1][np.argmax(path[0] == token)] for token in range(len(timed.text) + 1)]
    begin = 0
    for word, tokens in zip(words, word_tokens[:-1]):
        yield word, frames[begin] / UPSTREAM.TOKENS_PER_SECOND, frames[begin + len(tokens)] / UPSTREAM.TOKENS_PER_SECOND
        begin += len(tokens)
