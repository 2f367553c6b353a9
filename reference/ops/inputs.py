"""The inputs that ops are tested on: unusual shapes, and values that stress or expose rounding."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from reference.numerics.definitions import causal_mask
from reference.numerics.dtypes import DTYPES, smallest_subnormal
from reference.ops import find_row

# 1, primes, and the sizes around the widths of SIMD registers and tiles.
SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 80, 97, 127, 128, 129)
FEW = (1, 2, 3)
SIZES_OF = {"batch": FEW, "n_head": FEW, "n_samples": (201, 319, 320, 399, 401, 1601, 4800)}
MAX_PRODUCTS = 2_000_000  # limit for the product of an example's dimensions, to keep float64 fast

Draw = Callable[[np.random.Generator, tuple[int, ...], np.dtype], np.ndarray]


def _sparse(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.standard_normal(shape) * (rng.random(shape) < 0.1)


def _one_hot(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.standard_normal(shape) * (np.arange(shape[-1]) == rng.integers(shape[-1], size=(*shape[:-1], 1)))


def _near_epsilon(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.sqrt(1e-5) * 10 ** rng.uniform(-1, 1, (*shape[:-1], 1)) * rng.standard_normal(shape)


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Draw integers that are exact in the dtype.

    They have more significant bits than TF32, if the dtype has them. Sums of their products with
    `small_integers` are exact in float32.
    """
    limit = 4095 if dtype == np.float32 else 255
    integers = rng.integers(-limit, limit + 1, shape)
    small = np.sign(integers) * (np.abs(integers) % 4)
    return np.where(rng.random(shape) < 0.02, integers, small).astype(np.float64)


def _some_infinite(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.where(rng.random(shape) < 0.3, -np.inf, rng.standard_normal(shape))


def _weights(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    e = np.exp(3 * rng.standard_normal(shape))
    return e / e.sum(-1, keepdims=True)


VALUES: dict[str, Draw] = {
    "normal": lambda rng, shape, dtype: rng.standard_normal(shape),
    "small": lambda rng, shape, dtype: 0.1 * rng.standard_normal(shape),
    "big": lambda rng, shape, dtype: 30 * rng.standard_normal(shape),
    "large": lambda rng, shape, dtype: 1e4 * rng.standard_normal(shape).clip(-6, 6),
    "tiny": lambda rng, shape, dtype: 50 * smallest_subnormal(dtype) * rng.standard_normal(shape),
    "zeros": lambda rng, shape, dtype: np.zeros(shape) * rng.choice([-1.0, 1.0], shape),
    "constant": lambda rng, shape, dtype: np.broadcast_to(rng.standard_normal((*shape[:-1], 1)), shape),
    "sparse": _sparse,
    "one_hot": _one_hot,
    "near_epsilon": _near_epsilon,
    "integers": _integers,
    "small_integers": lambda rng, shape, dtype: rng.integers(-8, 9, shape).astype(np.float64),
    "scales": lambda rng, shape, dtype: 0.001 * np.exp(rng.standard_normal(shape)),
    "some_infinite": _some_infinite,
    "weights": _weights,
}


@dataclass(frozen=True)
class Example:
    """One call of an op: everything needed to draw its inputs again.

    Its `repr` is a line of Python.
    """

    op: str
    dtype: str
    dims: Mapping[str, int]
    kinds: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def arrays(self) -> list[np.ndarray]:
        """Draw the op's inputs, in their dtypes."""
        arrays = []
        for name, spec in find_row(self.op).inputs.items():
            shape = tuple(int(dim) if dim.isdigit() else self.dims[dim] for dim in spec.shape.split())
            kind = self.kinds.get(name, spec.values[0])
            rng = np.random.default_rng([self.seed, *hashlib.sha256(name.encode()).digest()[:4]])
            if kind == "index":
                arrays.append(rng.integers(self.dims[str(spec.below)], size=shape))
            elif kind == "int8":
                arrays.append(rng.integers(-127, 128, size=shape, dtype=np.int8))
            elif kind == "slots":  # a page table [n_seq, 1, n_ctx]: at each position a permutation of the pages
                arrays.append(rng.permuted(np.tile(np.arange(shape[0])[:, None, None], (1, 1, shape[2])), axis=0))
            elif kind == "causal":
                arrays.append(causal_mask(*shape))
            else:
                dtype = DTYPES[spec.dtype or self.dtype]
                arrays.append(np.ascontiguousarray(VALUES[kind](rng, shape, dtype)).astype(dtype))
        return arrays


def examples(op: str, dtype: str, **pinned: int | str) -> st.SearchStrategy[Example]:
    """Return a strategy for examples of an op on any shape and kind of values.

    Failing examples shrink to small sizes and plain values.

    Args:
        op: The row's name.
        dtype: The dtype under test.
        pinned: Dimensions with a fixed size, and inputs with a fixed kind of values.
    """
    inputs = find_row(op).inputs
    sizes = {name: (pinned[name],) if name in pinned else SIZES_OF.get(name, SIZES) for name in dimensions(op)}
    values = {name: (pinned[name],) if name in pinned else spec.values for name, spec in inputs.items()}
    dims = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in sizes.items()})
    kinds = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in values.items()})
    strategy = st.builds(Example, st.just(op), st.just(dtype), dims.map(_possible), kinds, st.integers(0, 2**16))
    return strategy.filter(lambda example: np.prod(list(example.dims.values()), dtype=float) <= MAX_PRODUCTS)


def dimensions(op: str) -> list[str]:
    """Return the names of an op's dimensions."""
    shapes = (spec.shape.split() for spec in find_row(op).inputs.values())
    return list(dict.fromkeys(dim for shape in shapes for dim in shape if not dim.isdigit()))


def sized(op: str, default: int, **sizes: int) -> dict[str, int]:
    """Return a size for each of an op's dimensions."""
    return {name: sizes.get(name, default) for name in dimensions(op)}


def large_example(op: str, dtype: str, seed: int = 0) -> Example | None:
    """Return an example of the row's `large_shape`; None if it has none."""
    dims = find_row(op).large_shape
    return Example(op, dtype, dims, seed=seed) if dims else None


def _possible(dims: dict[str, Any]) -> Mapping[str, int]:
    """Adjust the sizes to a possible example.

    There are no more queries than keys, so that each query sees itself, and no more keys than the
    context holds.
    """
    if "n_kv" in dims:
        n, n_kv = sorted((dims["n"], dims["n_kv"]))
        dims = {**dims, "n": n, "n_kv": n_kv}
    if "n_ctx" in dims and "n_kv" in dims:
        dims = {**dims, "n_ctx": max(dims["n_kv"], dims["n_ctx"])}
    return dims
