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
    """One argument of an op."""

    shape: str  # names of dimensions, or numbers, separated by spaces
    values: tuple[str, ...] = ("normal",)  # kinds that it is tried with, `reference.ops.inputs.VALUES`
    dtype: str | None = None  # if it is not the one under test
    below: str | None = None  # the dimension that indices stay below
    in_place: bool = False  # a buffer that the op writes to


TABLE: dict[str, type["Op"]] = {}


class Op:
    """A row of the table: everything that proving an op takes. Its docstring derives the bound and names its source.

    `class Softmax(Op, row="softmax")` is a row under that name; a subclass without a name is none,
    but may be what rows have in common.

    Raises TypeError for a row that lacks one of `required`, or whose name another row has.
    """

    # What a row must have.
    required: ClassVar[tuple[str, ...]] = ("inputs", "build", "define", "torch", "bound", "sensitivity_case")

    # The arguments, in order.
    inputs: ClassVar[Mapping[str, Input]]
    # How the graph is built: "ops.NAME" is an op of the engine, "adapters.NAME" a function of
    # `reference.ops.max_adapters`. A function takes the engine's ops, and then the inputs.
    build: ClassVar[Build]
    # Whether `build` computes on the host, from NumPy arrays, and no graph is built.
    on_host: ClassVar[bool] = False
    # The definition: inputs in float64 to the result in float64.
    define: ClassVar[Callable[..., np.ndarray]]
    # PyTorch's op, of the same inputs: a name in `reference.ops.torch_counterparts`, or a function.
    torch: ClassVar[str | Callable[..., Any]]
    # Roundings and inputs in float64 to the result in float64 with its error bounds.
    bound: ClassVar[Callable[..., Approx]]
    # The dtypes it is proven in.
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)
    # The devices it exists on.
    devices: ClassVar[tuple[str, ...]] = ("cpu", "gpu")
    # Whether intermediates between two kernels are in the dtype under test, and not in float32.
    intermediates_in_dtype: ClassVar[bool] = False
    # The dtype that results are representable in, if it is narrower than the one under test.
    result_dtype: ClassVar[str | None] = None
    # Whether sums of small integers are exact, so that they must come out bit for bit.
    exact_sums: ClassVar[bool] = False
    # Sizes of a large example to try as well.
    large_shape: ClassVar[Mapping[str, int]] = {}
    # An input, and the sizes and kinds of values of an example, in which a change of one element by
    # 16 units in the last place (of `result_dtype`) must break a gate.
    sensitivity_case: ClassVar[tuple[str, Mapping[str, int], Mapping[str, str]]]

    def __init_subclass__(cls, row: str | None = None) -> None:
        """Check a row, and add it to the table."""
        if row is None:
            return
        if missing := [name for name in cls.required if not hasattr(cls, name)]:
            raise TypeError(f"row {row!r} lacks {', '.join(missing)}; see the fields of reference.ops.Op")
        if row in TABLE:
            raise TypeError(
                f"there is a row {row!r} already, {TABLE[row].__qualname__}; give {cls.__qualname__} a name of its own"
            )
        TABLE[row] = cls

    @classmethod
    def outputs(cls, resolve: Callable[[Build], Callable[..., Any]], *values: Any) -> list[Any]:
        """The outputs of this op's graph from its inputs; resolve: finds the function that `build` names."""
        return [resolve(cls.build)(*values)]

    @classmethod
    def roundings(cls, dtype: str, device: str = "cpu") -> Roundings:
        """The roundings that this op makes in a dtype, on one of `devices`; in "float64" those of its definition."""
        if dtype == "float64":
            return Roundings.in_float64()
        return Roundings.of(DTYPES[dtype], DTYPES[dtype] if cls.intermediates_in_dtype else None, device)


def rows_on(device: str) -> dict[str, type[Op]]:
    """The table's rows that a device has, "cpu" or "gpu"."""
    return {name: op for name, op in TABLE.items() if device in op.devices}


# Values for the two sides of a product.
FACTORS = ("normal", "sparse", "one_hot", "small_integers", "zeros", "tiny")
# Not for both sides of a product: where all terms are equal their roundings are, too, and errors no longer grow like a square root.
SUMMANDS = ("normal", "sparse", "one_hot", "integers", "zeros", "tiny", "constant")
