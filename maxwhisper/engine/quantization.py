"""Weights rounded to 8 bits, as CTranslate2's `compute_type="int8"` does it: a scale for each output, and whole numbers up to 127."""

from collections.abc import Mapping

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from maxwhisper.engine.dtypes import bfloat16_bits

LARGEST = 127


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight float [n_out, n_in] to int8 [n_out, n_in] and float32 scales [n_out], whose product is as near to it as can be."""
    numbers, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    for start in range(0, len(weight), _TOGETHER):
        outputs = slice(start, start + _TOGETHER)
        rows = weight[outputs].astype(np.float32)
        largest = np.abs(rows).max(axis=1)
        scale[outputs] = np.where(largest > 0, largest, LARGEST) / np.float32(LARGEST)
        numbers[outputs] = np.rint(rows / scale[outputs, None])
    return numbers, scale


_TOGETHER = 1024  # outputs, so that a vocabulary's weights are not there in float32, too


def scale_of(name: str) -> str:
    """The name of a rounded weight's scales: `….scale` for `….weight`."""
    return name.removesuffix("weight") + "scale"


def as_stored(weights: Mapping[str, np.ndarray], dtypes: Mapping[str, DType]) -> dict[str, np.ndarray | Buffer]:
    """Copies of weights in the dtypes that graphs hold them in, and the scales of those that are rounded."""
    stored = dict[str, np.ndarray | Buffer]()
    for name, dtype in dtypes.items():
        if dtype == DType.int8:
            stored[name], stored[scale_of(name)] = quantize(weights[name])
        elif dtype == DType.bfloat16:
            stored[name] = Buffer.from_numpy(bfloat16_bits(weights[name])).view(DType.bfloat16)
        else:
            stored[name] = np.array(weights[name], dtype.to_numpy(), order="C")
    return stored
