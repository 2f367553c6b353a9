"""Compiled graphs are kept once, found again, and never taken for what they are not."""

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

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType

from conftest import Trio
from maxwhisper import OutputError, Whisper, WhisperWarning
from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.engine import compiled
from maxwhisper.engine.compiled import CPU_LEVELS, HOST, PACKAGE, SOURCES, Target, cpu_level, find, folder, keep
from maxwhisper.engine.dtypes import DTypes

DIMS = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
TARGET = Target(DIMS, DTypes({"a.weight": DType.float16}), CPU(), "x86-64-v4")


def export(path: Path) -> None:
    """In place of a compiler."""
    path.write_bytes(b"compiled")


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    where = tmp_path / "new" / "folder"
    assert find(TARGET, where) is None
    path = keep(export, TARGET, where)
    assert find(TARGET, where) == path
    assert path.read_bytes() == b"compiled"
    assert os.listdir(where) == [path.name]


@pytest.mark.parametrize("content", [b"compilee", b"compile", b""])
def test_a_damaged_file_is_not_found(content: bytes, tmp_path: Path) -> None:
    path = keep(export, TARGET, tmp_path)
    path.write_bytes(content)
    assert find(TARGET, tmp_path) is None
    assert find(TARGET, tmp_path / "missing") is None
    assert keep(export, TARGET, tmp_path) == find(TARGET, tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"dims": dataclasses.replace(DIMS, n_text_layer=3)},
        {"dims": dataclasses.replace(DIMS, n_vocab=51865)},
        {"dtypes": DTypes({"a.weight": DType.float32})},
        {"dtypes": DTypes({"a.weight": DType.float16}, DType.bfloat16)},
        {"cpu": "x86-64-v3"},
        {"cpu": HOST},
    ],
)
def test_what_was_compiled_for_something_else_is_not_found(other: dict, tmp_path: Path) -> None:
    keep(export, dataclasses.replace(TARGET, **other), tmp_path)
    assert find(TARGET, tmp_path) is None


def test_what_another_version_compiled_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(export, TARGET, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "version", lambda package: "99.0")
        assert find(dataclasses.replace(TARGET), tmp_path) is None
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "SOURCES", ("engine/graphs.py",))
        assert find(dataclasses.replace(TARGET), tmp_path) is None
    assert find(dataclasses.replace(TARGET), tmp_path)


# Of what the engine's modules import of others, that which changes nothing in a graph.
CHANGES_NO_GRAPH = {
    "errors.py",  # messages
    "checkpoint/checkpoint.py",  # its weights' dtypes and sizes are in the key themselves
}


def definition(module: str, name: str) -> Path:
    """The file that defines what can be imported under a name from a module, be it that this only passes it on."""
    source = importlib.import_module(module)
    if hasattr(source, "__path__") and find_spec(f"{module}.{name}"):
        return Path(str(importlib.import_module(f"{module}.{name}").__file__))
    path = Path(str(source.__file__))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return definition(str(node.module), name)
    return path


def imported_files(path: Path) -> Iterator[Path]:
    """The files that define what a module imports from this package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "maxwhisper":
            yield from (definition(str(node.module), alias.name) for alias in node.names)


def test_every_file_that_graphs_are_made_of_counts() -> None:
    engine, counted = PACKAGE / "engine", {path for pattern in SOURCES for path in PACKAGE.glob(pattern)}
    made_of, to_read = {*(engine / "kernels").rglob("*.mojo")}, {engine / "graphs.py"}
    while to_read:
        made_of |= to_read
        found = {file for path in to_read if engine in path.parents for file in imported_files(path)}
        to_read = found - made_of - {PACKAGE / name for name in CHANGES_NO_GRAPH}
    assert made_of >= {PACKAGE / name for name in ("engine/ops/cpu.py", "audio.py", "checkpoint/dimensions.py")}
    assert made_of <= counted


def test_many_may_keep_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(lambda _: keep(export, TARGET, tmp_path), range(64)))
    assert find(TARGET, tmp_path) == path
    assert os.listdir(tmp_path) == [path.name]


def test_what_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
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
    shown = tmp_path / "cpuinfo"
    for level, features in (
        ("x86-64-v4", v3 | v4),
        ("x86-64-v3", v3 | v4 - {"avx512bw"}),
        (HOST, v3 - {"avx2"}),
        (HOST, set()),
    ):
        shown.write_text(f"processor : 0\nflags\t\t: fpu {' '.join(sorted(features))} sse\nbugs : none\n")
        assert cpu_level(shown) == level


def test_a_model_is_compiled_once(tiny_en: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is compiled, and the result is the same, bit for bit."""
    monkeypatch.setattr(compiled, "compile_graphs", lambda *_: pytest.fail("compiled again"))
    again = Whisper(tiny_en.checkpoint, "cpu")
    mel = np.random.default_rng(0).random((80, 3000), np.float32)
    assert np.array_equal(again.embed_audio(mel).to_numpy(), tiny_en.model.embed_audio(mel).to_numpy())


@pytest.mark.parametrize("no_home", [False, True])
def test_a_model_that_can_not_be_kept_is_used_all_the_same(
    no_home: bool, tiny_en: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_command_says_where_it_is_kept(tiny_en: Trio, tmp_path: Path) -> None:
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
