"""Audio files to 16 kHz samples, and samples to log-mel spectrograms."""

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
    """Decode a file's audio: float32 [n_samples] in [-1, 1], mixed down to one channel, at `sr` Hz; as `whisper.load_audio`.

    file: a path, a URL, or a file that is open, which is read to its end. track: which of its sound tracks, counted from 0; by default the
    one that FFmpeg takes: the default one, or else that of most channels, or else the first.

    Reads what FFmpeg reads (wav, flac, mp3, ogg, m4a, mp4, webm, …), by its program. A file without samples gives none. One that looks
    cut short, is damaged or holds samples that are no finite number is read as far as it goes, with an AudioWarning.

    Raises AudioError if the file is missing, holds no audio, or can't be decoded at all; OptionError for what is no track's number.
    """
    from maxwhisper.audio_file import read_samples  # only here: samples in memory don't need it

    check_track(track)
    return read_samples(os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else file, sr, track)


def check_track(track: int | None) -> None:
    """Raises OptionError for what can't be the number of a sound track."""
    if track is not None and (isinstance(track, bool) or not isinstance(track, int | np.integer) or track < 0):
        raise OptionError(f"audio_track {track!r} is no track's number; 0 is the first, and None takes the default one")


def as_samples(audio: Audio, track: int | None = None) -> np.ndarray:
    """A file's samples, or an array's as float32 [n_samples]. track: as in `load_audio`.

    Raises AudioError if the file can't be read, or the array is not one-dimensional, real and finite.
    """
    if isinstance(audio, (str, os.PathLike)) or (not isinstance(audio, np.ndarray) and hasattr(audio, "read")):
        return load_audio(audio, track=track)
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"audio has shape {samples.shape} and type {samples.dtype}; give one channel of floating-point samples in [-1, 1]"
        )
    samples = samples.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise AudioError(
            f"audio has {len(bad)} samples that are no finite number, the first at {bad[0]}; repair the recording"
        )
    return samples


def pad_or_trim(array: np.ndarray, length: int = N_SAMPLES, *, axis: int = -1) -> np.ndarray:
    """Cut `array` to `length` along `axis`, or fill it up with zeros, as `whisper.pad_or_trim`."""
    array = np.asanyarray(array)  # of a tensor, too
    array = array.take(range(min(length, array.shape[axis])), axis=axis)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return np.pad(array, widths).view(type(array))


@lru_cache
def mel_filters(n_mels: int) -> np.ndarray:
    """The filterbank that turns a power spectrum into mel bands: float32 [n_mels, N_FFT // 2 + 1].

    Triangles evenly spaced on Slaney's mel scale, each of unit area, bit for bit those of `librosa.filters.mel(sr=16000, n_fft=400)`
    and of OpenAI's `mel_filters.npz`.
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
    """An array with the method by which programs for OpenAI Whisper send tensors to the model's device; `maxwhisper` does so by itself."""

    def to(self, *_: object, **__: object) -> "HostArray":
        return self


def log_mel_spectrogram(audio: Audio, n_mels: int = 80, padding: int = 0, device: Any = None) -> HostArray:
    """The log-mel spectrogram that Whisper hears: float32 [n_mels, n_frames], one frame each 10 ms.

    padding: zero samples appended; device: taken for compatibility. As `whisper.log_mel_spectrogram`: a short-time
    Fourier transform with a periodic Hann window of 25 ms, centred and reflected at the ends; power; mel bands; log10, no lower than
    1e-10 nor 8 below the maximum; then (x + 4) / 4.

    Raises AudioError where the audio can't be read or is shorter, padding included, than the reflection needs.
    """
    return scaled(log_mel_bands(reflected(audio, padding), n_mels)).view(HostArray)


def reflected(audio: Audio, padding: int) -> np.ndarray:
    """The samples that frames are cut from, float32 [n_samples + padding + 400], reflected at the ends. Raises as `log_mel_spectrogram`."""
    samples = as_samples(audio)
    half, n_samples = N_FFT // 2, len(samples) + padding
    if n_samples <= half:
        raise AudioError(f"{n_samples} samples are too few for a spectrogram; give at least {half + 1}, or padding")
    padded = np.pad(samples, (half, padding + half))  # one copy of all samples; the ends are reflected in place
    padded[:half] = np.pad(padded[half : 2 * half + 1], (half, 0), mode="reflect")[:half]
    padded[-half:] = np.pad(padded[-2 * half - 1 : -half], (0, half), mode="reflect")[-half:]
    return padded


def scaled(log_mel: np.ndarray) -> np.ndarray:
    """`log_mel_bands` of all frames as Whisper hears them, in place: no lower than 8 below the maximum, then (x + 4) / 4."""
    np.maximum(log_mel, log_mel.max() - 8.0, out=log_mel)
    log_mel += 4.0
    log_mel /= 4.0
    return log_mel


def log_mel_bands(padded: np.ndarray, n_mels: int) -> np.ndarray:
    """log10 of mel bands, no lower than 1e-10, of each frame but the last; padded float32 [n_samples + 400]; float32 [n_mels, n_frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:-1]
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    filters = mel_filters(n_mels)
    n_alone = _SMALL_PRODUCT // filters.size  # frames

    log_mel = np.empty((n_mels, len(frames)), np.float32)

    def transform(start: int) -> None:
        spectrum = np.fft.rfft(frames[start : start + _BLOCK] * window)
        power = spectrum.real**2 + spectrum.imag**2
        mel = np.concatenate(
            [filters @ some.T for some in np.split(power, range(n_alone, len(power), n_alone))], axis=1
        )
        log_mel[:, start : start + _BLOCK] = np.log10(np.maximum(mel, 1e-10))

    with ThreadPoolExecutor(n_cores()) as pool:  # NumPy lets go of the interpreter while it computes
        list(pool.map(transform, range(0, len(frames), _BLOCK)))
    return log_mel


_SMALL_PRODUCT = (
    2**18
)  # multiplications for which OpenBLAS starts no threads; its threads and ours would wait for each other
_BLOCK = 100  # frames transformed at a time: what comes of them stays in the processor's cache
