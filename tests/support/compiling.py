"""Compile a model without graphs that a test does not run: compiling takes most of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from maxwhisper.engine import graphs
from maxwhisper.engine.graphs import GraphSpec


@contextmanager
def without_graphs(*names: str) -> Iterator[None]:
    """Leave graphs out of the models that are loaded in the block."""
    all_specs = graphs.graph_specs

    def other_specs(*sizes: Any) -> tuple[GraphSpec, ...]:
        return tuple(spec for spec in all_specs(*sizes) if spec.name not in names)

    with mock.patch.object(graphs, "graph_specs", other_specs):
        yield
