"""Which op computes each activation, and from what. The same few lines are the float64 truth, when definitions are evaluated along them,
and the judge, when each activation of another implementation is held against its definition on that implementation's own inputs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from reference import definitions as define


class Step(NamedTuple):
    """An op of the table, and the names of its inputs: activations before it, weights, or what the model is given.

    A name may be followed by a view of the array: `:transposed`; `:6 heads` for its last dimension split into heads; `:positions` for its
    rows at these. A step whose own name ends in `heads` computes that view of the activation.
    """

    op: str
    sources: tuple[str, ...]


Dataflow = Mapping[str, Step]
Arrays = Mapping[str, np.ndarray]


def look_up(known: Arrays, name: str) -> np.ndarray:
    """An activation, or a view of it.

    Raises KeyError for a name that is not known.
    """
    base, view = split(name)
    if view == "transposed":
        return known[base].swapaxes(1, 2)
    if view == "positions":
        return known[base][known["positions"]]
    return define.split_heads(known[base], int(view.split()[0])) if view else known[base]


def store(known: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Keep what a step computed, under the activation's own name and shape."""
    base, view = split(name)
    known[base] = define.merge_heads(array) if view else array


def split(name: str) -> tuple[str, str]:
    """The activation's name, and its view."""
    base, _, view = name.partition(":")
    return base, view


def evaluate(dataflow: Dataflow, given: Arrays, compute: Callable[[str, list[np.ndarray]], np.ndarray]) -> dict[str, np.ndarray]:
    """All activations in order, each computed by `compute(op, inputs)` from those before it and from what is given."""
    known = dict(given)
    for name, (op, sources) in dataflow.items():
        store(known, name, compute(op, [look_up(known, source) for source in sources]))
    return {split(name)[0]: known[split(name)[0]] for name in dataflow}
