"""OpenAI Whisper as witness and judge: the same weights, float32, its attention path and number of threads pinned."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import whisper
from whisper.model import MultiHeadAttention

from maxwhisper.checkpoint import Checkpoint

N_THREADS = 2


def load_openai(checkpoint: Checkpoint) -> whisper.Whisper:
    """OpenAI Whisper with a checkpoint's weights, in float32 on the CPU.

    Its own error moves twofold with the attention path and with the number of threads, so both are always the same here.
    """
    torch.set_num_threads(N_THREADS)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    MultiHeadAttention.use_sdpa = True
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**vars(checkpoint.dims)))
    weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in checkpoint.weights.items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


@contextmanager
def in_float64(model: whisper.Whisper) -> Iterator[whisper.Whisper]:
    """The same model in float64. Its casts to float32, in layer norm and behind the logits, are without effect meanwhile."""
    narrow = torch.Tensor.float

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else narrow(tensor)

    torch.Tensor.float = keep  # type: ignore[method-assign,assignment]
    try:
        yield copy.deepcopy(model).double()
    finally:
        torch.Tensor.float = narrow  # type: ignore[method-assign]
