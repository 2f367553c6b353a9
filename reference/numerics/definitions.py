"""What each op computes, in NumPy float64. These are the definitions; everything else is measured against them.

If `maxwhisper.engine.ops` has an op of the same name, arguments and shapes are the same.
"""

import numpy as np
from scipy.special import erfc

LAYER_NORM_EPSILON = 1e-5


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Ba, Kiros and Hinton, *Layer Normalization* (2016), equation 4, with the epsilon of `torch.nn.LayerNorm`."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + LAYER_NORM_EPSILON) * weight + bias


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """`torch.nn.functional.linear`."""
    return x @ weight.T + bias


def linear_scaled(x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """`linear` of weights that are whole numbers, each counting its output's scale."""
    return linear(x, weight * scale[:, None], bias)


def rounded_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as whole numbers up to 127, not rounded yet, and what one of them counts [..., 1]; a row of zeros counts ones."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    unit = np.where(largest > 0, largest, 127.0) / 127.0
    return x / unit, unit


def linear_int8(x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """`linear_scaled` of rows rounded to 8 bits: Dettmers et al., *LLM.int8()* (2022), section 2.1, vector-wise quantization.

    Sums of whole numbers are exact on every processor.
    """
    numbers, unit = rounded_rows(x)
    return linear(np.rint(numbers), weight) * (unit * scale) + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x), Hendrycks and Gimpel, *Gaussian Error Linear Units* (2016); erfc keeps its digits where x is very negative."""
    return 0.5 * x * erfc(-x / np.sqrt(2.0))


def conv1d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    """`torch.nn.functional.conv1d(padding=1)` for three taps, channels last. x [batch, n_frames, n_in]; weight [n_out, n_in, 3]."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    n = x.shape[1]
    return sum(padded[:, tap : tap + n : stride] @ weight[:, :, tap].T for tap in range(3)) + bias


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:
    """[batch, n, n_state] to [batch, n_head, n, head_dim]."""
    return x.reshape(*x.shape[:2], n_head, -1).transpose(0, 2, 1, 3)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """[batch, n_head, n, head_dim] to [batch, n, n_state]."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def attention_scores(q: np.ndarray, k: np.ndarray, mask: np.ndarray | float = 0.0) -> np.ndarray:
    """Vaswani et al., *Attention Is All You Need* (2017), equation 1, before the softmax.

    mask [n, n_kv]: 0 where a query sees a key, -inf where not.
    """
    return q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + mask


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0) -> np.ndarray:
    """Equation 1 of the same, whole. A query that sees no key gives NaN."""
    return softmax(attention_scores(q, k, mask)) @ v


def attention_int8(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`attention` of queries and keys rounded to 8 bits, row by row, values rounded column by column, and exponentials rounded to 16."""
    (q, q_unit), (k, k_unit), (v, v_unit) = map(rounded_rows, (q, k, v.swapaxes(-1, -2)))
    scores = attention_scores(np.rint(q), np.rint(k)) * (q_unit * k_unit.swapaxes(-1, -2))
    weights = np.rint(np.exp(scores - scores.max(axis=-1, keepdims=True)) * 65535)
    return weights @ np.rint(v).swapaxes(-1, -2) * v_unit.swapaxes(-1, -2) / weights.sum(axis=-1, keepdims=True)


def causal_mask(n: int, n_kv: int | None = None) -> np.ndarray:
    """float32 [n, n_kv]: of the last n of n_kv positions (all, by default), 0 where one sees another up to itself, else -inf."""
    n_kv = n if n_kv is None else n_kv
    return np.triu(np.full((n, n_kv), -np.inf, np.float32), 1 + n_kv - n)


def append_to_cache(cache: np.ndarray, new: np.ndarray, slots: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The keys or values so far: those in the cache before the new ones, and these. mask [n, n_kv] says how many there are of each.

    cache [batch, n_head, n_ctx, head_dim]; slots int [batch, 1, n_ctx]: in which row of it each position of a sequence lies; new [batch,
    n_head, n, head_dim]. Returns [batch, n_head, n_kv, head_dim].
    """
    n, n_kv = mask.shape
    return np.concatenate([np.take_along_axis(cache, slots[..., None], axis=0)[:, :, : n_kv - n], new], axis=2)


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last dimension."""
    e = x - x.max(axis=-1, keepdims=True)
    np.exp(e, out=e)  # in place: an encoder's scores are 144 MB
    e /= e.sum(axis=-1, keepdims=True)
    return e


SAMPLE_RATE, N_FFT, HOP_LENGTH = 16_000, 400, 160
HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)  # periodic


def frames(samples: np.ndarray) -> np.ndarray:
    """`torch.stft`'s frames of 25 ms each 10 ms, centred and reflected at the ends; Whisper leaves the last one out.

    samples [n_samples] at 16 kHz. Returns [n_samples // 160, 400].
    """
    padded = np.pad(samples.astype(np.float64), N_FFT // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:-1]


def mel_filters(n_mels: int) -> np.ndarray:
    """Triangles of unit area, evenly spaced on Slaney's mel scale: float32 [n_mels, 201], as Whisper stores them.

    Slaney, *Auditory Toolbox* (1998): up to 1000 Hz, 15 mel, linear; above, 27 mel for a factor of
    6.4. The triangles are rounded to float32 once before they are divided by their area and once
    after, as librosa does, which made OpenAI's `mel_filters.npz`.
    """
    mels_per_log = 27 / np.log(6.4)
    mels = np.linspace(0.0, 15 + mels_per_log * np.log(SAMPLE_RATE / 2 / 1000), n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) / mels_per_log))
    frequencies = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    bands = zip(edges, edges[1:], edges[2:])
    triangles = [(np.interp(frequencies, band, (0.0, 1.0, 0.0)), 2 / (band[2] - band[0])) for band in bands]
    return np.stack([(triangle.astype(np.float32) * height).astype(np.float32) for triangle, height in triangles])


def log_mel_spectrogram(samples: np.ndarray, n_mels: int = 80, padding: int = 0) -> np.ndarray:
    """`whisper.log_mel_spectrogram`: samples [n_samples] at 16 kHz to [n_mels, n_frames]."""
    power = np.abs(np.fft.rfft(frames(np.pad(samples, (0, padding))) * HANN)) ** 2
    log_mel = np.log10(np.maximum(mel_filters(n_mels).astype(np.float64) @ power.T, 1e-10))
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
