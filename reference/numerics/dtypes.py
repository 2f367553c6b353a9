"""The dtypes that ops are tested in, and the limits of their rounding."""

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def unit_roundoff(dtype: np.dtype) -> float:
    """Return the largest relative error of one rounding to nearest.

    It is half the distance from 1 to the next larger number.
    """
    return float(ml_dtypes.finfo(dtype).eps) / 2


def smallest_subnormal(dtype: np.dtype) -> float:
    """Return the smallest number above 0."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal)


def flushed_below(dtype: np.dtype) -> float:
    """Return the magnitude below which a number may be flushed to 0.

    Fast code lets the processor flush subnormal numbers, and MAX's code does. This affects the
    subnormal numbers of float32 and bfloat16. Those of float16 are normal numbers of float32, which
    MAX computes in.
    """
    return max(float(np.finfo(np.float32).tiny), smallest_subnormal(dtype))


def largest(dtype: np.dtype) -> float:
    """Return the largest finite number."""
    return float(ml_dtypes.finfo(dtype).max)
