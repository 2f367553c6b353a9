"""The pack for GPU machines: what it holds, and graphs that are compiled here and loaded there."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, Module, TensorType

from maxwhisper.engine.devices import find_device
from tests.gpu.ahead import jobs, keeping, reading
from tests.gpu.pack import needed, split


def double(device: str) -> np.ndarray:
    """Compile a module, and run it."""
    module = Module()
    with Graph("double", input_types=[TensorType(DType.float32, [3], DeviceRef.CPU())], module=module) as graph:
        (x,) = graph.inputs
        graph.output(x.tensor + x.tensor)
    session = InferenceSession(devices=[find_device(device)])
    return session.load_all(module)["double"].execute(np.ones(3, np.float32))[0].to_numpy()


def test_what_was_compiled_is_read(tmp_path: Path) -> None:
    path = tmp_path / "double.mef"
    with keeping(path):
        double("cpu")
    with reading(path):
        assert double("cpu").tolist() == [2, 2, 2]


def test_a_job_that_compiles_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"nothing was compiled for nothing\.mef"), keeping(tmp_path / "nothing.mef"):
        pass


def test_a_gpus_jobs_are_more_than_the_cpus() -> None:
    assert jobs("gpu").keys() > jobs("cpu").keys() >= {"tiny.en-float32", "instrumented", "ops"}


def test_the_pack_brings_all_but_pytorch() -> None:
    packages = needed()
    assert {"max", "max-core", "mojo-compiler", "openai-whisper", "librosa", "pytest-audioeval"} <= packages
    assert packages.isdisjoint({"torch", "triton", "maxwhisper"})


def test_parts_are_one_archive(tmp_path: Path) -> None:
    contents = tmp_path / "contents"
    contents.mkdir()
    (contents / "a").write_bytes(bytes(range(256)) * 100)
    (contents / "b").write_text("b")
    assert split(contents, tmp_path, 10_000) == len(list(tmp_path.glob("part-*"))) > 2
    assert max(path.stat().st_size for path in tmp_path.glob("part-*")) <= 10_000
    subprocess.run("mkdir there; cat part-* | tar -xf - -C there", shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "there" / "a").read_bytes() == (contents / "a").read_bytes()
