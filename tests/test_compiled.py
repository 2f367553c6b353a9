"""The cache of compiled graphs: stored once, found again, and never used for something else."""

import ast
import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType

from maxwhisper import OutputError, Whisper, WhisperWarning
from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.engine import compiled
from maxwhisper.engine.compiled import CPU_LEVELS, HOST, PACKAGE, SOURCES, Target, cpu_level, find, folder, keep
from maxwhisper.engine.dtypes import DTypes
from tests.support.implementations import Implementations

DIMS = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
TARGET = Target(DIMS, DTypes({"a.weight": DType.float16}), CPU(), "x86-64-v4")


def export(path: Path) -> None:
    """Write a file, as the compiler would."""
    path.write_bytes(b"compiled")


def test_a_stored_file_is_found(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "folder"
    assert find(TARGET, cache) is None
    path = keep(export, TARGET, cache)
    assert find(TARGET, cache) == path
    assert path.read_bytes() == b"compiled"
    assert os.listdir(cache) == [path.name]


@pytest.mark.parametrize("content", [b"compilee", b"compile", b""])
def test_a_damaged_file_is_not_found(content: bytes, tmp_path: Path) -> None:
    path = keep(export, TARGET, tmp_path)
    path.write_bytes(content)
    assert find(TARGET, tmp_path) is None
    assert find(TARGET, tmp_path / "missing") is None
    assert keep(export, TARGET, tmp_path) == find(TARGET, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": dataclasses.replace(DIMS, n_text_layer=3)},
        {"dims": dataclasses.replace(DIMS, n_vocab=51865)},
        {"dtypes": DTypes({"a.weight": DType.float32})},
        {"dtypes": DTypes({"a.weight": DType.float16}, DType.bfloat16)},
        {"cpu": "x86-64-v3"},
        {"cpu": HOST},
    ],
)
def test_a_file_compiled_for_a_different_target_is_not_found(changes: dict, tmp_path: Path) -> None:
    keep(export, dataclasses.replace(TARGET, **changes), tmp_path)
    assert find(TARGET, tmp_path) is None


@pytest.mark.parametrize(
    ("compiled_for", "runs_on", "found"),
    [
        ("sm_90", "sm_90", True),
        ("sm_90", "sm_90a", True),  # an H100 calls itself so
        ("sm_90a", "sm_90a", True),
        ("sm_90a", "sm_90", False),
        ("sm_80", "sm_90a", False),
        ("sm_80", "sm_89", False),
        ("sm_9", "sm_90a", False),
    ],
)
def test_a_file_compiled_ahead_is_found_on_the_gpus_that_run_it(
    compiled_for: str, runs_on: str, found: bool, tmp_path: Path
) -> None:
    ahead, here = (
        dataclasses.replace(TARGET, device=SimpleNamespace(is_host=False, architecture_name=name))
        for name in (compiled_for, runs_on)
    )
    path = keep(export, ahead, tmp_path)
    assert find(here, tmp_path) == (path if found else None)


def test_a_file_compiled_by_a_different_version_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(export, TARGET, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "version", lambda package: "99.0")
        assert find(dataclasses.replace(TARGET), tmp_path) is None
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "SOURCES", ("engine/graphs.py",))
        assert find(dataclasses.replace(TARGET), tmp_path) is None
    assert find(dataclasses.replace(TARGET), tmp_path)


# Files that the engine's modules import, and that can't change a graph.
CHANGES_NO_GRAPH = {
    "errors.py",  # messages
    "system.py",  # weights are quantized on that many cores
    "checkpoint/checkpoint.py",  # the weights' dtypes and sizes are in the cache key
    "checkpoint/stored.py",  # reads the weights
}


def definition(module: str, name: str) -> Path:
    """Return the file that defines a name of a module, following imports that re-export it."""
    source = importlib.import_module(module)
    if hasattr(source, "__path__") and find_spec(f"{module}.{name}"):
        return Path(str(importlib.import_module(f"{module}.{name}").__file__))
    path = Path(str(source.__file__))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return definition(str(node.module), name)
    return path


def imported_files(path: Path) -> Iterator[Path]:
    """Yield the files that define the names a module imports from this package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "maxwhisper":
            yield from (definition(str(node.module), alias.name) for alias in node.names)


def test_the_cache_key_covers_every_file_that_graphs_depend_on() -> None:
    engine, in_key = PACKAGE / "engine", {path for pattern in SOURCES for path in PACKAGE.glob(pattern)}
    dependencies, to_read = {*(engine / "kernels").rglob("*.mojo")}, {engine / "graphs.py"}
    while to_read:
        dependencies |= to_read
        imported = {file for path in to_read if engine in path.parents for file in imported_files(path)}
        to_read = imported - dependencies - {PACKAGE / name for name in CHANGES_NO_GRAPH}
    assert dependencies >= {PACKAGE / name for name in ("engine/ops/cpu.py", "audio.py", "checkpoint/dimensions.py")}
    assert dependencies == in_key  # no file is missing, and none makes models compile again for nothing


def test_threads_may_store_one_file_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(lambda _: keep(export, TARGET, tmp_path), range(64)))
    assert find(TARGET, tmp_path) == path
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"comp")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        keep(full, TARGET, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        keep(export, TARGET, tmp_path / "file")


def test_levels_of_processors(tmp_path: Path) -> None:
    assert cpu_level() in CPU_LEVELS
    assert cpu_level(tmp_path / "missing") == HOST
    v3, v4 = CPU_LEVELS["x86-64-v3"], CPU_LEVELS["x86-64-v4"]
    cpuinfo = tmp_path / "cpuinfo"
    for level, features in (
        ("x86-64-v4", v3 | v4),
        ("x86-64-v3", v3 | v4 - {"avx512bw"}),
        (HOST, v3 - {"avx2"}),
        (HOST, set()),
    ):
        cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu {' '.join(sorted(features))} sse\nbugs : none\n")
        assert cpu_level(cpuinfo) == level


def test_a_model_is_compiled_once(tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load compiles nothing, and the results are equal bit for bit."""
    monkeypatch.setattr(compiled, "compile_graphs", lambda *_: pytest.fail("compiled again"))
    reloaded = Whisper(tiny_en.checkpoint, "cpu")
    mel = np.random.default_rng(0).random((80, 3000), np.float32)
    assert np.array_equal(reloaded.embed_audio(mel).to_numpy(), tiny_en.model.embed_audio(mel).to_numpy())


@pytest.mark.parametrize("no_home", [False, True])
def test_a_model_that_can_not_be_stored_works_with_a_warning(
    no_home: bool, tiny_en: Implementations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if no_home:
        monkeypatch.delenv("MAXWHISPER_CACHE", raising=False)
        monkeypatch.setattr(compiled, "user_cache", lambda name: None)
    else:
        monkeypatch.setenv("MAXWHISPER_CACHE", str(tmp_path / "file"))
    with pytest.warns(
        WhisperWarning, match=r"compiled again each time: .*(no home folder.*MAXWHISPER_CACHE|choose another folder)"
    ):
        model = Whisper(tiny_en.checkpoint)
    assert model.embed_audio(np.zeros((80, 3000), np.float32)).to_numpy().any()


def test_the_compile_command_prints_the_files_path(tiny_en: Implementations, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maxwhisper", "compile", "--output_dir", str(tmp_path)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (path,) = tmp_path.iterdir()
        assert done.stdout == f"{path}\n"
    target, _, _ = path.name.rsplit(".", 2)
    assert list(folder().glob(f"{target}.*.mef"))
    done = subprocess.run([*command[:-1], str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("maxwhisper: compiled graphs can't be kept in")
