"""Many faulty models compiled together: they share most of their kernels, so one more costs seconds where one alone costs minutes."""

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any
from unittest import mock

from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, Module

from maxwhisper import Whisper
from maxwhisper.engine import graphs
from maxwhisper.engine.compiled import compiling_for, cpu_level
from maxwhisper.engine.ops import kernels
from reference.models.capture import activation_names
from tests.faults.plant import Fault


def compile_together(faults: Iterable[Fault], sound: Whisper) -> dict[str, Whisper]:
    """For each fault that is in graph building a model, by the fault's name, of which one graph has it; the others are shared.

    The first that the fault changes: it shows there, and to compile it a second time would show nothing more.
    sound: the model without any fault, every activation captured.
    """
    module = Module()
    captured: dict[str, list[str]] = {}
    usual = _texts(sound)
    faults = [fault for fault in faults if fault.is_in_graphs]
    for fault in faults:
        with fault.planted():
            changed = next(name for name, text in _texts(sound).items() if text != usual[name])
            captured |= _build(sound, fault.name, changed, module)
    session = InferenceSession(devices=[sound.device])
    with compiling_for(cpu_level()):
        compiled = session.load_all(module, weights_registry=sound.runtime.weights, custom_extensions=kernels())
    return {fault.name: _variant(sound, fault.name, compiled, captured) for fault in faults}


def _variant(sound: Whisper, name: str, compiled: Any, captured: dict[str, list[str]]) -> Whisper:
    model, right = copy(sound), sound.runtime
    model.runtime = runtime = copy(right)
    runtime.activations = {}
    own = {graph: f"{name}:{graph}" for graph in right.captured if f"{name}:{graph}" in captured}
    runtime.graphs = {**right.graphs, **{graph: compiled[key] for graph, key in own.items()}}
    runtime.captured = {**right.captured, **{graph: captured[key] for graph, key in own.items()}}
    return model


def _texts(sound: Whisper) -> dict[str, str]:
    """The graphs as they would be built now."""
    made: list[Graph] = []

    def aside(name: str, **how: Any) -> Graph:
        made.append(Graph(name, **{**how, "module": Module()}))
        return made[-1]

    _build_with(aside, sound)
    return {graph.name: str(graph) for graph in made}


def _build(sound: Whisper, prefix: str, wanted: str, module: Module) -> dict[str, list[str]]:
    """One of the graphs, as it is built now, into a module; the names of its outputs besides its own."""

    def named(name: str, **how: Any) -> Graph:
        return Graph(f"{prefix}:{name}", **{**how, "module": module if name == wanted else Module()})

    key = f"{prefix}:{wanted}"
    return {key: _build_with(named, sound)[key]}


def _build_with(make: Callable[..., Graph], sound: Whisper) -> dict[str, list[str]]:
    with mock.patch.object(graphs, "Graph", make):
        return graphs.build_module(
            sound.dims, DeviceRef.from_device(sound.device), activation_names(sound.dims), sound.dtypes
        )[1]
