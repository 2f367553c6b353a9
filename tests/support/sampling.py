"""The same random draws for maxwhisper and for OpenAI Whisper."""

import numpy as np
import pytest
import torch
import whisper

from maxwhisper.decoding.search import sample


class SharedDraws:
    """Two generators of the same random numbers, one for each implementation.

    Pass `rng` to maxwhisper. OpenAI Whisper draws from the other generator, because its
    `Categorical` is replaced.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rng = np.random.default_rng(7)
        openai_rng = np.random.default_rng(7)

        class Categorical:
            def __init__(self, logits: torch.Tensor) -> None:
                self.logits = logits

            def sample(self) -> torch.Tensor:
                return torch.from_numpy(sample(self.logits.numpy(), openai_rng.random(len(self.logits))))

        monkeypatch.setattr(whisper.decoding, "Categorical", Categorical)
