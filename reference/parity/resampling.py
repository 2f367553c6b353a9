"""The limit for differences between samples resampled by FFmpeg and by a different resampler.

The limit holds in the passband of both filters. FFmpeg's filter (libswresample's defaults) is a
windowed sinc of `N_CROSSINGS` zero crossings with a Kaiser window of β = 9. Its cutoff is `CUTOFF`
of half the lower rate. The main lobe of the window is √(1 + (β/π)²) = 3.0 bins wide to each side,
and a bin is 2 / 32 of half the lower rate. So the filter is flat up to 0.97 - 0.97 · 3.0 / 16 =
0.79 of half the lower rate. It may pass frequencies up to 1.15 of half the lower rate, but these
alias to no lower than 0.85. The ripple is 8.7 + β / 0.1102 = 90 dB down (Kaiser), that is 2^-15.
"""

from math import hypot, sqrt

import numpy as np
from scipy import ndimage, signal

from maxwhisper.audio import SAMPLE_RATE

N_CROSSINGS, CUTOFF = 32, 0.97
PASSED_BAND = 0.79
RIPPLE = 2.0**-15
STEP = 2.0**-15  # quantization step of 16-bit samples
ROUNDING = STEP / sqrt(12)  # root mean square of the error of rounding to a step
# Measured on speech and white noise at 19 rates from 7350 to 192000 Hz: the error of FFmpeg 9.0 is
# at most 0.9 times `expected_error`, that of FFmpeg 5.1 at most 1.0 times. Linear interpolation has
# at least 10 times, if there are high frequencies to lose. (FFmpeg 5.1 reaches 3 times on tones at
# full scale whose rate is a multiple of 16 kHz, because all results then share one set of rounded
# taps. FFmpeg 9.0 does not round taps.)
MARGIN = 2.0

# The filter for the comparison: 511 taps at 16 kHz, Kaiser window of β = 10. It is 100 dB down at
# 200 Hz above the end of its passband.
N_TAPS, BETA, TRANSITION = 511, 10.0, 200.0
FULL_SCALE = 1 - STEP
# Length of soxr's filter in samples of the lower rate. That close to the ends of a recording, each
# resampler makes its own assumption about the samples beyond them.
N_END = 130


def expected_error(mono: np.ndarray, rate: int, n_channels: int) -> float:
    """Compute the typical error (root mean square) of FFmpeg's samples in its filter's passband.

    The errors are independent, so their squares add up. They are the rounding of the result to 16
    bits, the rounding of the mean of several channels to 16 bits, the ripple of the filter and, in
    FFmpeg 5 for 16-bit files, the rounding of each tap of the filter. The filter spans
    `N_CROSSINGS` / `CUTOFF` samples of the lower rate.

    Args:
        mono: the file's samples, mixed down: [n].
        rate: the file's sampling rate in Hz.
        n_channels: the file's number of channels.
    """
    n_taps = N_CROSSINGS / CUTOFF * max(1.0, rate / SAMPLE_RATE)
    size = sqrt(np.mean(np.square(mono), dtype=np.float64)) if len(mono) else 0.0
    return hypot(ROUNDING, ROUNDING if n_channels > 1 else 0.0, size * RIPPLE, size * ROUNDING * sqrt(n_taps))


def passed_error(samples: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Compute the root mean square of the difference between two resamplers in both passbands.

    Samples near the recording's ends are not compared. Nor are those near samples at full scale,
    because clipping changes all frequencies.

    Args:
        samples: FFmpeg's, at 16 kHz: [n].
        reference: those of the other resampler at 16 kHz, not clipped: [n, n_channels].
        rate: the file's sampling rate in Hz.

    Returns:
        0 if no samples are left to compare.
    """
    lower = min(rate, SAMPLE_RATE)
    taps = signal.firwin(N_TAPS, PASSED_BAND * lower / 2 - TRANSITION / 2, window=("kaiser", BETA), fs=SAMPLE_RATE)
    n_end = N_END * SAMPLE_RATE // lower
    is_comparable = (np.abs(reference).max(axis=1) < FULL_SCALE) & (np.abs(samples) < FULL_SCALE)
    is_comparable[:n_end] = is_comparable[-n_end:] = False
    is_compared = ndimage.minimum_filter1d(is_comparable, N_TAPS)
    error = signal.fftconvolve(samples - reference.mean(axis=1), taps, "same")[is_compared]
    return sqrt(np.mean(error**2)) if len(error) else 0.0
