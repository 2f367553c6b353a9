"""The log-mel spectrogram as a MAX graph, used on GPUs; on the CPU `maxwhisper.audio` is faster.

A Fourier transform of 400 samples is computed as two of 20 samples each (Cooley and Tukey, 1965).
These are products with small matrices. Their sums are short, and so as exact as those of a fast
Fourier transform.
"""

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops

from maxwhisper.audio import HOP_LENGTH, N_FFT, mel_filters
from maxwhisper.engine.ops.portable import matmul

ROOT = 20  # the square root of N_FFT
N_HIGH = ROOT // 2 + 1  # frequencies up to N_FFT / 2 are c + 20 d; this is the number of values of d
N_AHEAD = 2  # hops after a frame's own that the frame extends into


def log_mel_bands(hops: TensorValue, n_mels: int) -> TensorValue:
    """Compute log10 of mel bands, clamped to 1e-10, as `maxwhisper.audio.log_mel_bands` does.

    Args:
        hops: samples, float32 [n_frames + 2, 160]. A frame is the 400 samples from its hop on.
        n_mels: number of mel filters.

    Returns:
        float32 [n_mels, n_frames].
    """
    n, device = hops.shape[0] - N_AHEAD, hops.device
    parts = [hops[(slice(i, TensorValue(n + i)), n), :] for i in range(N_AHEAD + 1)]
    frames = ops.concat([parts[0], parts[1], parts[2][:, : N_FFT - N_AHEAD * HOP_LENGTH]], axis=1)
    windowed = frames * _constant(np.hanning(N_FFT + 1)[:-1], device)
    power = ops.reshape(_power(ops.reshape(windowed, [n, ROOT, ROOT])), [n, N_HIGH * ROOT])
    filters = np.pad(mel_filters(n_mels), ((0, 0), (0, N_HIGH * ROOT - N_FFT // 2 - 1)))
    mel = matmul(power, _constant(filters.T, device))
    floor, per_decade = (_constant(np.asarray(value), device) for value in (1e-10, 1 / np.log(10)))
    return ops.transpose(ops.log(ops.max(mel, floor)) * per_decade, 0, 1)


def _power(x: TensorValue) -> TensorValue:
    """Compute the power spectrum of frames.

    Args:
        x: [n, a, b], sample 20 a + b of each frame.

    Returns:
        [n, d, c], the power at frequency c + 20 d.
    """
    device = x.device
    low, high = np.arange(ROOT), np.arange(N_HIGH)
    first = np.exp(-2j * np.pi * np.outer(low, low) / ROOT)  # [a, c]
    twiddle = np.exp(-2j * np.pi * np.outer(low, low) / N_FFT)  # [b, c]
    second = np.exp(-2j * np.pi * np.outer(low, high) / ROOT)  # [b, d]

    sums = _rows_times(ops.permute(x, [0, 2, 1]), np.concatenate([first.real, first.imag], axis=1))
    real, imaginary = sums[:, :, :ROOT], sums[:, :, ROOT:]  # [n, b, c] each
    turn, over = _constant(twiddle.real, device), _constant(twiddle.imag, device)
    both = ops.concat([real * turn - imaginary * over, real * over + imaginary * turn], axis=1)  # [n, 2 b, c]
    spectrum = _rows_times(
        ops.permute(both, [0, 2, 1]), np.block([[second.real, second.imag], [-second.imag, second.real]])
    )  # [n, c, 2 d]
    real, imaginary = spectrum[:, :, :N_HIGH], spectrum[:, :, N_HIGH:]
    return ops.permute(real * real + imaginary * imaginary, [0, 2, 1])


def _rows_times(x: TensorValue, matrix: np.ndarray) -> TensorValue:
    """Compute x [n, m, k] @ matrix [k, j]."""
    n, m, k = x.shape
    product = matmul(ops.reshape(x, [n * m, k]), _constant(matrix, x.device))
    return ops.reshape(product, [n, m, matrix.shape[1]])


def _constant(values: np.ndarray, device: DeviceRef) -> TensorValue:
    return ops.constant(np.ascontiguousarray(values, np.float32), DType.float32, device=device)
