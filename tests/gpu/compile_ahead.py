"""Compile rows of the op suite and models for a GPU. The GPU need not be present."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from max.driver import Device
from max.engine import CompiledModel, InferenceSession
from max.graph import DeviceRef, Module

from maxwhisper import WhisperError, available_models
from maxwhisper.checkpoint import load_checkpoint
from maxwhisper.engine.compiled import Target, compile_graphs, compiling_for, cpu_level
from maxwhisper.engine.devices import absent_gpu
from maxwhisper.engine.dtypes import HALF_DTYPES
from maxwhisper.engine.ops import kernels
from reference.ops import Op, rows_on
from reference.ops.suite import build_module
from tests.gpu.sass import kernels_on_tensor_cores

MODELS = ("tiny.en", "base")
# A parameter of MAX's matrix product by cuBLAS, which appears in compiled graphs.
TF32 = b"use_tf32=true"
SINGLE = ("float32",)
COMPUTE_TYPES = (*SINGLE, *HALF_DTYPES)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile rows and models, and print a line for each; return 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(prog="nox -s gpu_compile --", description=__doc__)
    parser.add_argument(
        "--gpu",
        default="sm_90",
        metavar="ARCHITECTURE",
        help="for example sm_80, sm_89 or sm_90 (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        nargs="*",
        default=MODELS,
        choices=available_models(),
        metavar="MODEL",
        help=f"default: {' '.join(MODELS)}",
    )
    parser.add_argument(
        "--compute_type",
        nargs="*",
        default=COMPUTE_TYPES,
        choices=COMPUTE_TYPES,
        metavar="TYPE",
        help="of the models (default: all)",
    )
    parser.add_argument(
        "--op",
        nargs="*",
        default=list(rows_on("gpu")),
        choices=rows_on("gpu"),
        metavar="OP",
        help="rows of the op suite (default: all)",
    )
    args = parser.parse_args(argv)
    rows = {name: op for name, op in rows_on("gpu").items() if name in args.op and not op.on_host}
    failures = 0
    # MAX adds code from its cache to a compiled graph, even code of other graphs. An empty cache
    # keeps other code out of the exported graphs.
    with TemporaryDirectory() as cache, mock.patch.dict(os.environ, MODULAR_CACHE_DIR=cache):
        try:
            device = absent_gpu(args.gpu)
        except WhisperError as error:
            parser.error(str(error))
        for name, problem, seconds in compiled(
            rows, [(model, type) for model in args.model for type in args.compute_type], device
        ):
            print(f"{args.gpu}  {name:32} {seconds:6.0f} s  {problem or 'compiled'}", flush=True)
            failures += bool(problem)
    return int(failures > 0)


def compiled(
    rows: Mapping[str, type[Op]], models: Sequence[tuple[str, str]], device: Device
) -> Iterator[tuple[str, str, float]]:
    """Compile rows and models for a device.

    Rows are compiled together, which is much faster. If that fails, each row is compiled alone, to
    name those that fail. float32 is compiled apart from half precision, because only half precision
    may be multiplied on tensor cores.

    Args:
        rows: Rows of the op suite, by name.
        models: Names of models, each with its compute type.
        device: The device to compile for.

    Yields:
        The name, the problem ("" if there is none) and the seconds that it took.
    """
    session = InferenceSession(devices=[device])

    def compile_rows(batch: Mapping[str, type[Op]], dtypes: Sequence[str]) -> CompiledModel:
        module: Module = build_module(batch, DeviceRef.from_device(device), dtypes)
        with compiling_for(cpu_level()):
            return session.compile(module, custom_extensions=kernels())

    def timed(name: str, compile_it: Callable[[], CompiledModel], may_round: bool = False) -> tuple[str, str, float]:
        begin = time.perf_counter()
        try:
            artifact = _exported(compile_it())
            problem = "" if may_round else rounds_to_tf32(artifact)
        except (RuntimeError, ValueError, WhisperError) as error:
            problem = str(error).strip()
        return name, problem, time.perf_counter() - begin

    for dtypes in (SINGLE, HALF_DTYPES):
        batch = {name: op for name, op in rows.items() if not set(dtypes).isdisjoint(op.dtypes)}
        may_round = dtypes == HALF_DTYPES
        if not batch:
            continue
        together = timed(
            f"{len(batch)} rows in {' and '.join(dtypes)}", partial(compile_rows, batch, dtypes), may_round
        )
        alone = list[tuple[str, str, float]]()
        if together[1]:
            print("some rows failed; compiling each row alone", file=sys.stderr, flush=True)
            alone = [timed(name, partial(compile_rows, {name: op}, dtypes), may_round) for name, op in batch.items()]
        yield from alone
        if not any(problem for _, problem, _ in alone):
            yield together
    for model, compute_type in models:
        target = Target.of(load_checkpoint(model), device, cpu_level(), compute_type)
        yield timed(
            f"{model} in {compute_type}",
            partial(_compile_model, target, session),
            may_round=compute_type in HALF_DTYPES,
        )


def _compile_model(target: Target, session: InferenceSession) -> CompiledModel:
    return compile_graphs(target, session)[0]


def rounds_to_tf32(artifact: bytes) -> str:
    """Name the kernels of a float32 graph that round to TF32; return "" if none does.

    Args:
        artifact: The exported graph, compiled for a GPU.
    """
    names = [name[:60] for name in kernels_on_tensor_cores(artifact)] + ["cuBLAS"] * (TF32 in artifact)
    return f"rounds float32 to TF32: {', '.join(names)}" if names else ""


def _exported(compiled: CompiledModel) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graphs"
        compiled.export_mef(path)
        return path.read_bytes()


if __name__ == "__main__":
    raise SystemExit(main())
