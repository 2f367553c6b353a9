"""The interface of a model that decoding and transcription use; `maxwhisper.Whisper` has it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from maxwhisper.audio import Audio
from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.engine.decoder import AudioFeatures, TokenRules


class SpeechDecoder(Protocol):
    """A decoder with a KV cache; `maxwhisper.engine.decoder.Decoder` documents the methods."""

    n_past: int  # number of cached tokens of each sequence

    def logits(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray: ...

    def alignment(
        self, tokens: np.ndarray, rows: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def rearrange(self, sources: np.ndarray) -> None: ...

    def greedy(self, tokens: np.ndarray, sum_logprobs: np.ndarray, rules: TokenRules, end: int) -> np.ndarray: ...

    def top_k_tokens(self, tokens: np.ndarray, rules: TokenRules) -> tuple[np.ndarray, np.ndarray]: ...


class SpeechModel(Protocol):
    """A model that encodes and decodes windows; `maxwhisper.Whisper` documents the methods."""

    @property
    def dims(self) -> ModelDimensions: ...

    @property
    def alignment_heads(self) -> Sequence[tuple[int, int]]: ...

    @property
    def is_multilingual(self) -> bool: ...

    @property
    def num_languages(self) -> int: ...

    @property
    def decodes_in_graph(self) -> bool: ...

    @property
    def searches_in_graph(self) -> bool: ...

    def log_mel_spectrogram(self, audio: Audio, padding: int = 0) -> np.ndarray: ...

    def embed_audio(self, mel: np.ndarray) -> AudioFeatures: ...

    def decoder(self, audio: AudioFeatures, n_group: int = 1) -> SpeechDecoder: ...
