"""What a planted mistake is. Everything is planted from outside: `maxwhisper` knows nothing of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np

from maxwhisper.checkpoint import Checkpoint
from maxwhisper.engine.ops import cpu, portable

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Fault:
    """A mistake: what must be blamed for it, and where it comes from in the real world.

    replaces: for each name that `maxwhisper`'s modules look up, such as `engine.ops.gelu`, what stands there instead, made from what stood
    there. weights: what the checkpoint's become, in float32; they are stored as before.
    op: the row of the table that shows it alone, if one does.
    model: which real weights it is planted into. looks_like: what parity must say that it resembles. knows: the judge has the changed
    weights, too. options: how to transcribe, where it shows in no other way. by_torch: OpenAI Whisper computes the network, in MAX's place.
    """

    name: str
    blames: str
    copies: str
    replaces: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    weights: Callable[[Weights], Weights] | None = None
    op: str = ""
    model: str = "tiny.en"
    looks_like: str = ""
    knows: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    by_torch: bool = False

    @property
    def is_in_graphs(self) -> bool:
        """Graphs are built with it, so they have to be compiled."""
        return any(name.startswith(("engine.ops.", "engine.graphs.")) for name in self.replaces)

    def checkpoint(self, right: Checkpoint) -> Checkpoint:
        """The checkpoint that is loaded."""
        if self.weights is None:
            return right
        changed = self.weights({name: np.asarray(array, np.float32) for name, array in right.weights.items()})
        stored = {name: np.asarray(array, right.weights[name].dtype) for name, array in changed.items()}
        return Checkpoint(right.dims, stored, self.name)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Until the end of the block, `maxwhisper` makes the mistake."""
        with ExitStack() as stack:
            for path, make in self.replaces.items():
                place, _, name = path.rpartition(".")
                for target in _places(place, name):
                    stack.enter_context(mock.patch.object(target, name, make(getattr(target, name))))
            yield


def _places(path: str, name: str) -> list[Any]:
    """The modules or classes of `maxwhisper` in which a name is replaced: an operation in each backend that has it."""
    if path == "engine.ops":
        return [backend for backend in (cpu, portable) if hasattr(backend, name)]
    place: Any = import_module("maxwhisper")
    for step in path.split("."):
        place = _step_into(place, step)
    return [place]


def _step_into(place: Any, name: str) -> Any:
    """A package's module of that name, though the package may have a function so called; else an attribute."""
    if hasattr(place, "__path__") and find_spec(f"{place.__name__}.{name}"):
        return import_module(f"{place.__name__}.{name}")
    return getattr(place, name)


def control(name: str, copies: str, **how: Any) -> Fault:
    """Another way to compute the same, which nothing may be blamed for."""
    return Fault(name, "", copies, **how)


def instead(other: Any) -> Callable[[Any], Any]:
    """This, whatever stood there."""
    return lambda right: other
