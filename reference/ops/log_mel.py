"""Rows: the log-mel spectrogram, which the host computes, and its bands as a GPU has them."""

import numpy as np

from reference.numerics import definitions
from reference.numerics.bounds import FUNCTION_ULPS, FUNCTIONS, SINGLE_TINY, Approx, Roundings, gamma, matmul
from reference.ops.row import Input, Op


def bands_bound(magnitude: Approx, filters: np.ndarray, roundings: Roundings) -> Approx:
    """Frequencies' magnitudes [n_frames, n] to log10 of bands [n_mels, n_frames]: squares, their sum, γ_n over a filter, a logarithm."""
    u = roundings.accumulate
    value, worst, typical = magnitude.value, magnitude.worst, magnitude.typical
    squared = Approx(value**2, (2 * value + worst) * worst, (2 * value + typical) * typical)
    bands = matmul(squared.rounded(2 * u, SINGLE_TINY), Approx.exact(filters.T), u)
    floored = bands.through(lambda band: np.log10(np.maximum(band.T, 1e-10)))
    off = 2 * FUNCTION_ULPS * u * np.abs(floored.value) + roundings.functions.logarithm
    return Approx(
        floored.value,
        floored.worst + off,
        np.hypot(floored.typical, u * np.abs(floored.value) + roundings.functions.logarithm / 2),
    )


class LogMel(Op, row="log_mel"):
    """Samples to log10 of mel bands, no lower than 1e-10 nor 8 below the maximum, then (x + 4) / 4.

    Spectrum: a fast Fourier transform of N points is off by log2(N) η of the 2-norm of all its coefficients, η = u + γ_4 (√2 + u)
    (Higham, theorem 24.2; radix 4 and 5 round no more often than the stages of radix 2 they stand for, a real transform takes one stage
    more), and each coefficient no more than all; typically by 0.6 u √log2(N) of their root mean square (Schatzman, *Accuracy of the
    discrete Fourier transform and the fast Fourier transform*, 1996). So an error belongs to a frame, and weighs heavily on bands that
    are quiet beside the frame's loudest. The window, made in float32, is off by the rounding of an angle (up to 2π u / 2), of a cosine
    (`FUNCTION_ULPS`, half of them) and of 1 - cos, against 1 however small it is itself; its product rounds once. Power: two squares
    and a sum. Bands: γ_n over a filter's terms. Logarithm and clamps are taken at the ends of the interval; the second one inherits the
    loudest element's.
    """

    sensitivity_case = ("samples", {"n_samples": 400}, {"samples": "one_hot"})
    n_mels = 80
    inputs = {
        "samples": Input(
            "n_samples", ("normal", "large", "sparse", "one_hot", "constant", "zeros", "tiny", "near_epsilon")
        )
    }
    build = "adapters.log_mel"
    on_host = True
    torch = "log_mel"
    dtypes = ("float32",)  # samples are float32 whatever the model computes in
    large_shape = {"n_samples": 48_000}

    @classmethod
    def define(cls, samples: np.ndarray) -> np.ndarray:
        return definitions.log_mel_spectrogram(samples, cls.n_mels)

    @classmethod
    def bound(cls, roundings: Roundings, samples: np.ndarray) -> Approx:
        filters = definitions.mel_filters(cls.n_mels).astype(np.float64)
        u = roundings.accumulate
        frames = definitions.frames(samples)
        magnitude = np.abs(np.fft.rfft(frames * definitions.HANN))
        loud, windowed = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (frames, frames * definitions.HANN))
        stages = np.log2(definitions.N_FFT) + 1
        worst = np.sqrt(definitions.N_FFT) * (windowed * stages * (u + gamma(4, u) * (np.sqrt(2) + u)) + loud * 9 * u)
        typical = windowed * 0.6 * u * np.sqrt(stages) + loud * u
        if roundings.functions == FUNCTIONS["gpu"]:  # there it is `LogMelBands`
            worst, typical = (
                np.maximum(*errors) for errors in zip((worst, typical), _products_bound(frames * definitions.HANN, u))
            )
        log_mel = bands_bound(Approx(magnitude, worst, typical), filters, roundings)
        clamped = log_mel.maximum((log_mel.largest() + Approx.exact(np.asarray(-8.0))).rounded(u))
        return (clamped + Approx.exact(np.asarray(4.0))).rounded(u) * Approx.exact(np.asarray(0.25))


class LogMel128(LogMel):
    """The same with the 128 bands of large-v3 and turbo; judged where such a model is, and no row of its own."""

    n_mels = 128
    torch = "log_mel_128"


def _frames(hops: np.ndarray, rest: np.ndarray) -> np.ndarray:
    samples = np.concatenate([hops, rest]).reshape(-1)
    return np.lib.stride_tricks.sliding_window_view(samples, definitions.N_FFT)[:: definitions.HOP_LENGTH][: len(hops)]


def _products_bound(windowed: np.ndarray, u: float) -> tuple[np.ndarray, np.ndarray]:
    """How far the frequencies of frames may be off, at worst and typically: see `LogMelBands`."""
    worst = 2 * gamma(72, u) * np.abs(windowed).sum(-1, keepdims=True) + SINGLE_TINY
    return worst, 4 * u * np.linalg.norm(windowed, axis=-1, keepdims=True) + SINGLE_TINY


class LogMelBands(Op, row="log_mel_bands"):
    """Samples to log10 of mel bands by products of small matrices, `maxwhisper.engine.log_mel.log_mel_bands`.

    Two sums, of 20 and of 40 terms, and between them two products and a sum; window and matrices are rounded once each, so an output of
    the transform is off by no more than γ_72 of the sum of all its terms, which the second sum takes twice (its real and its imaginary
    parts). Typically, by `bounds.matmul`'s model for sums of n terms with mixed signs, u √((n/2 + 1)/3) of their 2-norm each: 2 u and 2.7
    u, and u for each of the four other roundings; together 4 u. Behind it as in `LogMel`.
    """

    sensitivity_case = ("hops", {"n_frames": 3}, {"hops": "one_hot", "rest": "zeros"})
    inputs = {
        "hops": Input("n_frames 160", ("normal", "large", "sparse", "one_hot", "constant", "zeros", "near_epsilon")),
        "rest": Input("2 160", ("normal", "zeros")),
    }
    build = "adapters.log_mel_bands"
    dtypes = ("float32",)
    torch = "log_mel_bands"
    large_shape = {"n_frames": 300}

    @staticmethod
    def define(hops: np.ndarray, rest: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(_frames(hops, rest) * definitions.HANN)) ** 2
        return np.log10(np.maximum(definitions.mel_filters(80).astype(np.float64) @ power.T, 1e-10))

    @staticmethod
    def bound(roundings: Roundings, hops: np.ndarray, rest: np.ndarray) -> Approx:
        u, windowed = roundings.accumulate, _frames(hops, rest) * definitions.HANN
        magnitude = np.abs(np.fft.rfft(windowed))
        worst, typical = _products_bound(windowed, u)
        return bands_bound(Approx(magnitude, worst, typical), definitions.mel_filters(80).astype(np.float64), roundings)


LOG_MELS = {op.n_mels: op for op in (LogMel, LogMel128)}
