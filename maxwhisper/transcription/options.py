"""The options of a transcription, checked when they are created."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from maxwhisper.audio import check_track
from maxwhisper.decoding.options import DecodingOptions, fallback_options
from maxwhisper.errors import OptionError
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import Clip, clips_of
from maxwhisper.transcription.silence import VadOptions


@dataclass(frozen=True)
class TranscriptionOptions:
    """Options of a transcription, those of `maxwhisper.iter_segments`.

    Raises:
        OptionError: A value, or a combination of values, can't be used.
    """

    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    carry_initial_prompt: bool = False
    word_timestamps: bool = False
    prepend_punctuations: str = PREPEND_PUNCTUATIONS
    append_punctuations: str = APPEND_PUNCTUATIONS
    clip_timestamps: str | Sequence[float] = "0"
    hallucination_silence_threshold: float | None = None
    hotwords: str | None = None
    multilingual: bool = False
    language_detection_segments: int = 1
    language_detection_threshold: float = 0.5
    vad_filter: bool = False
    vad_parameters: object = None
    audio_track: int | None = None
    decode_options: Mapping[str, Any] = field(default_factory=dict)  # fields of `DecodingOptions`

    def __post_init__(self) -> None:
        _ = self.fallback_options, self.clips, self.vad  # each raises OptionError if a value can't be used
        check_track(self.audio_track)
        silence = self.hallucination_silence_threshold
        if silence is not None and not silence >= 0:
            raise OptionError(f"hallucination_silence_threshold {silence} is not 0 or more")
        if self.language_detection_segments < 1:
            raise OptionError(f"language_detection_segments {self.language_detection_segments} is less than 1")

    @classmethod
    def of(cls, **options: Any) -> "TranscriptionOptions":
        """Make options from keywords, the fields of `DecodingOptions` among them."""
        own = {field.name for field in fields(cls)} & options.keys()
        decode_options = {name: value for name, value in options.items() if name not in own}
        return cls(**{name: options[name] for name in own}, decode_options=decode_options)

    @cached_property
    def fallback_options(self) -> Sequence[DecodingOptions]:
        """The decoding options of each attempt at a window, one for each temperature."""
        return fallback_options(self.temperature, self.decode_options)

    @cached_property
    def clips(self) -> Sequence[Clip]:
        """Start and end, in seconds, of each part of a recording that is to be transcribed."""
        return clips_of(self.clip_timestamps)

    @cached_property
    def vad(self) -> VadOptions | None:
        """The options of voice activity detection; None without it."""
        return VadOptions.of(self.vad_parameters) if self.vad_filter else None

    @property
    def task(self) -> str:
        """The task, "transcribe" or "translate"."""
        return self.fallback_options[0].task

    @property
    def language(self) -> str | None:
        """The language, by code or name; None if it is to be detected."""
        return self.fallback_options[0].language

    @property
    def punctuations(self) -> tuple[str, str]:
        """The marks to join to the word after them, and those to join to the word before them."""
        return self.prepend_punctuations, self.append_punctuations
