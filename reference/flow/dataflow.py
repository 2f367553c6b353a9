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

    A name may be followed by a view of the array: `:transposed`; `:6 heads` for its last dimension
    split into heads; `:at positions` for its rows at the indices that the array `positions` holds.
    A step whose own name ends in `heads` computes that view of the activation.
    """

    op: str
    sources: tuple[str, ...]


Dataflow = Mapping[str, Step]
Arrays = Mapping[str, np.ndarray]
VIEWS = "':transposed', ':N heads' and ':at NAME'"
_HEADS = re.compile(r"([1-9]\d*) heads")
_ROWS = re.compile(r"at (.+)")


class Ref(NamedTuple):
    """A name with a view, as a step has it: `attn.query:6 heads` is Ref("attn.query", "6 heads")."""

    name: str
    view: str

    @property
    def n_head(self) -> int:
        """Heads that the view splits the last dimension into; 0 if it splits none."""
        found = _HEADS.fullmatch(self.view)
        return int(found[1]) if found else 0

    @property
    def rows(self) -> str:
        """The name of the array whose indices the view takes rows at; "" if it takes all."""
        found = _ROWS.fullmatch(self.view)
        return found[1] if found else ""


def parse(reference: str) -> Ref:
    """Split a reference into the array's name and the view of it."""
    name, _, view = reference.partition(":")
    return Ref(name, view)


class DataflowError(ValueError):
    """A data flow that can't be followed, or arrays that it can't be followed on: the step, what is wrong with it, and what there is."""


def look_up(known: Arrays, name: str) -> np.ndarray:
    """An activation, or a view of it.

    Raises DataflowError for a name that is not known, a view that there is not, or one that can't be taken of this shape.
    """
    check_name(name, known)
    ref = parse(name)
    array = known[ref.name]
    try:
        if ref.rows:
            return array[known[ref.rows]]
        if ref.n_head:
            _batch, _n, _n_state = array.shape  # of anything else heads would be made, too
            return define.split_heads(array, ref.n_head)
        return array.swapaxes(1, 2) if ref.view else array
    except (ValueError, IndexError) as error:
        raise DataflowError(f"{name!r} can't be taken of shape {list(array.shape)}: {error}") from error


def check_name(name: str, known: Collection[str]) -> None:
    """Raise DataflowError where a name, or the view in it, is none of an array that is known."""
    ref = parse(name)
    if ref.name not in known:
        raise DataflowError(f"{ref.name!r} is neither given nor computed before{nearest(ref.name, known)}")
    if not (ref.view in ("", "transposed") or ref.n_head or ref.rows):
        raise DataflowError(f"{name!r} is no view; there are {VIEWS}")
    if ref.rows and ref.rows not in known:
        raise DataflowError(f"{name!r} needs {ref.rows!r}, which is not given")


def store(known: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Keep what a step computed, under the activation's own name and shape."""
    ref = parse(name)
    known[ref.name] = define.merge_heads(array) if ref.view else array


def names(dataflow: Dataflow) -> list[str]:
    """The activations that a data flow computes, in order."""
    return [parse(key).name for key in dataflow]


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


def evaluate(
    dataflow: Dataflow, given: Arrays, compute: Callable[[str, list[np.ndarray]], np.ndarray]
) -> dict[str, np.ndarray]:
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
    return {name: known[name] for name in names(dataflow)}
