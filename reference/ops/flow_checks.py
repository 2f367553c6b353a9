"""Checks of a data flow before anything is computed.

The first mistake is reported in one line, with the step that contains it.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from inspect import Parameter, signature

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, DataflowError, Step, check_name, look_up, naming, nearest, parse
from reference.ops import OTHERS, TABLE
from reference.ops.composed import Composed


def check_flow(flow: Dataflow, inputs: Arrays) -> None:
    """Check that every step is valid.

    A step must name an op, inputs and views that exist, and take the right number of inputs.

    Args:
        flow: The data flow.
        inputs: Weights and the model's inputs, by name. Views of them are tried as well.

    Raises:
        DataflowError: A step is invalid.
    """
    check_arrays(inputs)
    for name, step in flow.items():
        with naming(name):
            _check_form(step)
    available, keys = set(inputs), _keys(flow)
    for name, (op, sources) in flow.items():
        with naming(name):
            _check_own_name(name, keys)
            _check_op(op, sources)
            for source in sources:
                _check_order(source, name, flow, available)
                check_name(source, available)
                if parse(source).name in inputs:
                    look_up(inputs, source)
        available.add(parse(name).name)


def check_activations(
    flow: Dataflow, inputs: Arrays, activations: Arrays, exact: Arrays, only: Collection[str] | None
) -> None:
    """Check that everything to be compared is there, and the inputs that it is computed from.

    Args:
        flow: The data flow.
        inputs: Weights and the model's inputs, by name.
        activations: The implementation's activations, by name.
        exact: The truth, by name.
        only: The names to compare; None for all. As in `compare_activations`.

    Raises:
        DataflowError: Something is missing.
    """
    check_arrays(activations)
    keys = _keys(flow)
    for name in only or ():
        if name not in keys and name not in inputs:
            raise DataflowError(f"the flow has no step {name!r}{nearest(name, keys)}")
    for name, key in keys.items():
        if only is not None and name not in only:
            continue
        for needed in (*(parse(source).name for source in flow[key].sources), name):
            with naming(keys.get(needed, needed)):
                if needed not in activations and needed not in inputs:
                    raise DataflowError(f"the activations lack {needed!r}{nearest(needed, activations)}")
        with naming(key):
            if name not in exact:
                raise DataflowError(f"the truth lacks {name!r}; give what `truth` returns for this flow")


def check_arrays(arrays: Arrays) -> None:
    """Check that all are NumPy arrays.

    Raises:
        DataflowError: One is not.
    """
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataflowError(f"{name!r} is given as a {type(array).__name__}; give a NumPy array")


def _check_form(step: Step) -> None:
    if isinstance(step, str) or len(step) != 2:
        raise DataflowError(f"{step!r} is no Step(op, (names of inputs))")
    if isinstance(step[1], str):
        raise DataflowError(f"sources are {step[1]!r}, not a tuple of names; write ({step[1]!r},)")
    for source in step[1]:
        if not isinstance(source, str):
            raise DataflowError(f"an {type(source).__name__} stands where a name belongs; give arrays by name")


def _check_own_name(name: str, keys: Mapping[str, str]) -> None:
    ref = parse(name)
    if ref.view and not ref.n_head:
        raise DataflowError(f"{ref.view!r} is no view of a result; only 'N heads' is")
    if keys[ref.name] != name:
        raise DataflowError(f"{ref.name!r} is computed by step {keys[ref.name]!r} already")


def _check_op(op: str, sources: Sequence[str]) -> None:
    ops = {name: row for name, row in (TABLE | OTHERS).items() if not issubclass(row, Composed)}  # no step is composed
    if op not in ops:
        raise DataflowError(f"there is no op {op!r}{nearest(op, ops)}; an op is a row of `reference.ops`")
    parameters = [p for p in signature(ops[op].bound).parameters.values() if p.kind != Parameter.KEYWORD_ONLY]
    parameters = parameters[1:]  # without the roundings
    n_required = sum(parameter.default is Parameter.empty for parameter in parameters)
    if not n_required <= len(sources) <= len(parameters):
        n = " or ".join(map(str, range(n_required, len(parameters) + 1)))
        names = ", ".join(parameter.name for parameter in parameters)
        raise DataflowError(f"{op!r} takes {n} inputs ({names}), not {len(sources)}")


def _check_order(source: str, name: str, flow: Dataflow, available: Container[str]) -> None:
    base, keys = parse(source).name, _keys(flow)
    if base in available or base not in keys:
        return
    if path := _path(base, parse(name).name, flow):
        raise DataflowError(f"a cycle, {' ← '.join([parse(name).name, *path])}")
    raise DataflowError(
        f"{base!r} is computed by a later step, {keys[base]!r}; write steps in the order in which they are computed"
    )


def _keys(flow: Dataflow) -> dict[str, str]:
    """Map activations' names to the key of the first step that computes each of them."""
    return {parse(key).name: key for key in reversed(list(flow))}


def _path(start: str, goal: str, flow: Dataflow) -> list[str]:
    """Return the shortest path from one activation back through its sources to another.

    Args:
        start: The name of the activation to start from.
        goal: The name of the activation to reach.
        flow: The data flow.

    Returns:
        The names on the path, with both ends; empty if there is none.
    """
    sources = {parse(key).name: [parse(source).name for source in step[1]] for key, step in flow.items()}
    paths, seen = [[start]], {start}
    for path in paths:  # shortest first
        if path[-1] == goal:
            return path
        unseen = [name for name in sources.get(path[-1], ()) if name not in seen]
        seen.update(unseen)
        paths += [[*path, name] for name in unseen]
    return []
