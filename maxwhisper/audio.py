"""Reading audio files as 16 kHz samples, and log-mel spectrograms of samples."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from maxwhisper.errors import AudioError, OptionError
from maxwhisper.system import n_cores

SAMPLE_RATE = 16_000
N_FFT = 400
HOP_LENGTH = 160
CHUNK_LENGTH = 30  # seconds in the window that the encoder sees
N_SAMPLES = CHUNK_LENGTH * SAMPLE_RATE
N_FRAMES = N_SAMPLES // HOP_LENGTH
N_SAMPLES_PER_TOKEN = 2 * HOP_LENGTH  # the encoder's second convolution takes every other frame
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
TOKENS_PER_SECOND = SAMPLE_RATE // N_SAMPLES_PER_TOKEN

Audio = str | os.PathLike[str] | BinaryIO | np.ndarray  # a file, or float samples [n_samples] at 16 kHz


def load_audio(
    file: str | os.PathLike[str] | BinaryIO, sr: int = SAMPLE_RATE, *, track: int | None = None
) -> np.ndarray:
    """Decode a file's audio and mix it down to one channel, as `whisper.load_audio`.

    FFmpeg's program decodes it: wav, flac, mp3, ogg, m4a, mp4, webm and many other formats. A file
    that is damaged, looks truncated or contains NaN or infinite samples is read as far as possible,
    with an AudioWarning.

    Args:
        file: A path, a URL, or an open binary file, which is read to its end.
        sr: The sample rate of the result, in Hz.
        track: The index of the file's sound track, counted from 0. By default FFmpeg chooses: the
            track marked as default, else the one with the most channels, else the first.

    Returns:
        float32 [n_samples] in [-1, 1]; empty for a file without samples.

    Raises:
        AudioError: The file is missing, contains no audio, or can't be decoded at all.
        OptionError: `track` is not a track number.
    """
    from maxwhisper.audio_file import read_samples  # only here: samples in memory don't need it

    check_track(track)
    return read_samples(os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else file, sr, track)


def check_track(track: int | None) -> None:
    """Check that a sound track's index is None or an integer that is not negative.

    Raises:
        OptionError: It is neither.
    """
    if track is not None and (isinstance(track, bool) or not isinstance(track, int | np.integer) or track < 0):
        raise OptionError(f"audio_track {track!r} is not a track number; 0 is the first, None takes the default one")


def as_samples(audio: Audio, track: int | None = None) -> np.ndarray:
    """Return audio as float32 samples [n_samples].

    Args:
        audio: A file, which is read, or float samples [n_samples].
        track: The index of the file's sound track, as in `load_audio`.

    Raises:
        AudioError: The file can't be read, or the array is not one-dimensional, real and finite.
        OptionError: `track` is not a track number.
    """
    if isinstance(audio, (str, os.PathLike)) or (not isinstance(audio, np.ndarray) and hasattr(audio, "read")):
        return load_audio(audio, track=track)
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"audio has shape {samples.shape} and type {samples.dtype}; "
            "give one channel of floating-point samples in [-1, 1]"
        )
    samples = samples.astype(np.float32, copy=False)
    not_finite = np.flatnonzero(~np.isfinite(samples))
    if len(not_finite):
        raise AudioError(
            f"audio has {len(not_finite)} samples that are NaN or infinite, the first at {not_finite[0]}; "
            "repair the recording"
        )
    return samples


def pad_or_trim(array: np.ndarray, length: int = N_SAMPLES, *, axis: int = -1) -> np.ndarray:
    """Cut `array` to `length` along `axis`, or pad it with zeros, as `whisper.pad_or_trim`."""
    array = np.asanyarray(array)  # a tensor is accepted too
    array = array.take(range(min(length, array.shape[axis])), axis=axis)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return np.pad(array, widths).view(type(array))


@lru_cache
def mel_filters(n_mels: int) -> np.ndarray:
    """Return the filterbank that maps a power spectrum to mel bands.

    The filters are triangles of unit area, evenly spaced on Slaney's mel scale. They equal those of
    `librosa.filters.mel(sr=16000, n_fft=400)` and of OpenAI's `mel_filters.npz` bit for bit.

    Returns:
        float32 [n_mels, N_FFT // 2 + 1].
    """
    frequencies = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    widths = np.diff(edges)
    ramps = edges[:, None] - frequencies
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    areas = 2.0 / (edges[2:] - edges[:-2])
    return (triangles * areas[:, None]).astype(np.float32)


# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1000 Hz, logarithmic above.
_HZ_PER_MEL = 200.0 / 3
_LOG_HZ = 1000.0
_LOG_MEL = _LOG_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return _LOG_MEL + np.log(hz / _LOG_HZ) / _LOG_STEP


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels >= _LOG_MEL, _LOG_HZ * np.exp(_LOG_STEP * (mels - _LOG_MEL)), _HZ_PER_MEL * mels)


class HostArray(np.ndarray):
    """An array with the method `to` of tensors, for programs written for OpenAI Whisper."""

    def to(self, *_: object, **__: object) -> "HostArray":
        """Return the array itself: the model copies its input to its device."""
        return self


def log_mel_spectrogram(audio: Audio, n_mels: int = 80, padding: int = 0, device: Any = None) -> HostArray:
    """Compute the log-mel spectrogram that Whisper takes, as `whisper.log_mel_spectrogram`.

    The steps are: a short-time Fourier transform with a periodic Hann window of 25 ms, centred and
    reflected at the ends; the power; mel bands, at least 1e-10; log10, at least the maximum less 8;
    (x + 4) / 4.

    Args:
        audio: A file, or float samples [n_samples] at 16 kHz.
        n_mels: The number of mel bands.
        padding: The number of zero samples to append.
        device: Accepted for compatibility and ignored.

    Returns:
        float32 [n_mels, n_frames], a frame for every 10 ms.

    Raises:
        AudioError: The audio can't be read, or has with its padding 200 samples or fewer, too few
            to reflect.
    """
    return scaled(log_mel_bands(reflected(audio, padding), n_mels)).view(HostArray)


def reflected(audio: Audio, padding: int) -> np.ndarray:
    """Return the samples that frames are cut from, reflected at the ends.

    Args:
        audio: A file, or float samples [n_samples] at 16 kHz.
        padding: The number of zero samples to append.

    Returns:
        float32 [n_samples + padding + 400].

    Raises:
        AudioError: As in `log_mel_spectrogram`.
    """
    samples = as_samples(audio)
    half, n_samples = N_FFT // 2, len(samples) + padding
    if n_samples <= half:
        raise AudioError(f"{n_samples} samples are too few for a spectrogram; give at least {half + 1}, or padding")
    padded = np.pad(samples, (half, padding + half))  # copies once; the ends are then reflected in place
    padded[:half] = np.pad(padded[half : 2 * half + 1], (half, 0), mode="reflect")[:half]
    padded[-half:] = np.pad(padded[-2 * half - 1 : -half], (0, half), mode="reflect")[-half:]
    return padded


def scaled(log_mel: np.ndarray) -> np.ndarray:
    """Scale `log_mel_bands` of all frames, in place: at least the maximum less 8, (x + 4) / 4."""
    np.maximum(log_mel, log_mel.max() - 8.0, out=log_mel)
    log_mel += 4.0
    log_mel /= 4.0
    return log_mel


def log_mel_bands(padded: np.ndarray, n_mels: int) -> np.ndarray:
    """Compute log10 of the mel bands, at least 1e-10, of each frame except the last.

    Args:
        padded: Reflected samples, float32 [n_samples + 400].
        n_mels: The number of mel bands.

    Returns:
        float32 [n_mels, n_frames].
    """
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:-1]
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    filters = mel_filters(n_mels)
    n_frames = _SMALL_PRODUCT // filters.size  # in one product

    log_mel = np.empty((n_mels, len(frames)), np.float32)

    def transform(start: int) -> None:
        spectrum = np.fft.rfft(frames[start : start + _BLOCK] * window)
        power = spectrum.real**2 + spectrum.imag**2
        mel = np.concatenate(
            [filters @ part.T for part in np.split(power, range(n_frames, len(power), n_frames))], axis=1
        )
        log_mel[:, start : start + _BLOCK] = np.log10(np.maximum(mel, 1e-10))

    with ThreadPoolExecutor(n_cores()) as pool:  # NumPy releases the interpreter lock while it computes
        list(pool.map(transform, range(0, len(frames), _BLOCK)))
    return log_mel


# A product of at most so many multiplications: OpenBLAS computes it without threads of its own,
# which would compete with those of the pool.
_SMALL_PRODUCT = 2**18
_BLOCK = 100  # frames to transform at a time; their results fit the CPU's cache
