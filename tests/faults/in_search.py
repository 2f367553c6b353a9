"""Mistakes in beam search, in prompts that are carried, and in the timing of words: what shows only with such options."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maxwhisper.checkpoint.alignment_heads import upper_half_heads
from maxwhisper.decoding.search import softmax
from tests.faults.plant import Fault, instead

BEAMS = {"beam_size": 5}
WORDS = {"word_timestamps": True}
CARRIED = {"initial_prompt": "Two people talk.", "carry_initial_prompt": True}


def not_rearranged(right: Any) -> Any:
    """Each sequence goes on from what it saw itself."""
    return lambda decoder, sources: None


def sums_from_the_first(right: Any) -> Any:
    """Beams that change places leave the sums of their likelihoods behind."""

    def follow(
        search: Any, tokens: np.ndarray, likeliest: np.ndarray, logprobs: np.ndarray, sum_logprobs: np.ndarray
    ) -> Any:
        before = sum_logprobs.copy()
        found = right(search, tokens, likeliest, logprobs, sum_logprobs)
        sum_logprobs[:] = before + logprobs[:, 0]
        return found

    return follow


def over_when_one_is(right: Any) -> Any:
    """The search is over when one of the sequences has ended."""

    def init(search: Any, *arguments: Any) -> None:
        right(search, *arguments)
        search.max_candidates = 1

    return init


def unnormalised(right: Any) -> Any:
    """The likeliest of all candidates, be it the shortest."""

    def best(task: Any, language: str, candidates: Any, no_speech_prob: float) -> Any:
        return right(task, language, [max(candidates, key=lambda candidate: candidate.sum_logprob)], no_speech_prob)

    return best


def forgotten(right: Any) -> Any:
    """Only what was said before is a prompt."""
    return lambda transcription: list(transcription.previous_tokens)


def other_heads(right: Any) -> Any:
    """All heads of the upper half of the layers."""

    def alignment(decoder: Any, tokens: np.ndarray, rows: Any, heads: Any) -> Any:
        dims = decoder._runtime.dims
        return right(decoder, tokens, rows, upper_half_heads(dims.n_text_layer, dims.n_text_head))

    return alignment


def of_the_whole_window(right: Any) -> Any:
    """Attention to the silence behind the audio takes its share, too."""
    return lambda scores, n_frames: softmax(scores)[..., : max(1, n_frames // 2)]


def over_frames(right: Any) -> Any:
    """Each token's weights are standardized, not each frame's."""
    return lambda weights: np.ascontiguousarray(right(weights.swapaxes(-1, -2)).swapaxes(-1, -2))


def fault(options: Mapping[str, Any], name: str, blames: str, copies: str, replaces: Mapping[str, Any]) -> Fault:
    """One that shows with these options."""
    return Fault(name, blames, copies, replaces, options=options)


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
        "scores indexed by place instead of by where a beam came from",
        {"decoding.search.BeamSearchDecoder.follow": sums_from_the_first},
    ),
    fault(
        BEAMS,
        "search over when one beam is",
        "decoding.candidates",
        "patience taken for a number of sequences",
        {"decoding.search.BeamSearchDecoder.__init__": over_when_one_is},
    ),
    fault(
        BEAMS,
        "candidates not compared for their length",
        "decoding.rank",
        "length_penalty=None taken for none at all",
        {"decoding.task.DecodingTask._best": unnormalised},
    ),
    fault(
        CARRIED,
        "a prompt that is not carried",
        "transcribe.window.0.prompt",
        "carry_initial_prompt parsed and forgotten",
        {"transcription.sequential._Transcription._prompt": forgotten},
    ),
    fault(
        WORDS,
        "words by the wrong heads",
        "words.scores",
        "a model loaded from a file, whose alignment heads nobody names",
        {"engine.decoder.Decoder.alignment": other_heads},
    ),
    fault(
        WORDS,
        "silence attended to",
        "words.weights",
        "softmax before the padding is cut off",
        {"transcription.timing.attention_weights": of_the_whole_window},
    ),
    fault(
        WORDS,
        "weights standardized over frames",
        "words.standardized",
        "the axis counted in a tensor of another layout",
        {"transcription.timing.standardized": over_frames},
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
        "similarities warped as if they were costs",
        {"transcription.timing.dtw": lambda right: lambda x: right(-x)},
    ),
    fault(
        WORDS,
        "words timed by frames of 10 ms",
        "words.times",
        "frames of the spectrogram taken for the encoder's",
        {"transcription.timing.TOKENS_PER_SECOND": instead(100)},
    ),
    fault(
        WORDS,
        "punctuation that stands alone",
        "words.segments",
        "words shown as the tokenizer parts them",
        {"transcription.timing.merge_punctuations": instead(lambda alignment, prepended, appended: None)},
    ),
    fault(
        WORDS,
        "on by timestamps where words are timed",
        "transcribe.window.1.log_mel",
        "words added to a transcript that is there already",
        {"transcription.sequential.get_end": instead(lambda segments: None)},
    ),
]
