"""Rows: the log-mel spectrogram, which the host computes, and its mel bands on a GPU."""

import numpy as np

from reference.numerics import definitions
from reference.numerics.bounds import FUNCTION_ULPS, FUNCTIONS, SINGLE_TINY, Approx, Roundings, gamma, matmul
from reference.ops.row import Input, Op


def bands_bound(magnitude: Approx, filters: np.ndarray, roundings: Roundings) -> Approx:
    """Bound log10 of the mel bands: squares, their sum, γ_n over a filter, and a logarithm.

    Args:
        magnitude: Magnitudes of the frequencies, [n_frames, n].
        filters: Mel filters, [n_mels, n].
        roundings: The roundings of the op.

    Returns:
        Shape [n_mels, n_frames].
    """
    u = roundings.accumulate
    value, worst, typical = magnitude.value, magnitude.worst, magnitude.typical
    squared = Approx(value**2, (2 * value + worst) * worst, (2 * value + typical) * typical)
    bands = matmul(squared.rounded(2 * u, SINGLE_TINY), Approx.exact(filters.T), u)
    floored = bands.through(lambda band: np.log10(np.maximum(band.T, 1e-10)))
    error = 2 * FUNCTION_ULPS * u * np.abs(floored.value) + roundings.functions.logarithm
    return Approx(
        floored.value,
        floored.worst + error,
        np.hypot(floored.typical, u * np.abs(floored.value) + roundings.functions.logarithm / 2),
    )


class LogMel(Op, row="log_mel"):
    """log10 of mel bands of at least 1e-10, clamped to 8 below the maximum, then (x + 4) / 4.

    Spectrum, worst case: the error of a fast Fourier transform of N points is at most log2(N) η of
    the 2-norm of all its coefficients, with η = u + γ_4 (√2 + u) (Higham, theorem 24.2). Radix 4
    and 5 round no more often than the stages of radix 2 that they replace. A real transform needs
    one more stage. The error of each coefficient is at most the error of all.

    Spectrum, typical: the error is 0.6 u √log2(N) of the coefficients' root mean square (Schatzman,
    *Accuracy of the discrete Fourier transform and the fast Fourier transform*, 1996).

    So the error depends on the whole frame. It is relatively large in bands that are much quieter
    than the frame's loudest.

    Window: it is computed in float32. Its errors are the rounding of an angle (up to 2π u / 2), of
    a cosine (`FUNCTION_ULPS`, half of them) and of 1 - cos. They are relative to 1, even if the
    window itself is small. Its product with the samples adds one rounding.

    Power: two squares and a sum. Bands: γ_n over a filter's terms. The logarithm and the clamps are
    evaluated at the ends of the interval. The second clamp inherits the error of the loudest
    element.
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
    dtypes = ("float32",)  # samples are float32 in every precision of the model
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
        if roundings.functions == FUNCTIONS["gpu"]:  # a GPU computes `LogMelBands`
            worst, typical = (
                np.maximum(*errors) for errors in zip((worst, typical), _products_bound(frames * definitions.HANN, u))
            )
        log_mel = bands_bound(Approx(magnitude, worst, typical), filters, roundings)
        clamped = log_mel.maximum((log_mel.largest() + Approx.exact(np.asarray(-8.0))).rounded(u))
        return (clamped + Approx.exact(np.asarray(4.0))).rounded(u) * Approx.exact(np.asarray(0.25))


class LogMel128(LogMel):
    """`LogMel` with the 128 bands of large-v3 and turbo.

    It is not a row of its own. It is judged only with such a model.
    """

    n_mels = 128
    torch = "log_mel_128"


def _frames(hops: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Join hops [n, 160] and rest [2, 160], and split them into n overlapping frames [n, 400]."""
    samples = np.concatenate([hops, rest]).reshape(-1)
    return np.lib.stride_tricks.sliding_window_view(samples, definitions.N_FFT)[:: definitions.HOP_LENGTH][: len(hops)]


def _products_bound(windowed: np.ndarray, u: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the worst-case and the typical error of a spectrum by products, see `LogMelBands`."""
    worst = 2 * gamma(72, u) * np.abs(windowed).sum(-1, keepdims=True) + SINGLE_TINY
    return worst, 4 * u * np.linalg.norm(windowed, axis=-1, keepdims=True) + SINGLE_TINY


class LogMelBands(Op, row="log_mel_bands"):
    """log10 of mel bands by products of small matrices, `maxwhisper.engine.log_mel.log_mel_bands`.

    The transform is two sums, of 20 and of 40 terms, with two products and a sum between them.
    Window and matrices are rounded once each.

    Worst case: the error of an output of the transform is at most γ_72 of the sum of all its terms.
    The second sum takes all terms twice, for the real and the imaginary parts.

    Typical: by `bounds.matmul`'s model for sums of n terms with mixed signs, the error of a sum is
    u √((n/2 + 1)/3) of the 2-norm. This is 2 u and 2.7 u for the two sums. Each of the four other
    roundings adds u. Together these are 4 u.

    The steps after the transform are bounded as in `LogMel`.
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
