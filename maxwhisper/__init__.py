"""OpenAI's Whisper on MAX Graph.

>>> import maxwhisper
>>> model = maxwhisper.load_model("tiny.en")
>>> maxwhisper.transcribe(model, "speech.flac")["text"]
"""

from maxwhisper.interrupts import exit_quietly_during_imports

exit_quietly_during_imports()  # before the imports that take seconds

from importlib.metadata import version

from maxwhisper.audio import load_audio, log_mel_spectrogram, pad_or_trim
from maxwhisper.checkpoint import ModelDimensions, available_models
from maxwhisper.decoding import DecodingOptions, DecodingResult, decode, detect_language
from maxwhisper.engine.devices import set_num_threads
from maxwhisper.errors import (
    AudioError,
    AudioWarning,
    CheckpointError,
    CheckpointWarning,
    OptionError,
    OutputError,
    WhisperError,
    WhisperWarning,
)
from maxwhisper.transcribe import TranscriptionInfo, iter_segments, transcribe
from maxwhisper.transcription.batched import transcribe_batched
from maxwhisper.whisper import Whisper, load_model

__version__ = version("maxwhisper")

__all__ = [
    "AudioError",
    "AudioWarning",
    "CheckpointError",
    "CheckpointWarning",
    "DecodingOptions",
    "DecodingResult",
    "ModelDimensions",
    "OptionError",
    "OutputError",
    "TranscriptionInfo",
    "Whisper",
    "WhisperError",
    "WhisperWarning",
    "available_models",
    "decode",
    "detect_language",
    "iter_segments",
    "load_audio",
    "load_model",
    "log_mel_spectrogram",
    "pad_or_trim",
    "set_num_threads",
    "transcribe",
    "transcribe_batched",
]
