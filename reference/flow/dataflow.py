"""Which op computes each activation, and from what. The same few lines are the float64 truth, when definitions are evaluated along them,
and the judge, when each activation of another implementation is held against its definition on that implementation's own inputs.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from reference.numerics import definitions as define


class Step(NamedTuple):
    """An op of the table, and the names of its inputs: activations before it, weights, or what the model is given.

    A name may be followed by a view of the array: `:transposed`; `:6 heads` for its last dimension split into heads; `:positions` for its
    rows at these. A step whose own name ends in `heads` computes that view of the activation.
    """

    op: str
    sources: tuple[str, ...]


Dataflow = Mapping[str, Step]
Arrays = Mapping[str, np.ndarray]
VIEWS = "':transposed', ':positions' and ':N heads'"
_HEADS = re.compile(r"([1-9]\d*) heads")


class DataflowError(ValueError):
    """A data flow that can't be followed, or arrays that it can't be followed on: the step, what is wrong with it, and what there is."""


def look_up(known: Arrays, name: str) -> np.ndarray:
    """An activation, or a view of it.

    Raises DataflowError for a name that is not known, a view that there is not, or one that can't be taken of this shape.
    """
    check_name(name, known)
    base, view = split(name)
    array = known[base]
    try:
        if view == "positions":
            return array[known["positions"]]
        if n_head := n_heads(view):
            _batch, _n, _n_state = array.shape  # of anything else heads would be made, too
            return define.split_heads(array, n_head)
        return array.swapaxes(1, 2) if view else array
    except (ValueError, IndexError) as error:
        raise DataflowError(f"{name!r} can't be taken of shape {list(array.shape)}: {error}") from error


def check_name(name: str, known: Collection[str]) -> None:
    """Raise DataflowError where a name, or the view in it, is none of an array that is known."""
    base, view = split(name)
    if base not in known:
        raise DataflowError(f"{base!r} is neither given nor computed before{nearest(base, known)}")
    if view not in ("", "transposed", "positions") and not n_heads(view):
        raise DataflowError(f"{name!r} is no view; there are {VIEWS}")
    if view == "positions" and view not in known:
        raise DataflowError(f"{name!r} needs 'positions', which is not given")


def store(known: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Keep what a step computed, under the activation's own name and shape."""
    base, view = split(name)
    known[base] = define.merge_heads(array) if view else array


def split(name: str) -> tuple[str, str]:
    """The activation's name, and its view."""
    base, _, view = name.partition(":")
    return base, view


def n_heads(view: str) -> int:
    """Of a view that splits heads, how many; 0 of any other."""
    found = _HEADS.fullmatch(view)
    return int(found[1]) if found else 0


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that there is not: up to three that are spelt alike."""
    found = ", ".join(map(repr, get_close_matches(name, known)))
    return f"; nearest: {found}" if found else ""


@contextmanager
def naming(step: str) -> Iterator[None]:
    """What goes wrong in the block is said of a step."""
    try:
        yield
    except DataflowError as error:
        raise DataflowError(f"step {step!r}: {error}") from error.__cause__


def evaluate(dataflow: Dataflow, given: Arrays, compute: Callable[[str, list[np.ndarray]], np.ndarray]) -> dict[str, np.ndarray]:
    """All activations in order, each computed by `compute(op, inputs)` from those before it and from what is given.

    Raises DataflowError where an array is missing, or where an op can't be computed from arrays of these shapes.
    """
    known = dict(given)
    for name, (op, sources) in dataflow.items():
        with naming(name):
            inputs = [look_up(known, source) for source in sources]
            try:
                store(known, name, compute(op, inputs))
            except (ValueError, IndexError) as error:
                shapes = ", ".join(str(list(array.shape)) for array in inputs)
                raise DataflowError(f"{op} of shapes {shapes}: {error}") from error
    return {split(name)[0]: known[split(name)[0]] for name in dataflow}
