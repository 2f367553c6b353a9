"""OpenAI Whisper as witness and judge: the same weights, float32, its attention path and number of threads pinned."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import whisper
from whisper.model import MultiHeadAttention

from maxwhisper.checkpoint import LM_HEAD, Checkpoint

N_THREADS = 2


def load_openai(checkpoint: Checkpoint) -> whisper.Whisper:
    """OpenAI Whisper with a checkpoint's weights, in float32 on the CPU.

    Its own error moves twofold with the attention path and with the number of threads, so both are always the same here.
    """
    torch.set_num_threads(N_THREADS)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    MultiHeadAttention.use_sdpa = True
    dims = whisper.model.ModelDimensions(**vars(checkpoint.dims))
    model = _build(
        dims, {name: torch.from_numpy(array.astype(np.float32)) for name, array in checkpoint.weights.items()}
    )
    heads = torch.zeros(dims.n_text_layer, dims.n_text_head, dtype=torch.bool)
    heads[tuple(zip(*checkpoint.alignment_heads))] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model


# What reads the channels of the residual stream, and what writes them, at either end of the names.
_READ_CHANNELS = (
    "query.weight",
    "key.weight",
    "value.weight",
    "mlp.0.weight",
    "positional_embedding",
    "token_embedding.weight",
    LM_HEAD,
)
_WRITE_CHANNELS = ("out.weight", "out.bias", "mlp.2.weight", "mlp.2.bias", "conv2.weight", "conv2.bias")
_LAYER_NORMS = ("ln.weight", "ln.bias", "ln_post.weight", "ln_post.bias")


def reordered(model: whisper.Whisper, seed: int) -> tuple[whisper.Whisper, np.ndarray]:
    """The same model with the channels of its residual stream in another order, and that order.

    It computes the same numbers (audio features in the new order, logits as they were) and rounds differently, for every sum over the
    channels runs in another order.
    """
    order = np.random.default_rng(seed).permutation(model.dims.n_audio_state)
    state = dict(model.state_dict())
    for name, weight in state.items():
        if name.endswith(_READ_CHANNELS):
            state[name] = weight[:, order]
        elif name.endswith((*_WRITE_CHANNELS, *_LAYER_NORMS)):
            state[name] = weight[order]
    return _build(model.dims, state), order


@contextmanager
def in_float64(model: whisper.Whisper) -> Iterator[whisper.Whisper]:
    """The same model in float64. Its casts to float32, in layer norm and behind the logits, are without effect meanwhile."""
    narrow = torch.Tensor.float

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else narrow(tensor)

    torch.Tensor.float = keep  # type: ignore[method-assign,assignment]
    try:
        yield _build(model.dims, dict(model.state_dict())).double()
    finally:
        torch.Tensor.float = narrow  # type: ignore[method-assign]


def _build(dims: whisper.model.ModelDimensions, weights: dict[str, torch.Tensor]) -> whisper.Whisper:
    model = whisper.model.Whisper(dims)
    if LM_HEAD in weights:
        _untie(model.decoder)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _untie(decoder: Any) -> None:
    """Let a decoder, whose LM head always is its embedding, have one of its own, `proj_out`."""
    n_vocab, n_state = decoder.token_embedding.weight.shape
    decoder.proj_out = torch.nn.Linear(n_state, n_vocab, bias=False)
    normed: list[torch.Tensor] = []
    decoder.ln.register_forward_hook(lambda _, inputs, output: normed.append(output))
    decoder.register_forward_hook(lambda decoder, inputs, tied: decoder.proj_out(normed.pop()).float())
