"""The dtypes of a model's weights and activations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from max.driver import Buffer
from max.dtype import DType

from maxwhisper.checkpoint import Checkpoint

HALF_DTYPES = ("float16", "bfloat16")
COMPUTE_TYPES = ("float32", *HALF_DTYPES, "int8")
AUTO = "auto"  # instead of a compute type


def resolved(compute_type: str, checkpoint: Checkpoint, on_cpu: bool) -> str:
    """Return a compute type; for `AUTO` the fastest one that changes no token of the original.

    The original of weights that are stored in 8 bits is CTranslate2, which computes in int8.
    """
    if compute_type != AUTO:
        return compute_type
    is_quantized = any(tensor.scale is not None for tensor in checkpoint.stored.values())
    return "int8" if is_quantized and on_cpu else "float32"


@dataclass(frozen=True)
class DTypes:
    """The dtypes that graphs store and compute in."""

    weights: Mapping[str, DType]  # by the weight's name
    activations: DType = DType.float32  # also of the self-attention caches

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        compute_type: str = "float32",
        keep_float16: Callable[[str], bool] = lambda name: True,
    ) -> "DTypes":
        """Choose dtypes: the compute type for matrices, float32 for all other weights.

        Args:
            checkpoint: supplies the weights.
            compute_type: "int8" quantizes matrices to 8 bits. "float16" and "bfloat16" are also
                the dtype of activations.
            keep_float16: for "float32", whether a matrix of this name stays float16 if the file
                stores all of them as float16.
        """
        stored = checkpoint.stored
        matrices = {
            name: tensor for name, tensor in stored.items() if name.endswith(".weight") and len(tensor.shape) == 2
        }
        asked = DType[compute_type]
        stored_as_float16 = all(tensor.dtype == "float16" for tensor in matrices.values())
        narrow = DType.float16 if asked == DType.float32 and stored_as_float16 else asked

        def of_matrix(name: str) -> DType:
            return narrow if keep_float16(name) else asked

        return cls(
            {name: of_matrix(name) if name in matrices else DType.float32 for name in stored},
            asked if compute_type in HALF_DTYPES else DType.float32,
        )

    @property
    def cross_kv(self) -> DType:
        """The dtype of the audio's keys and values."""
        return DType.float16 if DType.int8 in self.weights.values() else self.activations


def bfloat16_bits(numbers: np.ndarray) -> np.ndarray:
    """Round finite numbers to bfloat16, to nearest, ties to even.

    Returns:
        The bits as uint16, because NumPy has no bfloat16. They are the upper half of a float32.
    """
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float32(buffer: Buffer) -> np.ndarray:
    """Convert a float32 or half-precision buffer on the host to a float32 array."""
    if buffer.dtype == DType.bfloat16:
        return (buffer.view(DType.uint16).to_numpy().astype(np.uint32) << 16).view(np.float32)
    return buffer.to_numpy().astype(np.float32, copy=False)
