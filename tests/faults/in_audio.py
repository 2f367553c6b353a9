"""Mistakes in reading audio files and computing the spectrogram."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import librosa
import numpy as np
import soundfile

from tests.faults.plant import Fault, instead


def numpy_with(**functions: Any) -> Callable[[Any], Any]:
    """Make a replacement for the module NumPy that differs only in these functions."""
    return lambda original: SimpleNamespace(**{**vars(original), **functions})


def without_area(original: Any) -> Any:
    """Scale all triangular filters to equal height, as HTK does."""

    def filters(n_mels: int) -> np.ndarray:
        filterbank = original(n_mels)
        return (filterbank / filterbank.max(axis=1, keepdims=True) * filterbank.max()).astype(np.float32)

    return filters


def maximum(a: Any, b: Any, out: Any = None) -> Any:
    """Do nothing if the result is to be written in place; only the clamp does that."""
    return a if out is not None else np.maximum(a, b)


def zero_padded(array: np.ndarray, widths: Any, mode: str = "constant") -> np.ndarray:
    """Pad with zeros instead of reflecting the ends."""
    return np.pad(array, widths)


def padded_in_front(array: np.ndarray, length: int = 480_000, *, axis: int = -1) -> np.ndarray:
    """Put the silence before the audio instead of after it."""
    array = array.take(range(min(length, array.shape[axis])), axis=axis)
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(length - array.shape[-1], 0)])


def taken_for_44_1(original: Any) -> Any:
    """Convert samples of 48 kHz as if their rate were 44.1 kHz."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        return librosa.resample(original(file, sr), orig_sr=44_100, target_sr=48_000).astype(np.float32)

    return load


def first_channel(original: Any) -> Any:
    """Read the first channel instead of averaging the channels."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        channels, rate = soundfile.read(file, dtype="float32", always_2d=True)
        return librosa.resample(channels[:, 0], orig_sr=rate, target_sr=sr)

    return load


def straight_lines(original: Any) -> Any:
    """Resample by linear interpolation, to 44.1 kHz and then to the final rate.

    Straight from 48 to 16 kHz, interpolation would only pick every third sample.
    """

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        channels, rate = soundfile.read(file, always_2d=True)
        samples = channels.mean(axis=1)
        for before, after in pairwise((rate, 44_100, sr)):
            times = np.arange(len(samples) * after // before) * before / after
            samples = np.interp(times, np.arange(len(samples)), samples)
        return samples.astype(np.float32)

    return load


def faint_noise(original: Any) -> Any:
    """Add white noise of at most three 16-bit steps."""

    def load(file: Any, sr: int = 16_000) -> np.ndarray:
        samples = original(file, sr)
        return samples + np.random.default_rng(0).uniform(-1e-4, 1e-4, len(samples)).astype(np.float32)

    return load


FAULTS = [
    Fault(
        "44.1 kHz for 48",
        "audio.samples",
        "a sample rate written into the code",
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
        "np.interp to a program's usual 44.1 kHz, then to 16 kHz",
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
        "np.log taken for the base-10 logarithm",
        {"audio.np": numpy_with(log10=np.log)},
        op="log_mel",
    ),
    Fault(
        "max - 8 clamp missing",
        "log_mel",
        "a line that looks harmless to leave out",
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
        "librosa's default since 0.10; torch.stft reflects",
        {"audio.np": numpy_with(pad=zero_padded)},
        op="log_mel",
    ),
    Fault(
        "window padded at the front",
        "transcribe.window.1.log_mel",  # the first one is full
        "left padding, as in batches of language models",
        {"transcription.recording.pad_or_trim": instead(padded_in_front)},
    ),
]
