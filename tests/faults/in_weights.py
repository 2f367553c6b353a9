"""Mistakes in how a checkpoint's weights reach the graphs; nothing has to be compiled for them."""

import re
from collections.abc import Callable

import numpy as np

from tests.faults.plant import Fault, Weights

Change = Callable[[np.ndarray], np.ndarray]


def every(pattern: str, change: Change) -> Callable[[Weights], Weights]:
    """All weights whose names match, changed."""
    return lambda weights: {name: change(w.copy()) if re.fullmatch(pattern, name) else w for name, w in weights.items()}


def renamed(swaps: dict[str, str]) -> Callable[[Weights], Weights]:
    """Each weight takes the place of another: names that hold a key are looked up with its value there."""

    def source(name: str) -> str:
        for part, other in swaps.items():
            if part in name:
                return name.replace(part, other)
        return name

    return lambda weights: {name: weights[source(name)] for name in weights}


def interleaved(positions: np.ndarray) -> np.ndarray:
    """sin, cos, sin, cos, …, where Whisper has all sines and then all cosines."""
    n, n_state = positions.shape
    return positions.reshape(n, 2, n_state // 2).swapaxes(1, 2).reshape(n, n_state)


def one_element(weight: np.ndarray) -> np.ndarray:
    """1 % more, in one place."""
    weight[3, 5] *= 1.01
    return weight


def dead_head(weight: np.ndarray, head_dim_share: int = 4) -> np.ndarray:
    """The first of the heads contributes nothing."""
    weight[:, : weight.shape[1] // head_dim_share] = 0
    return weight


def as_bfloat16(weight: np.ndarray) -> np.ndarray:
    """Rounded towards zero, as cutting off the lower half of a float32 does."""
    return (weight.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


FAULTS = [
    Fault(
        "convolution kernel flipped",
        "encoder.conv1",
        "a convolution proper, where deep learning's is a correlation",
        weights=every(r"encoder\.conv\d\.weight", lambda w: np.ascontiguousarray(w[..., ::-1])),
    ),
    Fault(
        "channels permuted",
        "encoder.conv1",
        "mel bands from high to low",
        weights=every(r"encoder\.conv1\.weight", lambda w: np.ascontiguousarray(w[:, ::-1])),
    ),
    Fault(
        "convolution biases missing",
        "encoder.conv1",
        "what this project's first version had",
        weights=every(r"encoder\.conv\d\.bias", np.zeros_like),
    ),
    Fault(
        "linear biases missing",
        "encoder.blocks.0.attn.query",
        "what this project's first version had",
        weights=every(r".*(attn|mlp)\.\w+\.bias", np.zeros_like),
        looks_like="a term that is the same at every position is missing, or one too many (a bias?)",
    ),
    Fault(
        "value bias dropped",
        "encoder.blocks.0.attn.value",
        "keys have none, so values have none",
        weights=every(r".*\.value\.bias", np.zeros_like),
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
        "TensorFlow's order of dimensions, which no shape gives away here",
        weights=every(r".*\.out\.weight", lambda w: np.ascontiguousarray(w.T)),
    ),
    Fault(
        "sines and cosines interleaved",
        "encoder.positions",
        "Vaswani's order, where Whisper has all sines first",
        weights=every(r"encoder\.positional_embedding", interleaved),
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
        "gamma and beta taken for each other",
        weights=renamed({"ln.weight": "ln.bias", "ln.bias": "ln.weight"}),
    ),
    Fault(
        "variance correction on the output",
        "encoder.ln_post",
        "what this project's first version had, to hide the others",
        weights=every(r"encoder\.ln_post\..*", lambda w: w * np.float32(1.05)),
        looks_like="a constant factor of 1.05",
    ),
    Fault(
        "one dead head",
        "encoder.blocks.1.attn.out",
        "one shard of several not loaded",
        weights=every(r"encoder\.blocks\.1\.attn\.out\.weight", dead_head),
    ),
    Fault(
        "one weight element changed by 1 %",
        "encoder.blocks.0.mlp.0",
        "a damaged download",
        weights=every(r"encoder\.blocks\.0\.mlp\.0\.weight", one_element),
    ),
    Fault(
        "weights cut to bfloat16",
        "encoder.conv1",
        "a conversion by way of another dtype",
        weights=every(r".*\.weight", as_bfloat16),
    ),
]
