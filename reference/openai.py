"""OpenAI Whisper as witness and judge: the same weights, float32, its attention path and number of threads pinned."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import whisper
from whisper.model import MultiHeadAttention

from maxwhisper.checkpoint import Checkpoint

# OpenAI Whisper's own error moves twofold with both, so they are the same wherever it is the judge.
N_THREADS = 2
MultiHeadAttention.use_sdpa = True


def load_openai(checkpoint: Checkpoint) -> whisper.Whisper:
    """OpenAI Whisper with a checkpoint's weights, in float32 on the CPU."""
    torch.set_num_threads(N_THREADS)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    model = whisper.Whisper(whisper.ModelDimensions(**vars(checkpoint.dims)))
    weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in checkpoint.weights.items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


@dataclass(frozen=True)
class Window:
    """One call of a program's decoder: the log-mel window, the tokens it was prompted with, and those it answered."""

    mel: np.ndarray  # float32 [n_mels, 3000]
    initial_tokens: list[int]
    tokens: list[int]
    temperature: float


def transcribe(model: whisper.Whisper, samples: np.ndarray, **options: Any) -> tuple[dict[str, Any], list[Window]]:
    """`whisper.transcribe` in float32, and each window it decoded."""
    windows = []
    decode = model.decode

    def recording(mel: torch.Tensor, decoding_options: whisper.DecodingOptions) -> whisper.DecodingResult:
        task = whisper.decoding.DecodingTask(model, decoding_options)
        (result,) = task.run(mel[None])
        windows.append(Window(mel.numpy(), list(task.initial_tokens), result.tokens, decoding_options.temperature))
        return result

    model.decode = recording
    try:
        return whisper.transcribe(model, samples, fp16=False, **options), windows
    finally:
        model.decode = decode
