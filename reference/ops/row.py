"""A row of the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from reference.numerics.bounds import Approx, Roundings
from reference.numerics.dtypes import DTYPES

Build = str | Callable[..., Any]


@dataclass(frozen=True)
class Input:
    """One argument of an op."""

    shape: str  # names or sizes of dimensions, separated by spaces
    values: tuple[str, ...] = ("normal",)  # kinds of values to draw, see `reference.ops.inputs.VALUES`
    dtype: str | None = None  # if it differs from the one under test
    below: str | None = None  # the dimension that indices stay below
    in_place: bool = False  # a buffer that the op writes to


TABLE: dict[str, type["Op"]] = {}  # of Whisper: built on MAX, and tested there
OTHERS: dict[str, type["Op"]] = {}  # of other models, whose activations are judged by them


def find_row(name: str) -> type["Op"]:
    """Return the row of a name, from either table."""
    return TABLE[name] if name in TABLE else OTHERS[name]


class Op:
    """A row of the table: everything that testing an op takes.

    Its docstring derives the error bound and names its source. `class Softmax(Op, row="softmax")`
    adds a row under that name. A subclass without a name adds no row, but may hold what rows have
    in common.

    Raises:
        TypeError: The row lacks one of `required`, or its name is taken.
    """

    # The fields that a row must have.
    required: ClassVar[tuple[str, ...]] = ("inputs", "build", "define", "torch", "bound", "sensitivity_case")

    # The arguments, in order.
    inputs: ClassVar[Mapping[str, Input]]
    # The function that builds the graph: "ops.NAME" is an op of the engine, "adapters.NAME" a
    # function of `reference.ops.max_adapters`. A function takes the engine's ops, then the inputs.
    # Rows of `OTHERS` have none.
    build: ClassVar[Build]
    # Whether `build` computes on the host from NumPy arrays, without a graph.
    on_host: ClassVar[bool] = False
    # The definition: takes the inputs in float64, and returns the result in float64.
    define: ClassVar[Callable[..., np.ndarray]]
    # PyTorch's op for the same inputs: a name in `reference.ops.torch_counterparts`, or a function.
    torch: ClassVar[str | Callable[..., Any]]
    # The bounds: takes the roundings and the inputs in float64, and returns the result in float64
    # with its error bounds. Attributes, such as an epsilon, are keyword arguments of both.
    bound: ClassVar[Callable[..., Approx]]
    # The dtypes it is tested in.
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)
    # The devices it exists on.
    devices: ClassVar[tuple[str, ...]] = ("cpu", "gpu")
    # Whether intermediates between two kernels are in the dtype under test instead of float32.
    intermediates_in_dtype: ClassVar[bool] = False
    # The dtype that results are representable in, if it is narrower than the one under test.
    result_dtype: ClassVar[str | None] = None
    # Whether sums of small integers are exact, so that results must be equal bit for bit.
    exact_sums: ClassVar[bool] = False
    # Sizes of an additional large example.
    large_shape: ClassVar[Mapping[str, int]] = {}
    # An input, and the sizes and kinds of values of an example. A change of one element of the
    # input by 16 ulps (of `result_dtype`) must exceed a bound.
    sensitivity_case: ClassVar[tuple[str, Mapping[str, int], Mapping[str, str]]]

    def __init_subclass__(cls, row: str | None = None, table: dict[str, type["Op"]] = TABLE) -> None:
        """Check a row, and add it to a table."""
        if row is None:
            return
        required = [name for name in cls.required if table is TABLE or name != "build"]
        if missing := [name for name in required if not hasattr(cls, name)]:
            raise TypeError(f"row {row!r} lacks {', '.join(missing)}; see the fields of reference.ops.Op")
        if row in TABLE or row in OTHERS:
            owner = find_row(row).__qualname__
            raise TypeError(f"there is a row {row!r} already, {owner}; give {cls.__qualname__} a name of its own")
        table[row] = cls

    @classmethod
    def outputs(cls, resolve: Callable[[Build], Callable[..., Any]], *values: Any) -> list[Any]:
        """Build this op's graph.

        Args:
            resolve: Returns the function that `build` names.
            values: The graph's inputs, in order.

        Returns:
            The graph's outputs.
        """
        return [resolve(cls.build)(*values)]

    @classmethod
    def roundings(cls, dtype: str, device: str = "cpu") -> Roundings:
        """Return the roundings that this op makes.

        Args:
            dtype: The dtype under test; or "float64" for the roundings of the definition itself.
            device: One of `devices`.
        """
        if dtype == "float64":
            return Roundings.in_float64()
        return Roundings.of(DTYPES[dtype], DTYPES[dtype] if cls.intermediates_in_dtype else None, device)


def rows_on(device: str) -> dict[str, type[Op]]:
    """Return the rows that a device has, "cpu" or "gpu"."""
    return {name: op for name, op in TABLE.items() if device in op.devices}


# Values for the two sides of a product.
FACTORS = ("normal", "sparse", "one_hot", "small_integers", "zeros", "tiny")
# Values for one side of a product only. If all terms are equal, so are their roundings, and the
# errors no longer grow like a square root.
SUMMANDS = ("normal", "sparse", "one_hot", "integers", "zeros", "tiny", "constant")
