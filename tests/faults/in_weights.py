"""Mistakes in loading a checkpoint's weights. They need no graph compiled."""

import re
from collections.abc import Callable

import numpy as np

from tests.faults.plant import Fault, Weights

Change = Callable[[np.ndarray], np.ndarray]


def change_matching(pattern: str, change: Change) -> Callable[[Weights], Weights]:
    """Change all weights whose names match a regular expression."""
    return lambda weights: {name: change(w.copy()) if re.fullmatch(pattern, name) else w for name, w in weights.items()}


def renamed(swaps: dict[str, str]) -> Callable[[Weights], Weights]:
    """Load weights from wrong names: replace the first key that a name contains by its value."""

    def source(name: str) -> str:
        for part, replacement in swaps.items():
            if part in name:
                return name.replace(part, replacement)
        return name

    return lambda weights: {name: weights[source(name)] for name in weights}


def interleaved(positions: np.ndarray) -> np.ndarray:
    """Interleave sines and cosines. Whisper has all sines, then all cosines."""
    n, n_state = positions.shape
    return positions.reshape(n, 2, n_state // 2).swapaxes(1, 2).reshape(n, n_state)


def one_element(weight: np.ndarray) -> np.ndarray:
    """Increase one element by 1 %."""
    weight[3, 5] *= 1.01
    return weight


def dead_head(weight: np.ndarray, head_dim_share: int = 4) -> np.ndarray:
    """Zero the columns that read the first head."""
    weight[:, : weight.shape[1] // head_dim_share] = 0
    return weight


def as_bfloat16(weight: np.ndarray) -> np.ndarray:
    """Round towards zero to bfloat16 by zeroing the lower half of each float32."""
    return (weight.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


FAULTS = [
    Fault(
        "convolution kernel flipped",
        "encoder.conv1",
        "true convolution; deep learning's convolution is a correlation",
        weights=change_matching(r"encoder\.conv\d\.weight", lambda w: np.ascontiguousarray(w[..., ::-1])),
    ),
    Fault(
        "channels permuted",
        "encoder.conv1",
        "mel bands from high to low",
        weights=change_matching(r"encoder\.conv1\.weight", lambda w: np.ascontiguousarray(w[:, ::-1])),
    ),
    Fault(
        "convolution biases missing",
        "encoder.conv1",
        "this project's first version",
        weights=change_matching(r"encoder\.conv\d\.bias", np.zeros_like),
    ),
    Fault(
        "linear biases missing",
        "encoder.blocks.0.attn.query",
        "this project's first version",
        weights=change_matching(r".*(attn|mlp)\.\w+\.bias", np.zeros_like),
        looks_like="a term that is the same at every position is missing, or one too many (a bias?)",
    ),
    Fault(
        "value bias dropped",
        "encoder.blocks.0.attn.value",
        "keys have no bias, so values are assumed to have none",
        weights=change_matching(r".*\.value\.bias", np.zeros_like),
        looks_like="a term that is the same at every position is missing, or one too many (a bias?)",
    ),
    Fault(
        "K and V swapped",
        "encoder.blocks.0.attn.key",
        "stacked weights read in the wrong order",
        weights=renamed({"key.weight": "value.weight", "value.weight": "key.weight"}),
    ),
    Fault(
        "Q, K, V unstacked in another order",
        "encoder.blocks.0.attn.query",
        "stacked weights read as K, V, Q",
        weights=renamed(
            {".query.weight": ".key.weight", ".key.weight": ".value.weight", ".value.weight": ".query.weight"}
        ),
    ),
    Fault(
        "square weight transposed",
        "encoder.blocks.0.attn.out",
        "TensorFlow's order of dimensions, which the shape of a square weight does not show",
        weights=change_matching(r".*\.out\.weight", lambda w: np.ascontiguousarray(w.T)),
    ),
    Fault(
        "sines and cosines interleaved",
        "encoder.positions",
        "the order of the first transformer; Whisper has all sines first",
        weights=change_matching(r"encoder\.positional_embedding", interleaved),
    ),
    Fault(
        "two layers swapped",
        "decoder.blocks.0.cross_attn.key",
        "layers sorted by name, 10 before 2",
        weights=renamed({"decoder.blocks.0.": "decoder.blocks.1.", "decoder.blocks.1.": "decoder.blocks.0."}),
    ),
    Fault(
        "layer norm's weight and bias swapped",
        "encoder.blocks.0.attn_ln",
        "gamma and beta confused",
        weights=renamed({"ln.weight": "ln.bias", "ln.bias": "ln.weight"}),
    ),
    Fault(
        "variance correction on the output",
        "encoder.ln_post",
        "this project's first version, where it hid the other mistakes",
        weights=change_matching(r"encoder\.ln_post\..*", lambda w: w * np.float32(1.05)),
        looks_like="a constant factor of 1.05",
    ),
    Fault(
        "one dead head",
        "encoder.blocks.1.attn.out",
        "one shard of several not loaded",
        weights=change_matching(r"encoder\.blocks\.1\.attn\.out\.weight", dead_head),
    ),
    Fault(
        "one weight element changed by 1 %",
        "encoder.blocks.0.mlp.0",
        "a damaged download",
        weights=change_matching(r"encoder\.blocks\.0\.mlp\.0\.weight", one_element),
    ),
    Fault(
        "weights cut to bfloat16",
        "encoder.conv1",
        "a conversion through a different dtype",
        weights=change_matching(r".*\.weight", as_bfloat16),
    ),
]
