"""Whether a data flow can be followed, asked before anything is computed: the first mistake in one line, with the step that makes it."""

from collections.abc import Collection, Container, Mapping, Sequence
from inspect import Parameter, signature

import numpy as np

from reference.flow.dataflow import Arrays, Dataflow, DataflowError, Step, check_name, look_up, naming, nearest, parse
from reference.ops import TABLE
from reference.ops.composed import Composed


def check_flow(flow: Dataflow, given: Arrays) -> None:
    """Raise DataflowError where a step names an op, an input or a view that there is not, or takes too few or too many inputs.

    given: weights and inputs, by name; of these, views are tried, too.
    """
    check_arrays(given)
    for name, step in flow.items():
        with naming(name):
            _check_form(step)
    known, keys = set(given), _keys(flow)
    for name, (op, sources) in flow.items():
        with naming(name):
            _check_own_name(name, keys)
            _check_op(op, sources)
            for source in sources:
                _check_order(source, name, flow, known)
                check_name(source, known)
                if parse(source).name in given:
                    look_up(given, source)
        known.add(parse(name).name)


def check_activations(
    flow: Dataflow, given: Arrays, activations: Arrays, exact: Arrays, only: Collection[str] | None
) -> None:
    """Raise DataflowError where what is to be compared, or what it was computed from, is missing. As `compare_activations`."""
    check_arrays(activations)
    keys = _keys(flow)
    for name in only or ():
        if name not in keys and name not in given:
            raise DataflowError(f"the flow has no step {name!r}{nearest(name, keys)}")
    for name, key in keys.items():
        if only is not None and name not in only:
            continue
        for needed in (*(parse(source).name for source in flow[key].sources), name):
            with naming(keys.get(needed, needed)):
                if needed not in activations and needed not in given:
                    raise DataflowError(f"the activations lack {needed!r}{nearest(needed, activations)}")
        with naming(key):
            if name not in exact:
                raise DataflowError(f"the truth lacks {name!r}; give what `truth` returns for this flow")


def check_arrays(arrays: Arrays) -> None:
    """Raise DataflowError for anything but NumPy arrays."""
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
    ops = {name: row for name, row in TABLE.items() if not issubclass(row, Composed)}  # a step can't be a composed one
    if op not in ops:
        raise DataflowError(f"there is no op {op!r}{nearest(op, ops)}; an op is a row of `reference.ops`")
    takes = list(signature(ops[op].bound).parameters.values())[1:]  # behind the roundings
    n_least = sum(parameter.default is Parameter.empty for parameter in takes)
    if not n_least <= len(sources) <= len(takes):
        n = " or ".join(map(str, range(n_least, len(takes) + 1)))
        names = ", ".join(parameter.name for parameter in takes)
        raise DataflowError(f"{op!r} takes {n} inputs ({names}), not {len(sources)}")


def _check_order(source: str, name: str, flow: Dataflow, known: Container[str]) -> None:
    base, keys = parse(source).name, _keys(flow)
    if base in known or base not in keys:
        return
    if way := _way(base, parse(name).name, flow):
        raise DataflowError(f"a cycle, {' ← '.join([parse(name).name, *way])}")
    raise DataflowError(
        f"{base!r} is computed by a later step, {keys[base]!r}; write steps in the order in which they are computed"
    )


def _keys(flow: Dataflow) -> dict[str, str]:
    """Activations' names, each with the key of the first step that computes it."""
    return {parse(key).name: key for key in reversed(list(flow))}


def _way(start: str, goal: str, flow: Dataflow) -> list[str]:
    """From an activation back, through what each is computed from, to another one; empty where none leads there."""
    sources = {parse(key).name: [parse(source).name for source in step[1]] for key, step in flow.items()}
    ways, seen = [[start]], {start}
    for way in ways:  # shortest first
        if way[-1] == goal:
            return way
        further = [name for name in sources.get(way[-1], ()) if name not in seen]
        seen.update(further)
        ways += [[*way, name] for name in further]
    return []
