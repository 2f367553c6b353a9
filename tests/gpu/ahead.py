"""Graphs compiled on one machine and loaded on another, which then compiles nothing.

A job makes something that compiles one module. On a machine without the GPU it stops there, and the
module is kept under the job's name. On the machine with the GPU, the same job loads what was kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from max.engine import InferenceSession, read

import maxwhisper
from maxwhisper.checkpoint import ModelDimensions, load_checkpoint
from maxwhisper.engine.dtypes import HALF_DTYPES
from reference.models.capture import activation_names
from reference.ops.suite import suite
from tests.support.checkpoints import random_checkpoint

# The sizes of large-v3-turbo.
TURBO = ModelDimensions(128, 1500, 1280, 20, 32, 51866, 448, 1280, 20, 4)
Job = Callable[[str], object]  # takes the device's name


def _model(name: str, compute_type: str) -> Job:
    return lambda device: maxwhisper.load_model(name, device, compute_type=compute_type)


def _instrumented(device: str) -> maxwhisper.Whisper:
    checkpoint = load_checkpoint("tiny.en")
    return maxwhisper.Whisper(checkpoint, device, activation_names(checkpoint.dims))


def turbo(device: str) -> maxwhisper.Whisper:
    """Make a model of large-v3-turbo's sizes, with random weights, in float16."""
    return maxwhisper.Whisper(random_checkpoint(TURBO), device, compute_type="float16")


def jobs(device: str) -> dict[str, Job]:
    """Return what is compiled ahead, by name, the most needed first."""
    common: dict[str, Job] = {
        "tiny.en-float32": _model("tiny.en", "float32"),
        "instrumented": _instrumented,
        "ops": suite,
    }
    if device == "cpu":
        return common
    halves = {f"tiny.en-{compute_type}": _model("tiny.en", compute_type) for compute_type in HALF_DTYPES}
    return common | halves | {"base-float32": _model("base", "float32"), "turbo-float16": turbo}


class Kept(Exception):
    """A module has been compiled and kept."""


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Keep the module that is compiled in the block, and end the block there."""

    def compile_and_keep(session: InferenceSession, module: Any, **options: Any) -> None:
        compile(session, module, **options).export_mef(path)
        raise Kept

    compile = InferenceSession.compile
    with mock.patch.multiple(InferenceSession, compile=compile_and_keep, load_all=compile_and_keep):
        try:
            yield
        except Kept:
            return
    raise RuntimeError(f"nothing was compiled for {path.name}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read the module that would be compiled in the block."""

    def compile(session: InferenceSession, module: Any, **options: Any) -> Any:
        return read(path)

    def load_all(session: InferenceSession, module: Any, weights_registry: Any = None, **options: Any) -> Any:
        return session.init_all(read(path), weights_registry=weights_registry or {})

    with mock.patch.multiple(InferenceSession, compile=compile, load_all=load_all):
        yield
