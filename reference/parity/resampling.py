"""How far samples that FFmpeg has resampled may be from another sound resampler's, where every sound resampler is flat.

FFmpeg's filter (libswresample's defaults) is a windowed sinc of `N_CROSSINGS` zero crossings, cut off at `CUTOFF` of half the lower rate,
under Kaiser's window of β = 9. That window's main lobe is √(1 + (β/π)²) = 3.0 of its bins wide to each side, a bin being 2 / 32 of half
the lower rate: up to 0.97 - 0.97 · 3.0 / 16 = 0.79 of it the filter is flat, and what it lets through from above 1.15 of it folds to no
lower than that. Flat to Kaiser's 8.7 + β / 0.1102 = 90 dB, that is 2^-15.
"""

from math import hypot, sqrt

import numpy as np
from scipy import ndimage, signal

from maxwhisper.audio import SAMPLE_RATE

N_CROSSINGS, CUTOFF = 32, 0.97
PASSED_BAND = 0.79
RIPPLE = 2.0**-15
STEP = 2.0**-15  # of 16-bit samples
ROUNDING = STEP / sqrt(12)  # root mean square of what rounding to one does
# On speech and white noise, 19 rates of 7350 to 192000 Hz, FFmpeg 9.0 came to 0.9 of `expected_error` at most and FFmpeg 5.1 to 1.0;
# straight lines to 10 at least where there is anything to be lost. (5.1 comes to 3 on tones as loud as can be whose rate is a multiple of
# 16 kHz: all results then share one set of rounded taps. 9.0 rounds none.)
MARGIN = 2.0

# The judge's own filter: 511 taps at 16 kHz, Kaiser's β = 10, which is 100 dB down 200 Hz above the end of its band.
N_TAPS, BETA, TRANSITION = 511, 10.0, 200.0
FULL_SCALE = 1 - STEP
N_END = 130  # samples of the lower rate that soxr's filter reaches over: what lies beyond the ends, each resampler supposes for itself


def expected_error(mono: np.ndarray, rate: int, n_channels: int) -> float:
    """What FFmpeg's samples are typically off by, as a root mean square, where its filter is flat; of a file's samples and rate.

    Errors that know nothing of each other, so their squares add up: the result is rounded to 16 bits, and the mean of several channels,
    too; the filter's ripple; and, in FFmpeg 5 for files of 16 bits, each tap of the filter is rounded, of which there are N_CROSSINGS in
    `CUTOFF` of the lower rate's samples.
    """
    n_taps = N_CROSSINGS / CUTOFF * max(1.0, rate / SAMPLE_RATE)
    size = sqrt(np.mean(np.square(mono), dtype=np.float64)) if len(mono) else 0.0
    return hypot(ROUNDING, ROUNDING if n_channels > 1 else 0.0, size * RIPPLE, size * ROUNDING * sqrt(n_taps))


def passed_error(samples: np.ndarray, witness: np.ndarray, rate: int) -> float:
    """The root mean square by which samples differ from a witness's where both resamplers are flat, away from the recording's ends.

    samples [n], witness [n, n_channels] at 16 kHz, not clipped; rate: the file's. Near samples at full scale nothing is compared: what is
    cut off there belongs to all frequencies. 0 where nothing is left.
    """
    lower = min(rate, SAMPLE_RATE)
    taps = signal.firwin(N_TAPS, PASSED_BAND * lower / 2 - TRANSITION / 2, window=("kaiser", BETA), fs=SAMPLE_RATE)
    n_end = N_END * SAMPLE_RATE // lower
    is_open = (np.abs(witness).max(axis=1) < FULL_SCALE) & (np.abs(samples) < FULL_SCALE)
    is_open[:n_end] = is_open[-n_end:] = False
    error = signal.fftconvolve(samples - witness.mean(axis=1), taps, "same")[ndimage.minimum_filter1d(is_open, N_TAPS)]
    return sqrt(np.mean(error**2)) if len(error) else 0.0
