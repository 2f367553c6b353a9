"""An interface for measuring what a transcription does in each window."""

from typing import Protocol

import numpy as np

from maxwhisper.decoding import DecodingResult
from maxwhisper.decoding.trace import DecodingTrace
from maxwhisper.transcription.timing import TimingTrace


class Trace(TimingTrace, Protocol):
    """Receives intermediate results of a transcription.

    Without one nothing is copied or computed for it.
    """

    @property
    def decoding(self) -> DecodingTrace | None:
        """Receives the decoding steps of each window; None to decode as without a trace."""
        ...

    def window(self, mel: np.ndarray, initial_tokens: list[int], result: DecodingResult) -> None:
        """Receive a window after each attempt to decode it.

        Args:
            mel: The log-mel window, float32 [n_mels, 3000].
            initial_tokens: The tokens that it was prompted with.
            result: The decoding result, acceptable or not.
        """
        ...
