"""How words are timed, step by step: each judged on what the step before it really gave, by what OpenAI Whisper makes of that."""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import whisper
from whisper.model import disable_sdpa

import maxwhisper
from reference.flow import whisper as whisper_flow
from reference.models.float64 import NumpyWhisper, decoder_inputs
from reference.ops import TABLE
from reference.ops.judge import judge
from reference.parity.activations import Error
from reference.parity.stages import Stage
from reference.parity.window import MAX_RATIO

STEPS = ("attention_weights", "standardized", "median_filter", "dtw", "token_probabilities", "words_along", "place_words")
UPSTREAM: Any = importlib.import_module("whisper.timing")


@dataclass
class Timed:
    """What `maxwhisper.transcription.timing` was given, and gave, at each of `STEPS`, for text in a window; nothing where there is no text.

    tokenizer: OpenAI Whisper's; features: the window's, as the decoder got them, [1, n_audio_ctx, n_audio_state].
    """

    tokenizer: Any
    text: list[int]
    n_frames: int
    features: np.ndarray
    given: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    gave: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> np.ndarray:
        """What the decoder should be fed, int64 [1, n]."""
        return np.array([[*self.tokenizer.sot_sequence, self.tokenizer.no_timestamps, *self.text, self.tokenizer.eot]])


@contextmanager
def watching_words() -> Iterator[list[Timed]]:
    """Until the end of the block, whose words are timed, one window at a time."""
    timing: Any = importlib.import_module("maxwhisper.transcription.timing")
    found, find_alignments = list[Timed](), timing.find_alignments

    def watched(name: str) -> Any:
        step = getattr(timing, name)

        def call(*arguments: Any) -> Any:
            found[-1].given[name] = deepcopy(arguments)  # words and segments are changed in place
            result = step(*arguments)
            found[-1].gave[name] = deepcopy(arguments[0] if result is None else result)
            return result

        return call

    def begin(model: maxwhisper.Whisper, windows: Any, audio: Any, **options: Any) -> Any:
        (spoken,) = windows
        ours = spoken.tokenizer
        theirs = whisper.tokenizer.get_tokenizer(
            model.is_multilingual, num_languages=model.num_languages, language=ours.language, task=ours.task
        )
        found.append(Timed(theirs, list(spoken.text_tokens), spoken.n_frames, np.asarray(audio)))
        return find_alignments(model, windows, audio, **options)

    with ExitStack() as stack:
        for name in STEPS:
            stack.enter_context(mock.patch.object(timing, name, watched(name)))
        stack.enter_context(mock.patch.object(timing, "find_alignments", begin))
        yield found


def judge_words(timed: Timed, openai: whisper.Whisper, truth: NumpyWhisper) -> Iterator[Stage]:
    """`words.…`, in the order they are computed, up to the first of a shape that can't be judged."""
    given, gave = timed.given, timed.gave
    if "words_along" not in gave:
        return
    scores = given["attention_weights"][0]
    exact = _exact_scores(timed, openai, truth)
    ours, peer = Error.of(scores, exact), Error.of(_openai_scores(timed, openai), exact)
    passes = ours.rms <= MAX_RATIO * peer.rms
    yield Stage("words.scores", passes, f"rms error {ours.rms:.3g}, OpenAI Whisper's {peer.rms:.3g}")

    seen = scores[:, :, : max(1, timed.n_frames // 2)]
    weights = gave["attention_weights"]
    if weights.shape != seen.shape:
        yield Stage("words.weights", False, f"shape {weights.shape}, where {seen.shape} of the scores are of audio")
        return
    verdict = judge(TABLE["softmax"], "float32", [seen[None]], [weights[None]]).actual
    yield Stage("words.weights", verdict.passes, str(verdict))

    standard = gave["standardized"]
    std, mean = torch.std_mean(torch.from_numpy(weights), dim=-2, keepdim=True, unbiased=False)
    wide = weights.astype(np.float64)
    exact_standard = (wide - wide.mean(axis=-2, keepdims=True)) / wide.std(axis=-2, keepdims=True)
    ours, peer = (Error.of(array, exact_standard) for array in (standard, ((torch.from_numpy(weights) - mean) / std).numpy()))
    yield Stage("words.standardized", ours.rms <= MAX_RATIO * peer.rms, f"rms error {ours.rms:.3g}, OpenAI Whisper's {peer.rms:.3g}")

    filtered = gave["median_filter"]
    same = np.array_equal(filtered, UPSTREAM.median_filter(torch.from_numpy(standard), 7).numpy())
    yield Stage("words.filtered", same, "" if same else "not the median of 7 frames")

    matrix, rows = -given["dtw"][0], slice(len(timed.tokenizer.sot_sequence), -1)
    mean_of_heads, size = (array.mean(axis=0, dtype=np.float64)[rows] for array in (filtered, np.abs(filtered)))
    fits = matrix.shape == mean_of_heads.shape and bool((np.abs(matrix - mean_of_heads) <= len(filtered) * 2.0**-24 * size).all())
    yield Stage("words.matrix", fits, "" if fits else "not the mean of the heads, of the tokens from the one before the text to its last")

    same = np.array_equal(gave["dtw"], UPSTREAM.dtw(torch.from_numpy(-matrix)))
    yield Stage("words.path", same, "" if same else "not the cheapest way through the matrix")

    logits = given["token_probabilities"][0].astype(np.float64)
    probabilities = torch.from_numpy(logits).softmax(dim=-1).numpy()[np.arange(len(timed.text)), timed.text]
    # Of logits up to 50, by u = 6e-8: a logarithm of their size, a difference of it, and a sum in pairs of 17 levels, together 5e-6.
    off = float(np.abs(gave["token_probabilities"] - probabilities).max())
    yield Stage("words.probabilities", off <= 1e-5 and logits.shape[1] == timed.tokenizer.eot, f"off by {off:.2g}")

    found, expected = [(w.word, w.start, w.end) for w in gave["words_along"]], list(_times(timed, gave["dtw"]))
    yield Stage("words.times", found == expected, "" if found == expected else f"{found}, OpenAI Whisper {expected}")
    if "place_words" in gave:
        expected_segments = placed_by_openai(*given["place_words"])
        same = gave["place_words"] == expected_segments
        yield Stage("words.segments", same, "" if same else f"{gave['place_words']}, OpenAI Whisper {expected_segments}")


def placed_by_openai(
    segments: list[dict[str, Any]], alignment: list[Any], eot: int, punctuations: tuple[str, str], last_speech_timestamp: float
) -> list[dict[str, Any]]:
    """What OpenAI Whisper makes of the arguments of `maxwhisper.transcription.timing.place_words`, which stay as they are."""
    segments, theirs = deepcopy(segments), [UPSTREAM.WordTiming(**vars(deepcopy(timing))) for timing in alignment]
    prepended, appended = punctuations
    with mock.patch.object(UPSTREAM, "find_alignment", return_value=theirs):
        UPSTREAM.add_word_timestamps(
            segments=segments,
            model=None,
            tokenizer=SimpleNamespace(eot=eot),
            mel=None,
            num_frames=0,  # nobody looks at it
            prepend_punctuations=prepended,
            append_punctuations=appended,
            last_speech_timestamp=last_speech_timestamp,
        )
    return segments


def _exact_scores(timed: Timed, openai: whisper.Whisper, truth: NumpyWhisper) -> np.ndarray:
    """In float64, of the heads that OpenAI Whisper takes: [n_heads, n, n_audio_ctx]."""
    flow = whisper_flow.cross_kv(truth.dims) | whisper_flow.decoder(truth.dims, fused=True)
    known = truth.evaluate(flow, {"encoder.ln_post": timed.features.astype(np.float64), **decoder_inputs(timed.tokens)})
    head_dim = truth.dims.n_text_state // truth.dims.n_text_head

    def of(layer: int, head: int) -> np.ndarray:
        here = slice(head * head_dim, (head + 1) * head_dim)
        q, k = (known[f"decoder.blocks.{layer}.cross_attn.{name}"][0, :, here] for name in ("query", "key"))
        return q @ k.T / np.sqrt(head_dim)

    return np.stack([of(*head) for head in openai.alignment_heads.indices().T.tolist()])


def _openai_scores(timed: Timed, openai: whisper.Whisper) -> np.ndarray:
    """As `whisper.timing.find_alignment` gets them."""
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        block.cross_attn.register_forward_hook(lambda _, inputs, outputs, i=i: seen.update({i: outputs[-1][0]}))
        for i, block in enumerate(openai.decoder.blocks)
    ]
    with torch.no_grad(), disable_sdpa():
        openai.decoder(torch.from_numpy(timed.tokens), torch.from_numpy(timed.features))
    for hook in hooks:
        hook.remove()
    return np.stack([seen[layer][head].numpy() for layer, head in openai.alignment_heads.indices().T.tolist()])


def _times(timed: Timed, path: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """Words, and when they begin and end, by whisper's tokenizer and the arithmetic of its `find_alignment`."""
    words, word_tokens = timed.tokenizer.split_to_word_tokens([*timed.text, timed.tokenizer.eot])
    frames = [path[1][np.argmax(path[0] == token)] for token in range(len(timed.text) + 1)]
    begin = 0
    for word, tokens in zip(words, word_tokens[:-1]):
        yield word, frames[begin] / UPSTREAM.TOKENS_PER_SECOND, frames[begin + len(tokens)] / UPSTREAM.TOKENS_PER_SECOND
        begin += len(tokens)
