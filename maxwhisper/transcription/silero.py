"""Silero's voice activity detector of version 6.0, the one that faster-whisper 1.2.1 brings, in NumPy.

Other versions say other things: 6.2 of a third of some recordings. Its weights lie beside, under Silero's licence (their metadata have it).
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load_file

WINDOW = 512  # samples of which one probability is said
WEIGHTS = Path(__file__).parents[1] / "assets" / "silero_vad_6.0.safetensors"

_CONTEXT = 64  # samples that are seen again before each window; as many are mirrored behind it
_FFT, _HOP = 256, 128
_STRIDES = (1, 2, 2, 1)  # of the encoder's convolutions, each over 3 frames
_BLOCK = 512  # windows that are encoded at once; more take more memory, and are no faster


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """How likely each 512 samples are speech, float32 [n_samples // 512 + 1]; samples: float32 [n_samples] at 16 kHz.

    Zeros follow the last sample; where windows fit evenly, there is one window of zeros, as in faster-whisper.
    """
    weights = _weights()
    windows = np.pad(samples, (_CONTEXT, WINDOW - len(samples) % WINDOW)).astype(np.float32, copy=False)
    windows = sliding_window_view(windows, _CONTEXT + WINDOW)[::WINDOW]
    blocks = (windows[i : i + _BLOCK] for i in range(0, len(windows), _BLOCK))
    features = np.concatenate([_encode(block, weights) for block in blocks])
    return _sigmoid(np.maximum(_remember(features, weights), 0) @ weights["decoder.weight"] + weights["decoder.bias"])


@cache
def _weights() -> dict[str, np.ndarray]:
    return load_file(WEIGHTS)


def _encode(windows: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Features float32 [n, 128] of windows with their context, float32 [n, 576]."""
    mirrored = np.pad(windows, ((0, 0), (0, _CONTEXT)), mode="reflect")
    frames = sliding_window_view(mirrored, _FFT, axis=1)[:, ::_HOP]
    x = np.abs(np.fft.rfft(frames * np.hanning(_FFT + 1)[:-1].astype(np.float32)))
    for i, stride in enumerate(_STRIDES):
        kernel, bias = weights[f"encoder.{i}.weight"], weights[f"encoder.{i}.bias"]
        around = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (0, 0))), 3, axis=1)[
            :, ::stride
        ]  # [n, n_frames, n_in, 3]
        x = np.maximum(around.reshape(*around.shape[:2], -1) @ kernel.reshape(len(kernel), -1).T + bias, 0)
    return x[:, 0]


def _remember(features: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """What an LSTM makes of features, float32 [n, 128], window by window: its state [n, 128]."""
    inputs = features @ weights["rnn.weight_ih"].T + (weights["rnn.bias_ih"] + weights["rnn.bias_hh"])
    recurrent = weights["rnn.weight_hh"]
    states, cell = np.zeros((len(inputs) + 1, recurrent.shape[1]), np.float32), np.float32(0)
    for t, some in enumerate(inputs):
        gates = (some + np.einsum("ij,j->i", recurrent, states[t])).reshape(
            4, -1
        )  # too small for threads, which BLAS would start for each
        take, keep, _, show = _sigmoid(gates)
        cell = keep * cell + take * np.tanh(gates[2])
        states[t + 1] = show * np.tanh(cell)
    return states[1:]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (np.tanh(x / 2) + 1) / 2
