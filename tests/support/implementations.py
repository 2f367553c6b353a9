"""One checkpoint loaded in maxwhisper, in OpenAI Whisper and in NumPy float64."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import whisper

from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint
from reference.models.float64 import NumpyWhisper
from reference.models.openai import load_openai

Mel = TypeVar("Mel", np.ndarray, torch.Tensor)
Features = TypeVar("Features")


def cached_encoder(encode: Callable[[Mel], Features]) -> Callable[[Mel], Features]:
    """Return an encoder that stores its last 100 results.

    Encoders are the slowest part of the suite, and many tests encode the same windows.
    """
    results: OrderedDict[bytes, Features] = OrderedDict()

    def encode_once(mel: Mel) -> Features:
        key = hashlib.sha256(np.asarray(mel).tobytes()).digest()
        if key not in results:
            results[key] = encode(mel)
        if len(results) > 100:
            results.popitem(last=False)
        return results[key]

    return encode_once


class Implementations:
    """Three implementations of Whisper with the weights of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.checkpoint = checkpoint
        self.model = Whisper(checkpoint, device)  # maxwhisper, the implementation under test
        self.openai: whisper.Whisper = load_openai(checkpoint)  # float32, on the CPU
        self.openai.encoder.forward = cached_encoder(self.openai.encoder.forward)
        self.float64 = NumpyWhisper(checkpoint)
