"""The definition of each op, in NumPy float64. Everything else is measured against these.

If `maxwhisper.engine.ops` has an op of the same name, arguments and shapes are the same.
"""

import numpy as np
from scipy.special import erfc

LAYER_NORM_EPSILON = 1e-5
RMS_NORM_EPSILON = 1e-6


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, epsilon: float | None = None) -> np.ndarray:
    """Normalize the last dimension, as `torch.nn.LayerNorm`, by default with its epsilon.

    Source: Ba, Kiros and Hinton, *Layer Normalization* (2016), equation 4.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    epsilon = LAYER_NORM_EPSILON if epsilon is None else epsilon
    return centred / np.sqrt(variance + epsilon) * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray, *, epsilon: float = RMS_NORM_EPSILON) -> np.ndarray:
    """Divide by the root mean square of the last dimension, as `torch.nn.RMSNorm`.

    Source: Zhang and Sennrich, *Root Mean Square Layer Normalization* (2019), equation 4.
    """
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """Compute `x @ weight.T + bias`, as `torch.nn.functional.linear`."""
    return x @ weight.T + bias


def linear_scaled(x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """Compute `linear` with int8 weights and the dequantization scale of each output channel.

    Args:
        x: Shape [..., n_in].
        weight: Integers [n_out, n_in].
        scale: Dequantization scales [n_out].
        bias: Shape [n_out].
    """
    return linear(x, weight * scale[:, None], bias)


def scaled_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each row for quantization to int8, without rounding it to integers yet.

    Returns:
        The rows with magnitudes up to 127, and the dequantization scale of each row [..., 1]. The
        scale of a row of zeros is 1.
    """
    largest = np.abs(x).max(axis=-1, keepdims=True)
    row_scale = np.where(largest > 0, largest, 127.0) / 127.0
    return x / row_scale, row_scale


def linear_int8(x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """Compute `linear_scaled` with rows of x that are quantized to int8 as well.

    Vector-wise quantization: Dettmers et al., *LLM.int8()* (2022), section 2.1. Sums of integers
    are exact on every processor.
    """
    rows, row_scale = scaled_rows(x)
    return linear(np.rint(rows), weight) * (row_scale * scale) + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """Compute x Phi(x) (Hendrycks and Gimpel, *Gaussian Error Linear Units*, 2016).

    erfc keeps its digits if x is very negative.
    """
    return 0.5 * x * erfc(-x / np.sqrt(2.0))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Compute GELU's approximation by tanh (Hendrycks and Gimpel, 2016, section 2)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sum_along(x: np.ndarray, *, axes: tuple[int, ...] = (-1,), keep: bool = False) -> np.ndarray:
    """Sum along axes, and keep them with size 1 if asked."""
    return x.sum(axis=axes, keepdims=keep)


def mean_along(x: np.ndarray, *, axes: tuple[int, ...] = (-1,), keep: bool = False) -> np.ndarray:
    """Average along axes, and keep them with size 1 if asked."""
    return x.mean(axis=axes, keepdims=keep)


def conv1d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    """Convolve with three taps, as `torch.nn.functional.conv1d(padding=1)`, with channels last.

    Args:
        x: Shape [batch, n_frames, n_in].
        weight: Shape [n_out, n_in, 3].
        bias: Shape [n_out].
        stride: Distance between two frames that are computed.
    """
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    n = x.shape[1]
    return sum(padded[:, tap : tap + n : stride] @ weight[:, :, tap].T for tap in range(3)) + bias


def conv1d_taps(x: np.ndarray, n_taps: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Return what each output frame of a convolution sees: [batch, n_in, n_frames_out, n_taps]."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    reach = dilation * (n_taps - 1) + 1
    return np.lib.stride_tricks.sliding_window_view(padded, reach, axis=2)[:, :, ::stride, ::dilation]


def conv1d_channels_first(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> np.ndarray:
    """Convolve along time, as `torch.nn.functional.conv1d`.

    Args:
        x: Shape [batch, n_in, n_frames].
        weight: Shape [n_out, n_in / groups, n_taps].
        bias: Shape [n_out].
        stride: Distance between two frames that are computed.
        padding: Zeros at each end.
        dilation: Distance between two taps.
        groups: Parts of the channels that are convolved on their own.
    """
    taps = conv1d_taps(x, weight.shape[-1], stride, padding, dilation)
    parts = zip(np.split(taps, groups, axis=1), np.split(weight, groups))
    return np.concatenate([np.einsum("bitk,oik->bot", part, kernel) for part, kernel in parts], axis=1) + bias[:, None]


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:
    """Reshape and transpose [batch, n, n_state] to [batch, n_head, n, head_dim]."""
    return x.reshape(*x.shape[:2], n_head, -1).swapaxes(1, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """Transpose and reshape [batch, n_head, n, head_dim] to [batch, n, n_state]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def attention_scores(q: np.ndarray, k: np.ndarray, mask: np.ndarray | float = 0.0) -> np.ndarray:
    """Compute `q @ k.T / sqrt(head_dim) + mask`, the scores before the softmax.

    Source: Vaswani et al., *Attention Is All You Need* (2017), equation 1.

    Args:
        q: Shape [..., n, head_dim].
        k: Shape [..., n_kv, head_dim].
        mask: Shape [n, n_kv]. 0 if a query sees a key, -inf if not.
    """
    return q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + mask


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0) -> np.ndarray:
    """Compute equation 1 of Vaswani et al. (2017), see `attention_scores`.

    A query that sees no key gives NaN.
    """
    return softmax(attention_scores(q, k, mask)) @ v


def attention_int8(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute `attention` with quantized operands.

    Queries and keys are quantized to int8 row by row, values column by column. Exponentials are
    quantized to 16 bits.
    """
    (q, q_scale), (k, k_scale), (v, v_scale) = map(scaled_rows, (q, k, v.swapaxes(-1, -2)))
    scores = attention_scores(np.rint(q), np.rint(k)) * (q_scale * k_scale.swapaxes(-1, -2))
    weights = np.rint(np.exp(scores - scores.max(axis=-1, keepdims=True)) * 65535)
    return weights @ np.rint(v).swapaxes(-1, -2) * v_scale.swapaxes(-1, -2) / weights.sum(axis=-1, keepdims=True)


def causal_mask(n: int, n_kv: int | None = None) -> np.ndarray:
    """Return the causal mask of the last n of n_kv positions, float32 [n, n_kv].

    It is 0 if the key's position is not after the query's, else -inf.

    Args:
        n: Number of queries.
        n_kv: Number of keys; n by default.
    """
    n_kv = n if n_kv is None else n_kv
    return np.triu(np.full((n, n_kv), -np.inf, np.float32), 1 + n_kv - n)


def append_to_cache(cache: np.ndarray, new: np.ndarray, page_table: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the keys or values so far: those in the cache, and the new ones after them.

    Args:
        cache: Shape [batch, n_head, n_ctx, head_dim].
        new: Shape [batch, n_head, n, head_dim].
        page_table: Integers [batch, 1, n_ctx]: the page (index along `batch`) of the cache that
            holds each position of a sequence.
        mask: Shape [n, n_kv], which says how many are new (n), and how many there are in all
            (n_kv).

    Returns:
        Shape [batch, n_head, n_kv, head_dim].
    """
    n, n_kv = mask.shape
    stored = np.take_along_axis(cache, page_table[..., None], axis=0)[:, :, : n_kv - n]
    return np.concatenate([stored, new], axis=2)


def softmax(x: np.ndarray) -> np.ndarray:
    """Compute exp(x) / sum(exp(x)) over the last dimension."""
    e = x - x.max(axis=-1, keepdims=True)
    np.exp(e, out=e)  # in place: an encoder's scores are 144 MB
    e /= e.sum(axis=-1, keepdims=True)
    return e


SAMPLE_RATE, N_FFT, HOP_LENGTH = 16_000, 400, 160
HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)  # periodic


def frames(samples: np.ndarray) -> np.ndarray:
    """Split samples into the frames of `torch.stft`, without the last one, as Whisper does.

    Frames are 25 ms long, one each 10 ms. They are centred, and samples are reflected at the ends.

    Args:
        samples: Shape [n_samples], at 16 kHz.

    Returns:
        Shape [n_samples // 160, 400].
    """
    padded = np.pad(samples.astype(np.float64), N_FFT // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:-1]


def mel_filters(n_mels: int) -> np.ndarray:
    """Return triangular filters of unit area, evenly spaced on Slaney's mel scale.

    Slaney's scale (*Auditory Toolbox*, 1998) is linear up to 1000 Hz, which is 15 mel. Above, 27
    mel are a factor of 6.4. The triangles are rounded to float32 once before they are divided by
    their area and once after. librosa does the same, and OpenAI's `mel_filters.npz` was made with
    it.

    Returns:
        float32 [n_mels, 201], as Whisper stores them.
    """
    mels_per_log = 27 / np.log(6.4)
    mels = np.linspace(0.0, 15 + mels_per_log * np.log(SAMPLE_RATE / 2 / 1000), n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) / mels_per_log))
    frequencies = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    bands = zip(edges, edges[1:], edges[2:])
    triangles = [(np.interp(frequencies, band, (0.0, 1.0, 0.0)), 2 / (band[2] - band[0])) for band in bands]
    return np.stack([(triangle.astype(np.float32) * height).astype(np.float32) for triangle, height in triangles])


def log_mel_spectrogram(samples: np.ndarray, n_mels: int = 80, padding: int = 0) -> np.ndarray:
    """Compute `whisper.log_mel_spectrogram`.

    Args:
        samples: Shape [n_samples], at 16 kHz.
        n_mels: Number of mel bands.
        padding: Number of zeros to append to the samples.

    Returns:
        Shape [n_mels, n_frames].
    """
    power = np.abs(np.fft.rfft(frames(np.pad(samples, (0, padding))) * HANN)) ** 2
    log_mel = np.log10(np.maximum(mel_filters(n_mels).astype(np.float64) @ power.T, 1e-10))
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
