"""From logits to tokens and text; with the names that programs import from `whisper.decoding`."""

from maxwhisper.decoding.language import detect_language
from maxwhisper.decoding.options import DecodingOptions, DecodingResult
from maxwhisper.decoding.rules import ApplyTimestampRules, LogitFilter, SuppressBlank, SuppressTokens
from maxwhisper.decoding.search import BeamSearchDecoder, GreedyDecoder
from maxwhisper.decoding.task import DecodingTask, decode

__all__ = [
    "ApplyTimestampRules",
    "BeamSearchDecoder",
    "DecodingOptions",
    "DecodingResult",
    "DecodingTask",
    "GreedyDecoder",
    "LogitFilter",
    "SuppressBlank",
    "SuppressTokens",
    "decode",
    "detect_language",
]
