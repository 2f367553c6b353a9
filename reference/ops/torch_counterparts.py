"""PyTorch's ops, an independent implementation that must stay within the same bounds.

A row's `torch` names one of these functions.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from reference.numerics import definitions
from reference.ops.row import Op
from reference.ops.tensors import from_torch, to_torch


def counterpart(op: type[Op]) -> Callable[..., torch.Tensor]:
    """Return the function that a row's `torch` names or holds."""
    return globals()[op.torch] if isinstance(op.torch, str) else op.torch


def run_torch(op: type[Op], arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Run a row's op with PyTorch on the CPU."""
    with torch.no_grad():
        return from_torch(counterpart(op)(*map(to_torch, arrays)))


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Normalize the last dimension."""
    return F.layer_norm(x, weight.shape, weight, bias, definitions.LAYER_NORM_EPSILON)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `F.linear`, with weights that may be narrower than x."""
    return F.linear(x, weight.to(x.dtype), bias)


def linear_scaled(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Compute `F.linear` with int8 weights, and dequantize the result."""
    return x @ weight.to(x.dtype).T * scale + bias


def linear_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Quantize rows to int8 and sum exactly."""
    rows, row_scale = _quantized(x, -1)
    exact = rows.double() @ weight.T.double()
    return exact.float() * (row_scale * scale) + bias


def _quantized(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to int8 along a dimension; return the integers and their dequantization scale."""
    largest = x.abs().amax(dim, keepdim=True)
    scale = torch.where(largest > 0, largest, 127.0) / 127
    return (x / scale).round(), scale


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Compute the exact GELU."""
    return F.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Compute GELU's approximation by tanh."""
    return F.gelu(x, approximate="tanh")


def silu(x: torch.Tensor) -> torch.Tensor:
    """Compute x times its sigmoid."""
    return F.silu(x)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Divide by the root mean square of the last dimension."""
    return F.rms_norm(x, weight.shape, weight, definitions.RMS_NORM_EPSILON)


def conv1d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve with channels first and stride 1."""
    return F.conv1d(x, weight, bias, padding=1)


def conv1d_stride1(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve with channels last and stride 1."""
    return F.conv1d(x.mT, weight, bias, padding=1).mT


def conv1d_stride2(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve with channels last and stride 2."""
    return F.conv1d(x.mT, weight, bias, stride=2, padding=1).mT


def token_embedding(tokens: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Return the tokens' rows, dequantized if they have a scale."""
    return F.embedding(tokens, weight if scale is None else weight * scale[:, None])


def residual(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute x + y."""
    return x + y


def half(x: torch.Tensor) -> torch.Tensor:
    """Convert to float16 and back."""
    return x.half().float()


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Compute the softmax over the last dimension."""
    return x.softmax(-1)


def attention_scores(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Compute q @ k.T / √head_dim + mask."""
    return q @ k.mT / np.sqrt(q.shape[-1]) + mask


def causal_mask(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fill in -inf, instead of adding it."""
    return scores.masked_fill(mask != 0, -torch.inf)


def attention_context(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute weights @ v."""
    return weights @ v


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute in float32 and round at the end.

    PyTorch's own attention in half precision rounds more than the weights.
    """
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)


def attention_int8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Quantize queries and keys by rows, values by columns, and exponentials to 16 bits.

    All sums are exact.
    """
    (q, q_scale), (k, k_scale), (v, v_scale) = _quantized(q, -1), _quantized(k, -1), _quantized(v, -2)
    scores = q @ k.mT * (q_scale * k_scale.mT) / np.sqrt(q.shape[-1])
    weights = ((scores - scores.amax(-1, keepdim=True)).exp() * 65535).round().double()
    return ((weights @ v.double()).float() * v_scale / weights.sum(-1, keepdim=True)).float()


def cached(cache: torch.Tensor, new: torch.Tensor, page_table: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Gather the stored part of the cache, and append."""
    so_far = torch.take_along_dim(cache, page_table[..., None], dim=0)[:, :, : mask.shape[1] - len(mask)]
    return torch.cat([so_far, new], dim=2)


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """Compute OpenAI Whisper's own function with 80 bands."""
    import whisper  # only these functions need it

    return whisper.log_mel_spectrogram(samples, 80)


def log_mel_128(samples: torch.Tensor) -> torch.Tensor:
    """Compute OpenAI Whisper's own function with 128 bands."""
    import whisper

    return whisper.log_mel_spectrogram(samples, 128)


def log_mel_bands(hops: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Compute log10 of 80 bands with a fast Fourier transform."""
    frames = torch.cat([hops, rest]).flatten().unfold(0, definitions.N_FFT, definitions.HOP_LENGTH)[: len(hops)]
    power = torch.fft.rfft(frames * torch.hann_window(definitions.N_FFT, device=hops.device)).abs() ** 2
    filters = torch.from_numpy(definitions.mel_filters(80)).to(hops.device)
    return torch.log10((filters @ power.T).clamp(min=1e-10))
