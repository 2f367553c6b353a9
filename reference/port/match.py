"""Which of a port's arrays is which activation of the original."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from reference.flow.dataflow import Ref, nearest, parse
from reference.numerics.dtypes import DTYPES
from reference.ops.tensors import from_torch
from reference.port.errors import PortError
from reference.port.trace import Traced


@dataclass(frozen=True)
class Matched:
    """A port's arrays under the original's names."""

    activations: Mapping[str, np.ndarray]
    given: Mapping[str, np.ndarray]  # inputs and weights that it shows
    unknown: tuple[str, ...]  # the port's names that mean nothing to the original
    missing: tuple[str, ...]  # activations that it does not show


def match(
    traced: Traced, port: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None, allows_none: bool = False
) -> Matched:
    """Find the activation that each array of a port is.

    Args:
        traced: The original.
        port: The port's arrays by name.
        names: The original's name for some of the port's; `NAME:transposed` if axes 1 and 2 are
            swapped.
        allows_none: Whether the port may have none of the original's names.

    Raises:
        PortError: An array can't be what its name says.
    """
    names, activations, given = names or {}, dict[str, np.ndarray](), dict[str, np.ndarray]()
    port = {own: as_array(own, array) for own, array in port.items()}
    if not port:
        raise PortError("the port shows no arrays")
    owners, unknown = dict[str, str](), list[str]()
    for wrong in names.keys() - port.keys():
        raise PortError(f"names: the port has no {wrong!r}{nearest(wrong, port)}")
    for own, array in port.items():
        wanted, view = parse(names.get(own, own)) if own in names else Ref(own, "")
        if view not in ("", "transposed"):
            raise PortError(f"names: {view!r} of {own!r} is no view; only 'transposed' is")
        array = array.swapaxes(1, 2) if view else array
        name = wanted if wanted in traced.given else traced.name_of(wanted)
        if name is None:
            if own in names:
                raise PortError(f"names: the original has no {wanted!r}{nearest(wanted, traced.known_names())}")
            unknown.append(own)
            continue
        into = given if name in traced.given else activations
        if name in owners and not np.array_equal(into[name], array):
            raise PortError(f"{owners[name]!r} and {own!r} are both {name!r}, but differ; keep the right one")
        owners.setdefault(name, own)
        into.setdefault(name, array)
    if not activations and not allows_none:
        raise PortError(
            f"none of the port's arrays has a name of the original's; the port has {_some(port)}, "
            f"the original {_some(traced.known_names())}; say which is which by `names`; `--propose` helps"
        )
    missing = tuple(name for name in traced.ops if name not in activations and not traced.is_exact(name))
    return Matched(
        {name: activations[name] for name in traced.ops if name in activations}, given, tuple(unknown), missing
    )


def as_array(name: object, array: object) -> np.ndarray:
    """Return a port's array, of NumPy or PyTorch.

    Raises:
        PortError: It is something else, or has no name.
    """
    if not isinstance(name, str):
        raise PortError(f"an array's name is {name!r}, a {type(name).__name__}; give a string")
    if isinstance(array, torch.Tensor):
        return from_torch(array)
    if not isinstance(array, (np.ndarray, np.generic)):
        raise PortError(f"{name!r} is a {type(array).__name__}; give NumPy arrays")
    return np.asarray(array)


def check(traced: Traced, matched: Matched, own: Mapping[str, np.ndarray], dtype: str) -> None:
    """Check that arrays can be the activations that they are said to be.

    Args:
        traced: The original.
        matched: The port's arrays.
        own: The original's activations.
        dtype: What the port computes in.

    Raises:
        PortError: One has another shape or dtype, or is not an array.
    """
    for name, array in matched.activations.items():
        shape = own[name].shape
        if array.shape != shape:
            shapes = f"{list(array.shape)}, but the original's has {list(shape)}"
            raise PortError(f"{name!r} has shape {shapes}{_remedy(array.shape, shape)}")
        if own[name].dtype.kind == "f" and array.dtype != DTYPES[dtype]:
            known = array.dtype.name in DTYPES
            remedy = f"say that the port computes in {array.dtype}" if known else f"convert it to {dtype}"
            raise PortError(f"{name!r} is {array.dtype}, not {dtype}; {remedy} (`dtype`, or --dtype)")
        if np.issubdtype(own[name].dtype, np.floating) and own[name].size and np.isnan(own[name]).all():
            raise PortError(f"{name!r} is NaN in the original, too; give inputs and weights that are numbers")


def refuse_stale(traced: Traced, matched: Matched, before: Mapping[str, np.ndarray]) -> None:
    """Check that no activation is left over from a call before, on other inputs.

    Args:
        traced: The original.
        matched: The port's arrays.
        before: The arrays of the call before, under the original's names.

    Raises:
        PortError: One that depends on the inputs is the same, bit for bit.
    """
    dependent = set(traced.inputs)
    for name, op in traced.ops.items():
        if dependent.intersection(op.sources):
            dependent.add(name)
    for name, array in matched.activations.items():
        if name in dependent and name in before and np.array_equal(array, before[name]):
            raise PortError(f"{name!r} is what it was in the call before, on other inputs; capture it anew")


def _remedy(actual: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if int(np.prod(actual)) != int(np.prod(wanted)):
        return "; give both the same inputs"
    if sorted(actual) == sorted(wanted):
        return "; transpose it to the original's layout"
    return "; reshape it to the original's"


def _some(names: Mapping[str, object] | list[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
