"""The dtypes that ops are proven in, and what rounding does in them."""

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def unit_roundoff(dtype: np.dtype) -> float:
    """Half the distance from 1 to the next larger number: the largest relative error of one rounding to nearest."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def smallest_subnormal(dtype: np.dtype) -> float:
    """The smallest number above 0."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal)


def flushed_below(dtype: np.dtype) -> float:
    """Below this a number may be taken for 0. Fast code lets the processor flush subnormal numbers, and MAX's does: those of float32 and
    bfloat16, but not float16's, which are normal numbers of the float32 that it computes in.
    """
    return max(float(np.finfo(np.float32).tiny), smallest_subnormal(dtype))


def largest(dtype: np.dtype) -> float:
    """The largest finite number."""
    return float(ml_dtypes.finfo(dtype).max)
