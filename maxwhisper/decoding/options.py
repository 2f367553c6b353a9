"""The options and the result of decoding a window, as in OpenAI Whisper's `decoding.py`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maxwhisper.errors import OptionError


@dataclass(frozen=True)
class DecodingOptions:
    """Options of decoding a window, as `whisper.DecodingOptions`.

    Raises:
        OptionError: A value, or a combination of values, can't be used.
    """

    task: str = "transcribe"  # or "translate" to English, or "lang_id" to name the language alone
    language: str | None = None  # detected if None
    temperature: float = 0.0  # 0 takes the most probable token; above 0, tokens are sampled
    sample_len: int | None = None  # the most tokens to decode; half the context by default
    best_of: int | None = None  # independent samples to choose from, if temperature > 0
    beam_size: int | None = None  # the number of beams of beam search, at any temperature
    # Beam search ends after `beam_size * patience` finished sequences (Kasai et al., 2022); None
    # means 1.
    patience: float | None = None
    length_penalty: float | None = None  # Google NMT's alpha; None divides by the length
    prompt: str | list[int] | None = None  # text or tokens before the window
    prefix: str | list[int] | None = None  # text or tokens that the window's transcript starts with
    suppress_tokens: str | Iterable[int] | None = "-1"  # token ids, or a comma-separated text; -1: non-speech symbols
    suppress_blank: bool = True  # forbid a blank or the end of text as the first token
    without_timestamps: bool = False  # decode text only
    max_initial_timestamp: float | None = 1.0  # the latest first timestamp, in seconds; None or 0 allow any
    fp16: bool = True  # accepted for compatibility and ignored: a model computes in its `compute_type`

    def __post_init__(self) -> None:
        if self.beam_size is not None and self.beam_size < 1:
            raise OptionError(f"beam_size {self.beam_size} follows no sequence; give 1 or more")
        if self.beam_size is not None and self.best_of is not None:
            raise OptionError("beam_size and best_of can't be used together: one searches, the other samples")
        if self.patience is not None and self.beam_size is None:
            raise OptionError("patience needs a beam_size: it sets how many finished sequences per beam end the search")
        if self.beam_size is not None and not 0.5 < self.beam_size * (self.patience or 1.0) < np.inf:
            raise OptionError(f"patience {self.patience} lets none of {self.beam_size} sequences end; give about 1")
        if not 0 <= self.temperature < np.inf:
            raise OptionError(f"temperature {self.temperature} is not 0 or more")
        if self.best_of is not None and self.best_of < 1:
            raise OptionError(f"best_of {self.best_of} leaves nothing to choose from; give 1 or more")
        if self.best_of is not None and self.temperature == 0:
            raise OptionError(
                "best_of needs a temperature above 0, because greedy decoding gives the same tokens each time"
            )
        if self.length_penalty is not None and not 0 <= self.length_penalty <= 1:
            raise OptionError(f"length_penalty {self.length_penalty} is not between 0 and 1")
        if self.sample_len is not None and self.sample_len < 1:
            raise OptionError(f"sample_len {self.sample_len} leaves no token to sample; give 1 or more")


@dataclass(frozen=True)
class DecodingResult:
    """The transcript of a window, as `whisper.DecodingResult` without audio features."""

    language: str
    language_probs: dict[str, float] | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    avg_logprob: float = np.nan
    no_speech_prob: float = np.nan
    temperature: float = np.nan
    compression_ratio: float = np.nan


def fallback_options(temperature: float | Sequence[float], decode_options: Mapping[str, Any]) -> list[DecodingOptions]:
    """Return the options of each attempt at a window, one for each temperature.

    Args:
        temperature: One temperature or several, in the order they are tried.
        decode_options: Fields of `DecodingOptions`. Beam search applies only at temperature 0,
            `best_of` only above it.

    Raises:
        OptionError: There is no temperature, or the options can't be used.
    """
    temperatures = np.atleast_1d(np.asarray(temperature, float)).tolist()
    if not temperatures:
        raise OptionError("no temperature is given to decode at; give one or several")
    without_sampling = {**decode_options, "best_of": None}
    with_sampling = {**decode_options, "beam_size": None, "patience": None}
    return [DecodingOptions(**(without_sampling if t == 0 else with_sampling), temperature=t) for t in temperatures]
