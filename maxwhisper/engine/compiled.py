"""Compiled graphs as files, so that each model is compiled only once.

Graphs are compiled when a model is first loaded, or ahead of time by `maxwhisper compile`. A file's
name contains a hash of its target and the sha256 of its content. MAX would run a file as machine
code, so a file that is damaged or belongs to a different target is never passed to MAX.
"""

import hashlib
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from max.driver import Device, get_virtual_cpu_target, set_virtual_cpu_target
from max.engine import CompiledModel, InferenceSession, read
from max.graph import DeviceRef

from maxwhisper.checkpoint import Checkpoint, ModelDimensions
from maxwhisper.engine.dtypes import AUTO, COMPUTE_TYPES, DTypes, resolved
from maxwhisper.engine.graphs import build_module
from maxwhisper.engine.ops import Backend, backend_for, kernels
from maxwhisper.engine.ops import cpu as cpu_backend
from maxwhisper.errors import OptionError, OutputError, WhisperError, WhisperWarning
from maxwhisper.system import user_cache

PACKAGE = Path(__file__).parents[1]
PACKAGED = PACKAGE / "assets" / "compiled"  # compiled graphs that a wheel may contain
# The source files that determine the graphs.
SOURCES = (
    "engine/graphs.py",
    "engine/decoder_block.py",
    "engine/dtypes.py",
    "engine/log_mel.py",
    "engine/quantization.py",
    "engine/ops/*.py",
    "engine/kernels/*.mojo",
    "engine/kernels/nvidia/*.mojo",
    "audio.py",
    "checkpoint/dimensions.py",
)
HOST = "host"  # the exact processor of the machine that compiles
# CPU levels, the best first, each with the features in Linux's /proc/cpuinfo that it requires:
# levels of x86-64 (from its psABI), and one Intel processor.
CPU_LEVELS = {
    # x86-64-v4 with int8 products (VNNI)
    "cascadelake": {
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
    },
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    HOST: set[str](),
}


def folder() -> Path:
    """Return the cache folder: `MAXWHISPER_CACHE`, or `maxwhisper` in the user's cache folder.

    Raises:
        OutputError: if neither exists.
    """
    if configured := os.environ.get("MAXWHISPER_CACHE"):
        return Path(configured)
    if (default := user_cache("maxwhisper")) is None:
        raise OutputError("there is no home folder to keep compiled graphs in; set MAXWHISPER_CACHE to a folder")
    return default


def cpu_level(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the best of `CPU_LEVELS` that this machine's processor supports."""
    features = set[str]()
    with suppress(OSError, StopIteration), cpuinfo.open(encoding="utf-8") as lines:
        features = set(next(line for line in lines if line.startswith("flags")).split())
    return next(level for level, needed in CPU_LEVELS.items() if needed <= features)


@contextmanager
def compiling_for(cpu: str) -> Iterator[None]:
    """Make MAX compile for any processor of a level, instead of for this machine's processor."""
    before = get_virtual_cpu_target()
    set_virtual_cpu_target("" if cpu == HOST else cpu)
    try:
        yield
    finally:
        set_virtual_cpu_target(before)


@dataclass(frozen=True)
class Target:
    """Everything that determines a model's compiled graphs, except for the version of the code."""

    dims: ModelDimensions
    dtypes: DTypes
    device: Device
    cpu: str  # one of `CPU_LEVELS`
    backend: Backend = cpu_backend
    compute_type: str = "float32"  # which determines `dtypes`

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        device: Device,
        cpu: str,
        compute_type: str = "float32",
        backend: Backend | None = None,
    ) -> "Target":
        """Describe the compiled graphs of a checkpoint.

        Args:
            checkpoint: supplies the sizes and the dtypes of the weights.
            device: runs the graphs.
            cpu: one of `CPU_LEVELS`.
            compute_type: one of `COMPUTE_TYPES`, or `AUTO`.
            backend: the device's own by default.

        Raises:
            OptionError: if the compute type is unknown or the backend lacks it. int8 runs on the
                CPU only, half precision on GPUs only.
        """
        backend = backend or backend_for(DeviceRef.from_device(device), checkpoint.dims)
        compute_type = resolved(compute_type, checkpoint, device.is_host)
        if compute_type not in COMPUTE_TYPES:
            raise OptionError(f"compute_type {compute_type!r} is none of {', '.join((AUTO, *COMPUTE_TYPES))}")
        if compute_type not in backend.COMPUTE_TYPES:
            cpu_only = "the CPU", "or use the device 'cpu'"
            gpu_only = "GPUs", "or use 'int8', which is faster here"
            place, remedy = cpu_only if compute_type == "int8" else gpu_only
            raise OptionError(f"compute_type {compute_type!r} is available on {place} only; leave it out, {remedy}")
        dtypes = DTypes.of(checkpoint, compute_type, backend.multiplies_float16)
        return cls(checkpoint.dims, dtypes, device, cpu, backend, compute_type)

    @property
    def name(self) -> str:
        """A name that differs if a field, MAX's version or the code that builds graphs differs."""
        return self.names[0]

    @cached_property
    def names(self) -> list[str]:
        """The names of all targets whose graphs the device runs, its own first."""
        sources = sorted(path for pattern in SOURCES for path in PACKAGE.glob(pattern))
        details = {
            "dims": asdict(self.dims),
            "dtypes": {
                name: str(dtype)
                for name, dtype in {**self.dtypes.weights, "activations": self.dtypes.activations}.items()
            },
            "backend": self.backend.__name__,
            "sources": [[path.name, path.read_text(encoding="utf-8")] for path in sources],
            "system": [platform.system(), platform.machine(), *([platform.node()] if self.cpu == HOST else [])],
        }
        digest = hashlib.sha256(json.dumps(details, sort_keys=True).encode()).hexdigest()[:16]
        device = "cpu" if self.device.is_host else self.device.architecture_name
        # A GPU of sm_90a, as an H100 calls itself, also runs code for sm_90. An sm_90 lacks
        # instructions of sm_90a. MAX chooses kernels by the architecture, so no other is tried.
        devices = dict.fromkeys([device, re.sub(r"(sm_\d+)a", r"\1", device)])
        sizes = f"{self.dims.n_text_state}x{self.dims.n_audio_layer}+{self.dims.n_text_layer}"
        return [f"whisper-{sizes}-{device}-{self.cpu}-max-{version('max')}-{digest}" for device in devices]


def graphs_for(target: Target, session: InferenceSession) -> CompiledModel:
    """Read a target's compiled graphs, or compile and store them.

    Warns with WhisperWarning if they can't be stored.
    """
    with suppress(OutputError):
        if path := find(target, folder()):
            return read(path)
    if path := find(target, PACKAGED):
        return read(path)
    compiled, _ = compile_graphs(target, session)
    try:
        keep(compiled.export_mef, target, folder())
    except OutputError as error:
        warnings.warn(f"the model will be compiled again each time: {error}", WhisperWarning, stacklevel=2)
    return compiled


def compile_graphs(
    target: Target, session: InferenceSession, capture: Iterable[str] = ()
) -> tuple[CompiledModel, dict[str, list[str]]]:
    """Compile a target's graphs, which takes minutes, or seconds if MAX's own cache has them.

    Args:
        target: describes the graphs.
        session: compiles them.
        capture: names of activations that the graphs return as extra outputs.

    Returns:
        The compiled graphs, and for each graph the names of its extra outputs.

    Raises:
        WhisperError: if MAX can't compile them.
    """
    module, captured = build_module(
        target.dims, DeviceRef.from_device(target.device), capture, target.dtypes, target.backend
    )
    try:
        with compiling_for(target.cpu):
            return session.compile(module, custom_extensions=kernels()), captured
    except RuntimeError as error:
        reason, *_ = str(error).split("\n")
        raise WhisperError(
            f"MAX could not compile the model for {target.device.label} and {target.cpu}: {reason}"
        ) from error


def find(target: Target, where: Path) -> Path | None:
    """Return the file in `where` with a target's graphs, or None if it is missing or damaged."""
    for name in target.names:
        for path in where.glob(f"{name}.*.mef"):
            with suppress(OSError):
                if path.name == _file_name(name, path):
                    return path
    return None


@contextmanager
def writing_to(where: Path) -> Iterator[Path]:
    """Provide a temporary folder inside `where`, and therefore on the same file system.

    Raises:
        OutputError: if nothing can be written there.
    """
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where) as unfinished:
            yield Path(unfinished)
    except OSError as error:
        raise OutputError(
            f"compiled graphs can't be kept in {where} ({error.strerror}); choose another folder"
        ) from error


def keep(export: Callable[[Path], None], target: Target, where: Path) -> Path:
    """Store a target's graphs in `where` for `find`; atomic, so processes may do this concurrently.

    Args:
        export: writes the graphs to a path.
        target: describes the graphs.
        where: the folder.

    Returns:
        The path of the file.

    Raises:
        OutputError: if nothing can be written there.
    """
    with writing_to(where) as unfinished:
        path = unfinished / "graphs"
        export(path)
        return path.replace(where / _file_name(target.name, path))


def _file_name(name: str, path: Path) -> str:
    with path.open("rb") as file:
        return f"{name}.{hashlib.file_digest(file, 'sha256').hexdigest()}.mef"
