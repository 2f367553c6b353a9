"""The definition of a planted fault. A fault patches `maxwhisper` from outside."""

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
    """A mistake to plant, and the name that must be blamed for it. A control blames nothing."""

    name: str
    # The activation or stage that must be blamed; empty for a control.
    expected_culprit: str
    # Where the mistake occurs in the real world.
    origin: str
    # For each name that `maxwhisper`'s modules look up, such as `engine.ops.gelu`: a function that
    # makes the replacement from the original object.
    replaces: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    # Changes the checkpoint's weights, in float32. They are stored in their original dtype.
    weights: Callable[[Weights], Weights] | None = None
    # The row of the op suite that shows the fault alone, if one does.
    op: str = ""
    # The name of the real model that the fault is planted into.
    model: str = "tiny.en"
    # The resemblance that the parity report must mention.
    looks_like: str = ""
    # Whether the judge uses the changed weights, too.
    judge_sees_weights: bool = False
    # Options of transcription, for a fault that shows only with them.
    options: Mapping[str, Any] = field(default_factory=dict)
    # Whether OpenAI Whisper computes the network instead of MAX.
    by_torch: bool = False

    @property
    def is_in_graphs(self) -> bool:
        """Whether graphs are built with the fault, so that they must be compiled."""
        return any(name.startswith(("engine.ops.", "engine.graphs.")) for name in self.replaces)

    def checkpoint(self, original: Checkpoint) -> Checkpoint:
        """Return the checkpoint to load: the original one, or a copy with changed weights."""
        if self.weights is None:
            return original
        changed = self.weights({name: np.asarray(array, np.float32) for name, array in original.weights.items()})
        stored = {name: np.asarray(array, original.weights[name].dtype) for name, array in changed.items()}
        return Checkpoint(original.dims, stored, self.name)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Patch `maxwhisper` until the end of the block."""
        with ExitStack() as stack:
            for path, make in self.replaces.items():
                place, _, name = path.rpartition(".")
                for target in _places(place, name):
                    stack.enter_context(mock.patch.object(target, name, make(getattr(target, name))))
            yield


def _places(path: str, name: str) -> list[Any]:
    """Return the modules or classes of `maxwhisper` in which to replace a name.

    An operation is replaced in each backend that has it.
    """
    if path == "engine.ops":
        return [backend for backend in (cpu, portable) if hasattr(backend, name)]
    place: Any = import_module("maxwhisper")
    for step in path.split("."):
        place = _step_into(place, step)
    return [place]


def _step_into(place: Any, name: str) -> Any:
    """Return a package's module of that name, or else an attribute.

    The module comes first because a package may have a function of the same name.
    """
    if hasattr(place, "__path__") and find_spec(f"{place.__name__}.{name}"):
        return import_module(f"{place.__name__}.{name}")
    return getattr(place, name)


def control(name: str, origin: str, **fields: Any) -> Fault:
    """Make a harmless change, which computes the same in a different way; nothing may be blamed."""
    return Fault(name, "", origin, **fields)


def instead(replacement: Any) -> Callable[[Any], Any]:
    """Return a function that ignores the original and returns the replacement."""
    return lambda original: replacement
