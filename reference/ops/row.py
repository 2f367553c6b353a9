"""What a row of the table is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from reference.numerics.bounds import Approx, Roundings
from reference.numerics.dtypes import DTYPES

Build = str | Callable[..., Any]


@dataclass(frozen=True)
class Input:
    """One argument of an op: its shape, as names of dimensions or numbers, the kinds of values it is tried with (`reference.ops.inputs`),
    and its dtype where that is not the one under test. Whole numbers stay below the dimension `below`.
    """

    shape: str
    values: tuple[str, ...] = ("normal",)
    dtype: str | None = None
    below: str | None = None
    in_place: bool = False  # a buffer that the op writes to


class Op:
    """A row. Its docstring derives the bound and names its source.

    dtypes: those it is proven in. stores: what lies between two kernels is in the dtype under test. exact_sums: sums of small
    integers come out bit for bit. long: a large shape to try as well. on_host: what runs in place of a graph. tight: an input, and the
    dimensions and kinds of values of an example on which 16 units in the last place of one of its elements break a gate. keeps: the dtype
    that results fit into, where that is narrower than the one under test; the units are its own then. devices: where it is there at all.
    """

    inputs: ClassVar[Mapping[str, Input]]
    build: ClassVar[Build]
    on_host: ClassVar[bool] = False
    define: ClassVar[Callable[..., np.ndarray]]
    torch: ClassVar[str | Callable[..., Any]]
    bound: ClassVar[Callable[..., Approx]]
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)
    stores: ClassVar[bool] = False
    exact_sums: ClassVar[bool] = False
    long: ClassVar[Mapping[str, int]] = {}
    tight: ClassVar[tuple[str, Mapping[str, int], Mapping[str, str]]]
    keeps: ClassVar[str | None] = None
    devices: ClassVar[tuple[str, ...]] = ("cpu", "gpu")

    @classmethod
    def outputs(cls, resolve: Callable[[Build], Callable[..., Any]], *values: Any) -> list[Any]:
        """The outputs of this op's graph from its inputs; resolve: finds the function that `build` names."""
        return [resolve(cls.build)(*values)]

    @classmethod
    def roundings(cls, dtype: str, device: str = "cpu") -> Roundings:
        """The roundings that this op makes in a dtype, on one of `devices`; in "float64" those of its definition."""
        if dtype == "float64":
            return Roundings.in_float64()
        return Roundings.of(DTYPES[dtype], DTYPES[dtype] if cls.stores else None, device)


TABLE: dict[str, type[Op]] = {}


def row(op: type[Op]) -> type[Op]:
    """Add a row to the table, under its class's name in lower case."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in op.__name__).lstrip("_")
    TABLE[name] = op
    return op


def rows_on(device: str) -> dict[str, type[Op]]:
    """The table's rows that a device has, "cpu" or "gpu"."""
    return {name: op for name, op in TABLE.items() if device in op.devices}


# Values for the two sides of a product.
FACTORS = ("normal", "sparse", "one_hot", "small_integers", "zeros", "tiny")
# Not for both sides of a product: where all terms are equal their roundings are, too, and errors no longer grow like a square root.
SUMMANDS = ("normal", "sparse", "one_hot", "integers", "zeros", "tiny", "constant")
