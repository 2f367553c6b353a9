"""Judgement of word timestamps, stage by stage.

Each stage is compared with OpenAI Whisper's result for the output of MAX's previous stage.
"""

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
from reference.parity.transcripts import AlignmentTrace
from reference.parity.window import MAX_RATIO

UPSTREAM: Any = importlib.import_module("whisper.timing")


def judge_words(trace: AlignmentTrace, openai: whisper.Whisper, truth: NumpyWhisper) -> Iterator[Stage]:
    """Judge the stages `words.…` of a window.

    They end at the first stage whose shape is wrong.

    Args:
        trace: MAX's alignment of the window.
        openai: OpenAI Whisper.
        truth: the model in float64.
    """
    alignment = trace.alignment
    scores = alignment.scores
    exact = _exact_scores(trace, openai, truth)
    error, peer = Error.of(scores, exact), Error.of(_openai_scores(trace, openai), exact)
    passes = error.rms <= MAX_RATIO * peer.rms
    yield Stage("words.scores", passes, f"rms error {error.rms:.3g}, OpenAI Whisper's {peer.rms:.3g}")

    audio_scores = scores[:, :, : max(1, alignment.window.n_frames // 2)]
    weights = alignment.weights
    if weights.shape != audio_scores.shape:
        yield Stage(
            "words.weights", False, f"shape {weights.shape} instead of {audio_scores.shape}, the scores of the audio"
        )
        return
    verdict = judge(TABLE["softmax"], "float32", [audio_scores[None]], [weights[None]]).actual
    yield Stage("words.weights", verdict.passes, str(verdict))

    standard = alignment.standardized
    std, mean = torch.std_mean(torch.from_numpy(weights), dim=-2, keepdim=True, unbiased=False)
    wide = weights.astype(np.float64)
    exact_standard = (wide - wide.mean(axis=-2, keepdims=True)) / wide.std(axis=-2, keepdims=True)
    error, peer = (
        Error.of(array, exact_standard) for array in (standard, ((torch.from_numpy(weights) - mean) / std).numpy())
    )
    yield Stage(
        "words.standardized",
        error.rms <= MAX_RATIO * peer.rms,
        f"rms error {error.rms:.3g}, OpenAI Whisper's {peer.rms:.3g}",
    )

    filtered = alignment.filtered
    same = np.array_equal(filtered, UPSTREAM.median_filter(torch.from_numpy(standard), 7).numpy())
    yield Stage("words.filtered", same, "" if same else "not the median of 7 frames")

    matrix, rows = alignment.matrix, slice(len(trace.tokenizer.sot_sequence), -1)
    mean_of_heads, size = (array.mean(axis=0, dtype=np.float64)[rows] for array in (filtered, np.abs(filtered)))
    fits = matrix.shape == mean_of_heads.shape and bool(
        (np.abs(matrix - mean_of_heads) <= len(filtered) * 2.0**-24 * size).all()
    )
    yield Stage(
        "words.matrix",
        fits,
        "" if fits else "not the mean over the heads, from the token before the text to its last token",
    )

    same = np.array_equal(alignment.path, UPSTREAM.dtw(torch.from_numpy(-matrix)))
    yield Stage("words.path", same, "" if same else "not the path of least cost through the matrix")

    logits = alignment.logits.astype(np.float64)
    probabilities = torch.from_numpy(logits).softmax(dim=-1).numpy()[np.arange(len(trace.text)), trace.text]
    # The error for logits up to 50 with u = 6e-8 is at most 5e-6 in all: a logarithm of their size,
    # a difference of that size, and a pairwise sum of 17 levels.
    error_max = float(np.abs(alignment.probabilities - probabilities).max())
    yield Stage(
        "words.probabilities", error_max <= 1e-5 and logits.shape[1] == trace.tokenizer.eot, f"off by {error_max:.2g}"
    )

    words, expected = [(w.word, w.start, w.end) for w in alignment.words], list(_times(trace, alignment.path))
    yield Stage("words.times", words == expected, "" if words == expected else f"{words}, OpenAI Whisper {expected}")
    if (assignment := trace.assignment) is not None:
        expected_segments = assigned_by_openai(
            assignment.segments,
            assignment.alignment,
            assignment.eot,
            assignment.punctuations,
            assignment.last_speech_timestamp,
        )
        same = assignment.result == expected_segments
        yield Stage("words.segments", same, "" if same else f"{assignment.result}, OpenAI Whisper {expected_segments}")


def assigned_by_openai(
    segments: list[Any], alignment: list[Any], eot: int, punctuations: tuple[str, str], last_speech_timestamp: float
) -> list[Any]:
    """Return OpenAI Whisper's segments for the arguments of `timing.assign_words`."""
    segments, timings = deepcopy(segments), [UPSTREAM.WordTiming(**vars(deepcopy(timing))) for timing in alignment]
    prepended, appended = punctuations
    with mock.patch.object(UPSTREAM, "find_alignment", return_value=timings):
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


def _exact_scores(trace: AlignmentTrace, openai: whisper.Whisper, truth: NumpyWhisper) -> np.ndarray:
    """Return the attention scores of the alignment heads in float64: [n_heads, n, n_audio_ctx]."""
    flow = whisper_flow.cross_kv(truth.dims) | whisper_flow.decoder(truth.dims, fused=True)
    activations = truth.evaluate(
        flow, {"encoder.ln_post": trace.alignment.features.astype(np.float64), **decoder_inputs(trace.tokens)}
    )
    head_dim = truth.dims.n_text_state // truth.dims.n_text_head

    def scores(layer: int, head: int) -> np.ndarray:
        channels = slice(head * head_dim, (head + 1) * head_dim)
        q, k = (activations[f"decoder.blocks.{layer}.cross_attn.{name}"][0, :, channels] for name in ("query", "key"))
        return q @ k.T / np.sqrt(head_dim)

    return np.stack([scores(*head) for head in openai.alignment_heads.indices().T.tolist()])


def _openai_scores(trace: AlignmentTrace, openai: whisper.Whisper) -> np.ndarray:
    """Return the scores of the alignment heads that `whisper.timing.find_alignment` uses."""
    scores: dict[int, torch.Tensor] = {}
    hooks = [
        block.cross_attn.register_forward_hook(lambda _, inputs, outputs, i=i: scores.update({i: outputs[-1][0]}))
        for i, block in enumerate(openai.decoder.blocks)
    ]
    with torch.no_grad(), disable_sdpa():
        openai.decoder(torch.from_numpy(trace.tokens), torch.from_numpy(trace.alignment.features))
    for hook in hooks:
        hook.remove()
    return np.stack([scores[layer][head].numpy() for layer, head in openai.alignment_heads.indices().T.tolist()])


def _times(trace: AlignmentTrace, path: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """Yield each word with its begin and end in seconds, as `find_alignment` of whisper does."""
    words, word_tokens = trace.tokenizer.split_to_word_tokens([*trace.text, trace.tokenizer.eot])
    frames = [path[1][np.argmax(path[0] == token)] for token in range(len(trace.text) + 1)]
    begin = 0
    for word, tokens in zip(words, word_tokens[:-1]):
        yield word, frames[begin] / UPSTREAM.TOKENS_PER_SECOND, frames[begin + len(tokens)] / UPSTREAM.TOKENS_PER_SECOND
        begin += len(tokens)
