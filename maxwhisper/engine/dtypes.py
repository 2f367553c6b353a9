"""What a model's weights are held in, and what it computes in."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from maxwhisper.checkpoint import Checkpoint

HALF_DTYPES = ("float16", "bfloat16")
COMPUTE_TYPES = ("float32", *HALF_DTYPES, "int8")


@dataclass(frozen=True)
class DTypes:
    """What graphs hold and compute in: each weight's dtype, and that of activations, which is also the caches'."""

    weights: Mapping[str, DType]
    activations: DType = DType.float32

    @classmethod
    def of(cls, checkpoint: Checkpoint, compute_type: str = "float32", keep_float16: bool = True) -> "DTypes":
        """Choose float32 for all but matrices, which are of the compute type.

        "int8" quantizes matrices to 8 bits; "float16" and "bfloat16" are also the dtype of activations. In "float32"
        matrices stay float16 if all of them are stored so and `keep_float16` is set.
        """
        matrices = {
            name: array for name, array in checkpoint.weights.items() if name.endswith(".weight") and array.ndim == 2
        }
        asked = DType[compute_type]
        stored_as_float16 = keep_float16 and all(array.dtype == np.float16 for array in matrices.values())
        narrow = DType.float16 if asked == DType.float32 and stored_as_float16 else asked
        return cls(
            {name: narrow if name in matrices else DType.float32 for name in checkpoint.weights},
            asked if compute_type in HALF_DTYPES else DType.float32,
        )

    @property
    def cross_kv(self) -> DType:
        """What the audio's keys and values are kept in."""
        return DType.float16 if DType.int8 in self.weights.values() else self.activations


def bfloat16_bits(numbers: np.ndarray) -> np.ndarray:
    """Finite numbers rounded to bfloat16, the upper half of a float32, to nearest and ties to even; as uint16, for NumPy lacks it."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(buffer: Buffer) -> np.ndarray:
    """Convert a buffer on the host, of float32 or half precision, to a float32 array."""
    if buffer.dtype == DType.bfloat16:
        return (buffer.view(DType.uint16).to_numpy().astype(np.uint32) << 16).view(np.float32)
    return buffer.to_numpy().astype(np.float32, copy=False)
