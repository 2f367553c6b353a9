"""OpenAI Whisper in float32 with a checkpoint's weights: the implementation compared with."""

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

    The attention path and the number of threads are always the same, because each changes the
    model's own rounding error by up to a factor of two.
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


# Ends of the names of weights that read the channels of the residual stream, and that write them.
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
    """Return a copy of a model with the channels of its residual stream permuted.

    Mathematically, the copy computes the same logits, and audio features in the new order. Its
    rounding differs, because every sum over the channels runs in a different order.

    Args:
        model: the model to copy.
        seed: of the random order.

    Returns:
        The copy, and the order of the channels, int [n_audio_state].
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
    """Provide a copy of a model in float64.

    Until the end of the block, `Tensor.float` leaves float64 tensors unchanged. Otherwise the
    model would cast to float32 in layer norm and after the logits.
    """
    to_float32 = torch.Tensor.float

    def cast_unless_float64(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else to_float32(tensor)

    torch.Tensor.float = cast_unless_float64  # type: ignore[method-assign,assignment]
    try:
        yield _build(model.dims, dict(model.state_dict())).double()
    finally:
        torch.Tensor.float = to_float32  # type: ignore[method-assign]


def _build(dims: whisper.model.ModelDimensions, weights: dict[str, torch.Tensor]) -> whisper.Whisper:
    model = whisper.model.Whisper(dims)
    if LM_HEAD in weights:
        _untie(model.decoder)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _untie(decoder: Any) -> None:
    """Give a decoder an LM head `proj_out` with weights separate from its embedding.

    OpenAI Whisper's decoder always uses the embedding as its LM head.
    """
    n_vocab, n_state = decoder.token_embedding.weight.shape
    decoder.proj_out = torch.nn.Linear(n_state, n_vocab, bias=False)
    normed: list[torch.Tensor] = []
    decoder.ln.register_forward_hook(lambda _, inputs, output: normed.append(output))
    decoder.register_forward_hook(lambda decoder, inputs, tied: decoder.proj_out(normed.pop()).float())
