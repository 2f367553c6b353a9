"""Weights quantized to int8 with a scale per output, as by CTranslate2's `compute_type="int8"`."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from maxwhisper.checkpoint.stored import StoredTensor
from maxwhisper.engine.dtypes import bfloat16_bits
from maxwhisper.system import n_cores

LARGEST = 127  # the largest quantized value


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a weight per output channel, with scale max|row| / 127.

    Args:
        weight: float [n_out, n_in].

    Returns:
        The int8 values [n_out, n_in] and the float32 dequantization scales [n_out].
    """
    quantized, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)

    def quantize_some(start: int) -> None:
        outputs = slice(start, start + _OUTPUTS_AT_ONCE)
        rows = weight[outputs].astype(np.float32)
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        scale[outputs] = np.where(largest > 0, largest, LARGEST) / np.float32(LARGEST)
        rows /= scale[outputs, None]
        quantized[outputs] = np.rint(rows, out=rows)

    with ThreadPoolExecutor(n_cores()) as pool:  # NumPy releases the GIL while it computes
        list(pool.map(quantize_some, range(0, len(weight), _OUTPUTS_AT_ONCE)))
    return quantized, scale


_OUTPUTS_AT_ONCE = 64  # whose numbers stay in a core's cache


def scale_of(name: str) -> str:
    """Return the name of a quantized weight's scales: `x.scale` for `x.weight`."""
    return name.removesuffix("weight") + "scale"


def convert_weights(stored: Mapping[str, StoredTensor], dtypes: Mapping[str, DType]) -> dict[str, np.ndarray | Buffer]:
    """Convert weights to the dtypes of the graphs, one after the other.

    A weight that has its dtype already, in a mapped file, is left there. The others are read, and
    are in memory once.

    Args:
        stored: the weights by name.
        dtypes: the dtype of each weight that is wanted, by name. int8 weights are quantized, unless
            they are stored so.

    Returns:
        The weights by name, and the dequantization scales of int8 weights under `scale_of(name)`.
    """
    converted = dict[str, np.ndarray | Buffer]()
    for name, dtype in dtypes.items():
        tensor = stored[name]
        if dtype == DType.int8:
            converted[name], converted[scale_of(name)] = (
                quantize(tensor.numbers()) if tensor.scale is None else (_in_place(tensor), tensor.scale)
            )
        elif dtype.name == tensor.dtype and tensor.scale is None:
            converted[name] = _buffer(_in_place(tensor), dtype)
        else:
            converted[name] = convert(tensor.numbers(), dtype)
    return converted


def convert(numbers: np.ndarray, dtype: DType) -> np.ndarray | Buffer:
    """Round floating-point numbers to a dtype of the graphs."""
    bits = bfloat16_bits(numbers) if dtype == DType.bfloat16 else np.ascontiguousarray(numbers, dtype.to_numpy())
    return _buffer(bits, dtype)


def _in_place(tensor: StoredTensor) -> np.ndarray:
    """Return the stored elements without a copy, or read if they are not aligned."""
    view = tensor.view()
    return view if view.flags.aligned else tensor.read()


def _buffer(array: np.ndarray, dtype: DType) -> np.ndarray | Buffer:
    """Return an array, or for bfloat16, which NumPy lacks, a buffer of its bits."""
    return Buffer.from_numpy(array).view(DType.bfloat16) if dtype == DType.bfloat16 else array
