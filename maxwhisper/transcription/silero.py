"""Silero's voice activity detector in NumPy.

It is version 6.0, as in faster-whisper 1.2.1. Results of other versions differ: those of 6.2 differ
for a third of some recordings. The weights come with this package under Silero's licence, which
their metadata contain.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load_file

WINDOW = 512  # samples for each probability
WEIGHTS = Path(__file__).parents[1] / "assets" / "silero_vad_6.0.safetensors"

_CONTEXT = 64  # samples of the previous window before each; as many are reflected after it
_FFT, _HOP = 256, 128
_STRIDES = (1, 2, 2, 1)  # the strides of the encoder's convolutions, each over 3 frames
_BLOCK = 512  # windows to encode at once; more would take more memory and be no faster


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """Return the probability of speech for each 512 samples.

    The last window is padded with zeros. As in faster-whisper, it contains only zeros if n_samples
    is a multiple of 512.

    Args:
        samples: float32 [n_samples] at 16 kHz.

    Returns:
        float32 [n_samples // 512 + 1].
    """
    weights = _weights()
    windows = np.pad(samples, (_CONTEXT, WINDOW - len(samples) % WINDOW)).astype(np.float32, copy=False)
    windows = sliding_window_view(windows, _CONTEXT + WINDOW)[::WINDOW]
    blocks = (windows[i : i + _BLOCK] for i in range(0, len(windows), _BLOCK))
    features = np.concatenate([_encode(block, weights) for block in blocks])
    return _sigmoid(np.maximum(_lstm(features, weights), 0) @ weights["decoder.weight"] + weights["decoder.bias"])


@cache
def _weights() -> dict[str, np.ndarray]:
    return load_file(WEIGHTS)


def _encode(windows: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Compute features, float32 [n, 128], of windows with their context, float32 [n, 576]."""
    reflected = np.pad(windows, ((0, 0), (0, _CONTEXT)), mode="reflect")
    frames = sliding_window_view(reflected, _FFT, axis=1)[:, ::_HOP]
    x = np.abs(np.fft.rfft(frames * np.hanning(_FFT + 1)[:-1].astype(np.float32)))
    for i, stride in enumerate(_STRIDES):
        kernel, bias = weights[f"encoder.{i}.weight"], weights[f"encoder.{i}.bias"]
        neighbours = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (0, 0))), 3, axis=1)  # [n, n_frames, n_in, 3]
        neighbours = neighbours[:, ::stride]
        x = np.maximum(neighbours.reshape(*neighbours.shape[:2], -1) @ kernel.reshape(len(kernel), -1).T + bias, 0)
    return x[:, 0]


def _lstm(features: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return an LSTM's states [n, 128] for the features of successive windows, float32 [n, 128]."""
    inputs = features @ weights["rnn.weight_ih"].T + (weights["rnn.bias_ih"] + weights["rnn.bias_hh"])
    recurrent = weights["rnn.weight_hh"]
    states, cell = np.zeros((len(inputs) + 1, recurrent.shape[1]), np.float32), np.float32(0)
    for t, window_input in enumerate(inputs):
        # The product is too small for threads, which BLAS would start; einsum does not.
        gates = (window_input + np.einsum("ij,j->i", recurrent, states[t])).reshape(4, -1)
        input_gate, forget_gate, _, output_gate = _sigmoid(gates)
        cell = forget_gate * cell + input_gate * np.tanh(gates[2])
        states[t + 1] = output_gate * np.tanh(cell)
    return states[1:]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (np.tanh(x / 2) + 1) / 2
