"""Mistakes on the way from a file to the spectrogram."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import librosa
import numpy as np
import soundfile

from tests.faults.plant import Fault, instead


def numpy_with(**functions: Any) -> Callable[[Any], Any]:
    """NumPy, but for these functions."""
    return lambda right: SimpleNamespace(**{**vars(right), **functions})


def without_area(right: Any) -> Any:
    """Triangles of equal height, as HTK has them."""

    def filters(n_mels: int) -> np.ndarray:
        found = right(n_mels)
        return (found / found.max(axis=1, keepdims=True) * found.max()).astype(np.float32)

    return filters


def maximum(a: Any, b: Any, out: Any = None) -> Any:
    """Where the result is written in place, which only the clamp's is, nothing."""
    return a if out is not None else np.maximum(a, b)


def zero_padded(array: np.ndarray, widths: Any, mode: str = "constant") -> np.ndarray:
    """Zeros where the ends should be reflected."""
    return np.pad(array, widths)


def padded_in_front(array: np.ndarray, length: int = 480_000, *, axis: int = -1) -> np.ndarray:
    """Silence first."""
    array = array.take(range(min(length, array.shape[axis])), axis=axis)
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(length - array.shape[-1], 0)])


def taken_for_44_1(right: Any) -> Any:
    """Samples of 48 kHz converted as if they were 44.1."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        return librosa.resample(right(file, sr), orig_sr=44_100, target_sr=48_000).astype(np.float32)

    return load


def first_channel(right: Any) -> Any:
    """Channels are not mixed: one is taken."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        channels, rate = soundfile.read(file, dtype="float32", always_2d=True)
        return librosa.resample(channels[:, 0], orig_sr=rate, target_sr=sr)

    return load


def straight_lines(right: Any) -> Any:
    """Samples are joined by straight lines, and read off at other times; by way of 44.1 kHz, since 16 are every third of 48."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        channels, rate = soundfile.read(file, always_2d=True)
        samples = channels.mean(axis=1)
        for before, after in pairwise((rate, 44_100, sr)):
            times = np.arange(len(samples) * after // before) * before / after
            samples = np.interp(times, np.arange(len(samples)), samples)
        return samples.astype(np.float32)

    return load


def faint_noise(right: Any) -> Any:
    """Three steps of 16 bits up or down, at all frequencies alike."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        samples = right(file, sr)
        return samples + np.random.default_rng(0).uniform(-1e-4, 1e-4, len(samples)).astype(np.float32)

    return load


FAULTS = [
    Fault(
        "44.1 kHz for 48",
        "audio.samples",
        "a rate that is written into the code",
        {"audio.load_audio": taken_for_44_1},
    ),
    Fault(
        "a channel dropped instead of averaged",
        "audio.samples",
        "samples[0] of a stereo recording",
        {"audio.load_audio": first_channel},
    ),
    Fault(
        "straight-line resampling",
        "audio.samples",
        "np.interp, by way of the rate that all else in a program has",
        {"audio.load_audio": straight_lines},
    ),
    Fault(
        "noise of 1e-4",
        "audio.samples",
        "dither, or a conversion to fewer bits on the way",
        {"audio.load_audio": faint_noise},
    ),
    Fault(
        "mel filters without area normalisation",
        "log_mel",
        "torchaudio's default, norm=None",
        {"audio.mel_filters": without_area},
        op="log_mel",
    ),
    Fault(
        "natural logarithm for log10",
        "log_mel",
        "log is not log",
        {"audio.np": numpy_with(log10=np.log)},
        op="log_mel",
    ),
    Fault(
        "max - 8 clamp missing",
        "log_mel",
        "a line that looks as if it did not matter",
        {"audio.np": numpy_with(maximum=maximum)},
        op="log_mel",
    ),
    Fault(
        "symmetric window",
        "log_mel",
        "np.hanning and scipy.signal.get_window are not the same",
        {"audio.np": numpy_with(hanning=lambda n: np.append(np.hanning(n - 1), 0))},
        op="log_mel",
    ),
    Fault(
        "ends padded with zeros",
        "log_mel",
        "librosa's default since 0.10, where torch.stft reflects",
        {"audio.np": numpy_with(pad=zero_padded)},
        op="log_mel",
    ),
    Fault(
        "window padded at the front",
        "transcribe.window.1.log_mel",  # the first one is full
        "left-padding, as language models batch",
        {"transcription.recording.pad_or_trim": instead(padded_in_front)},
    ),
]
