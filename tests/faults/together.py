"""Compile many faulty models together.

They share most of their kernels, so one more model costs seconds. Compiled alone, it costs minutes.
"""

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


def compile_together(faults: Iterable[Fault], correct_model: Whisper) -> dict[str, Whisper]:
    """Compile a model for each fault in graph building, in which one graph has the fault.

    That graph is the first that the fault changes. The fault shows there, so the others are shared
    with the correct model.

    Args:
        faults: Faults of any kind. Those outside graph building are ignored.
        correct_model: The model without any fault, with every activation captured.

    Returns:
        Models by the names of the faults.
    """
    module = Module()
    captured: dict[str, list[str]] = {}
    correct_texts = _graph_texts(correct_model)
    faults = [fault for fault in faults if fault.is_in_graphs]
    for fault in faults:
        with fault.planted():
            changed = next(name for name, text in _graph_texts(correct_model).items() if text != correct_texts[name])
            captured |= _build(correct_model, fault.name, changed, module)
    session = InferenceSession(devices=[correct_model.device])
    with compiling_for(cpu_level()):
        compiled = session.load_all(module, weights_registry=correct_model.runtime.weights, custom_extensions=kernels())
    return {fault.name: _variant(correct_model, fault.name, compiled, captured) for fault in faults}


def _variant(correct_model: Whisper, name: str, compiled: Any, captured: dict[str, list[str]]) -> Whisper:
    model, original = copy(correct_model), correct_model.runtime
    model.runtime = runtime = copy(original)
    runtime.activations = {}
    own = {graph: f"{name}:{graph}" for graph in original.captured if f"{name}:{graph}" in captured}
    runtime.graphs = {**original.graphs, **{graph: compiled[key] for graph, key in own.items()}}
    runtime.captured = {**original.captured, **{graph: captured[key] for graph, key in own.items()}}
    return model


def _graph_texts(model: Whisper) -> dict[str, str]:
    """Build the model's graphs with the current patches, and return their texts by name."""
    built: list[Graph] = []

    def separate(name: str, **options: Any) -> Graph:
        built.append(Graph(name, **{**options, "module": Module()}))
        return built[-1]

    _build_with(separate, model)
    return {graph.name: str(graph) for graph in built}


def _build(model: Whisper, prefix: str, wanted: str, module: Module) -> dict[str, list[str]]:
    """Build one graph with the current patches into a module.

    Returns:
        By the graph's prefixed name, the names of the activations that it captures.
    """

    def prefixed(name: str, **options: Any) -> Graph:
        return Graph(f"{prefix}:{name}", **{**options, "module": module if name == wanted else Module()})

    key = f"{prefix}:{wanted}"
    return {key: _build_with(prefixed, model)[key]}


def _build_with(make_graph: Callable[..., Graph], model: Whisper) -> dict[str, list[str]]:
    with mock.patch.object(graphs, "Graph", make_graph):
        return graphs.build_module(
            model.dims,
            DeviceRef.from_device(model.device),
            activation_names(model.dims),
            model.dtypes,
            model.runtime.backend,
        )[1]
