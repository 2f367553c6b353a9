"""Weights quantized to int8 with a scale per output, as by CTranslate2's `compute_type="int8"`."""

from collections.abc import Mapping

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from maxwhisper.engine.dtypes import bfloat16_bits

LARGEST = 127  # the largest quantized value


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a weight per output channel, with scale max|row| / 127.

    Args:
        weight: float [n_out, n_in].

    Returns:
        The int8 values [n_out, n_in] and the float32 dequantization scales [n_out].
    """
    quantized, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    for start in range(0, len(weight), _OUTPUTS_AT_ONCE):
        outputs = slice(start, start + _OUTPUTS_AT_ONCE)
        rows = weight[outputs].astype(np.float32)
        largest = np.abs(rows).max(axis=1)
        scale[outputs] = np.where(largest > 0, largest, LARGEST) / np.float32(LARGEST)
        quantized[outputs] = np.rint(rows / scale[outputs, None])
    return quantized, scale


_OUTPUTS_AT_ONCE = 1024  # so that no float32 copy of the whole token embedding is made


def scale_of(name: str) -> str:
    """Return the name of a quantized weight's scales: `x.scale` for `x.weight`."""
    return name.removesuffix("weight") + "scale"


def convert_weights(weights: Mapping[str, np.ndarray], dtypes: Mapping[str, DType]) -> dict[str, np.ndarray | Buffer]:
    """Copy weights into the dtypes of the graphs.

    Args:
        weights: arrays by name.
        dtypes: the dtype of each weight that is wanted, by name. int8 weights are quantized.

    Returns:
        The copies by name, and the dequantization scales of int8 weights under `scale_of(name)`.
    """
    converted = dict[str, np.ndarray | Buffer]()
    for name, dtype in dtypes.items():
        if dtype == DType.int8:
            converted[name], converted[scale_of(name)] = quantize(weights[name])
        elif dtype == DType.bfloat16:
            converted[name] = Buffer.from_numpy(bfloat16_bits(weights[name])).view(DType.bfloat16)
        else:
            converted[name] = np.array(weights[name], dtype.to_numpy(), order="C")
    return converted
