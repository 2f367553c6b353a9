"""Mistakes in beam search, carried prompts and word timing, which show only with these options."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maxwhisper.checkpoint.alignment_heads import upper_half_heads
from maxwhisper.decoding.search import softmax
from tests.faults.plant import Fault, instead

BEAMS = {"beam_size": 5}
WORDS = {"word_timestamps": True}
CARRIED = {"initial_prompt": "Two people talk.", "carry_initial_prompt": True}


def not_rearranged(original: Any) -> Any:
    """Leave the KV cache in place when beams are reordered."""
    return lambda decoder, sources: None


def sums_from_the_first(original: Any) -> Any:
    """Leave the sums of log probabilities in place when beams are reordered."""

    def follow(
        search: Any, tokens: np.ndarray, likeliest: np.ndarray, logprobs: np.ndarray, sum_logprobs: np.ndarray
    ) -> Any:
        before = sum_logprobs.copy()
        result = original(search, tokens, likeliest, logprobs, sum_logprobs)
        sum_logprobs[:] = before + logprobs[:, 0]
        return result

    return follow


def end_with_first_beam(original: Any) -> Any:
    """End the search when one of the beams has ended."""

    def init(search: Any, *arguments: Any) -> None:
        original(search, *arguments)
        search.max_candidates = 1

    return init


def not_length_normalized(original: Any) -> Any:
    """Choose the candidate of the largest total log probability, whatever its length."""

    def best(task: Any, language: str, candidates: Any, no_speech_prob: float) -> Any:
        return original(task, language, [max(candidates, key=lambda candidate: candidate.sum_logprob)], no_speech_prob)

    return best


def prompt_not_carried(original: Any) -> Any:
    """Use only the previous tokens as a prompt, without the initial prompt."""
    return lambda transcription: list(transcription.previous_tokens)


def wrong_heads(original: Any) -> Any:
    """Use all heads of the upper half of the layers for alignment."""

    def alignment(decoder: Any, tokens: np.ndarray, rows: Any, heads: Any) -> Any:
        dims = decoder._runtime.dims
        return original(decoder, tokens, rows, upper_half_heads(dims.n_text_layer, dims.n_text_head))

    return alignment


def softmax_with_padding(original: Any) -> Any:
    """Compute softmax over the padding after the audio, too."""
    return lambda scores, n_frames: softmax(scores)[..., : max(1, n_frames // 2)]


def standardized_over_frames(original: Any) -> Any:
    """Standardize the weights of each token instead of each frame."""
    return lambda weights: np.ascontiguousarray(original(weights.swapaxes(-1, -2)).swapaxes(-1, -2))


def fault(
    options: Mapping[str, Any], name: str, expected_culprit: str, origin: str, replaces: Mapping[str, Any]
) -> Fault:
    """Make a fault that shows with these options of transcription."""
    return Fault(name, expected_culprit, origin, replaces, options=options)


FAULTS = [
    fault(
        BEAMS,
        "beams that keep their own past",
        "transcribe.window.0.tokens",
        "a cache that is not rearranged when beams change places",
        {"engine.decoder.Decoder.rearrange": not_rearranged},
    ),
    fault(
        BEAMS,
        "sums left behind by beams",
        "decoding.step.0.beams",
        "scores indexed by beam instead of by the beam's source",
        {"decoding.search.BeamSearchDecoder.follow": sums_from_the_first},
    ),
    fault(
        BEAMS,
        "search over when one beam is",
        "decoding.candidates",
        "patience taken for a number of sequences",
        {"decoding.search.BeamSearchDecoder.__init__": end_with_first_beam},
    ),
    fault(
        BEAMS,
        "candidates not compared for their length",
        "decoding.rank",
        "length_penalty=None read as no normalization",
        {"decoding.task.DecodingTask._best": not_length_normalized},
    ),
    fault(
        CARRIED,
        "a prompt that is not carried",
        "transcribe.window.0.prompt",
        "carry_initial_prompt parsed but never used",
        {"transcription.sequential._Transcription._prompt": prompt_not_carried},
    ),
    fault(
        WORDS,
        "words by the wrong heads",
        "words.scores",
        "a model loaded from a file, without its list of alignment heads",
        {"engine.decoder.Decoder.alignment": wrong_heads},
    ),
    fault(
        WORDS,
        "silence attended to",
        "words.weights",
        "softmax before the padding is cut off",
        {"transcription.timing.attention_weights": softmax_with_padding},
    ),
    fault(
        WORDS,
        "weights standardized over frames",
        "words.standardized",
        "an axis copied from code for a different layout",
        {"transcription.timing.standardized": standardized_over_frames},
    ),
    fault(
        WORDS,
        "no median filter",
        "words.filtered",
        "left out as cosmetic",
        {"transcription.timing.median_filter": instead(lambda x, width: x)},
    ),
    fault(
        WORDS,
        "the dearest way through the matrix",
        "words.path",
        "similarities passed to DTW as if they were costs",
        {"transcription.timing.dtw": lambda original: lambda x: original(-x)},
    ),
    fault(
        WORDS,
        "words timed by frames of 10 ms",
        "words.times",
        "spectrogram frames (10 ms) taken for encoder frames (20 ms)",
        {"transcription.timing.TOKENS_PER_SECOND": instead(100)},
    ),
    fault(
        WORDS,
        "punctuation that stands alone",
        "words.segments",
        "words as the tokenizer splits them",
        {"transcription.timing.merge_punctuations": instead(lambda alignment, prepended, appended: None)},
    ),
    fault(
        WORDS,
        "on by timestamps where words are timed",
        "transcribe.window.1.log_mel",
        "word timestamps added to a finished transcript",
        {"transcription.sequential.get_end": instead(lambda segments: None)},
    ),
]
