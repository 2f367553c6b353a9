"""A data flow: which op computes each activation, and from which inputs.

The same few lines serve two purposes. The float64 truth evaluates the definitions along them. The
judge compares each activation of a different implementation with its definition on that
implementation's own inputs.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from reference.numerics import definitions as define


class Step(NamedTuple):
    """An op of the table, and the names of its inputs.

    An input is an earlier activation, a weight, or an input of the model. A view of the array may
    follow the name: `:transposed`; `:6 heads`, the last dimension split into heads; `:at
    positions`, the rows at the indices in the array `positions`. A step whose own name ends in
    `heads` computes that view of the activation.
    """

    op: str
    sources: tuple[str, ...]


Dataflow = Mapping[str, Step]
Arrays = Mapping[str, np.ndarray]
VIEWS = "':transposed', ':N heads' and ':at NAME'"
_HEADS = re.compile(r"([1-9]\d*) heads")
_ROWS = re.compile(r"at (.+)")


class Ref(NamedTuple):
    """A name with a view, as a step has it.

    `attn.query:6 heads` is Ref("attn.query", "6 heads").
    """

    name: str
    view: str

    @property
    def n_head(self) -> int:
        """Heads that the view splits the last dimension into; 0 if it splits none."""
        match = _HEADS.fullmatch(self.view)
        return int(match[1]) if match else 0

    @property
    def rows(self) -> str:
        """The name of the array whose indices the view takes rows at; "" if it takes all."""
        match = _ROWS.fullmatch(self.view)
        return match[1] if match else ""


def parse(reference: str) -> Ref:
    """Split a reference into the array's name and the view of it."""
    name, _, view = reference.partition(":")
    return Ref(name, view)


class DataflowError(ValueError):
    """An invalid data flow, or arrays that do not fit it.

    The message names the step, says what is wrong with it, and lists the alternatives.
    """


def look_up(arrays: Arrays, name: str) -> np.ndarray:
    """Return an activation, or a view of it.

    Raises:
        DataflowError: The name is unknown, or there is no such view, or an array of this shape does
            not have it.
    """
    check_name(name, arrays)
    ref = parse(name)
    array = arrays[ref.name]
    try:
        if ref.rows:
            return array[arrays[ref.rows]]
        if ref.n_head:
            _batch, _n, _n_state = array.shape  # because `split_heads` takes other shapes, too
            return define.split_heads(array, ref.n_head)
        return array.swapaxes(1, 2) if ref.view else array
    except (ValueError, IndexError) as error:
        raise DataflowError(f"{name!r} can't be taken of shape {list(array.shape)}: {error}") from error


def check_name(name: str, arrays: Collection[str]) -> None:
    """Check that a name, and the view in it, refer to an array.

    Raises:
        DataflowError: The array is missing, or there is no such view.
    """
    ref = parse(name)
    if ref.name not in arrays:
        raise DataflowError(f"{ref.name!r} is neither given nor computed before{nearest(ref.name, arrays)}")
    if not (ref.view in ("", "transposed") or ref.n_head or ref.rows):
        raise DataflowError(f"{name!r} is no view; there are {VIEWS}")
    if ref.rows and ref.rows not in arrays:
        raise DataflowError(f"{name!r} needs {ref.rows!r}, which is not given")


def store(arrays: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Store the result of a step under the activation's own name and shape."""
    ref = parse(name)
    arrays[ref.name] = define.merge_heads(array) if ref.view else array


def names(dataflow: Dataflow) -> list[str]:
    """Return the names of the activations that a data flow computes, in order."""
    return [parse(key).name for key in dataflow]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Suggest up to three names with a similar spelling.

    Returns:
        The end of an error message about an unknown name; "" if no name is similar.
    """
    similar = ", ".join(map(repr, get_close_matches(name, candidates)))
    return f"; nearest: {similar}" if similar else ""


@contextmanager
def naming(step: str) -> Iterator[None]:
    """Name the step in a DataflowError that is raised in the block."""
    try:
        yield
    except DataflowError as error:
        raise DataflowError(f"step {step!r}: {error}") from error.__cause__


def evaluate(
    dataflow: Dataflow, arrays: Arrays, compute: Callable[[str, list[np.ndarray]], np.ndarray]
) -> dict[str, np.ndarray]:
    """Compute all activations in order.

    Args:
        dataflow: The steps.
        arrays: Weights and the model's inputs, by name.
        compute: Called as `compute(op, inputs)` for each step; returns the activation.

    Raises:
        DataflowError: An array is missing, or an op can't be computed from arrays of these shapes.
    """
    computed = dict(arrays)
    for name, (op, sources) in dataflow.items():
        with naming(name):
            inputs = [look_up(computed, source) for source in sources]
            try:
                store(computed, name, compute(op, inputs))
            except (ValueError, IndexError) as error:
                shapes = ", ".join(str(list(array.shape)) for array in inputs)
                raise DataflowError(f"{op} of shapes {shapes}: {error}") from error
    return {name: computed[name] for name in names(dataflow)}
