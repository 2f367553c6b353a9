"""Device names, forked processes, idle processes, and compiling for an absent GPU."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from max.driver import CPU

from maxwhisper import OptionError, load_model, set_num_threads
from maxwhisper.cli import main
from maxwhisper.engine import devices
from maxwhisper.engine.devices import absent_gpu, find_device
from tests.support.implementations import Implementations
from tests.versions import BEFORE_26_7, KEEPS_FLOAT32


def test_threads_must_be_set_before_the_first_model(tiny_en: Implementations) -> None:
    with pytest.raises(OptionError, match="before the first model is loaded"):
        set_num_threads(1)
    with pytest.raises(OptionError, match=r"1000000 threads can't be used on \d+ cores"):
        set_num_threads(1000000)


def test_unknown_devices_are_named_in_the_error() -> None:
    with pytest.raises(OptionError, match="'tpu' is neither 'cpu' nor 'gpu'"):
        find_device("tpu")
    with pytest.raises(OptionError, match="'tpu'"):
        load_model("tiny.en", device="tpu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0), CPU(), CPU(0)], ids=repr)
def test_the_cpu_has_many_names(name: object) -> None:
    assert find_device(name) == CPU()


@pytest.mark.parametrize(
    "name", [-1, 0.5, "", "0", "cpu:1", "cuda:", "cuda:-1", torch.device("meta"), torch.float16, None], ids=repr
)
def test_a_value_that_names_no_device_is_an_error(name: object) -> None:
    with pytest.raises(OptionError, match=r"^device .* is neither 'cpu' nor 'gpu'$"):
        find_device(name)


@pytest.mark.parametrize(
    ("name", "number"),
    [("cuda", 0), ("gpu:1", 1), (torch.device("cuda"), 0), (torch.device("cuda", 2), 2), (0, 0), (1, 1)],
)
def test_gpus_are_named_as_pytorch_names_them(name: object, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This simulates a machine with two GPUs."""
    monkeypatch.setattr(devices, "accelerator_count", lambda: 2)
    monkeypatch.setattr(devices, "Accelerator", lambda number: ("GPU", number))
    if number < 2:
        assert find_device(name) == ("GPU", number)
    else:
        with pytest.raises(OptionError, match=f"MAX finds no GPU {number} here"):
            find_device(name)
    monkeypatch.setattr(devices, "accelerator_count", lambda: 0)
    for use in (find_device, lambda name: load_model("tiny.en", name)):
        with pytest.raises(OptionError, match="MAX finds no GPU"):
            use(name)


def in_a_fork(before: str, then: str) -> subprocess.CompletedProcess[str]:
    """Run code in a forked process, and return what it prints.

    Args:
        before: code that runs before the fork, and may load a model.
        then: code that runs in the forked process.
    """
    script = f"""
import multiprocessing, sys
import numpy as np
import maxwhisper
silence = np.zeros((80, 3000), np.float32)
{before}
def use():
    try:
        {then}
        print("done", flush=True)
    except maxwhisper.WhisperError as error:
        print(error, flush=True)
forked = multiprocessing.get_context("fork").Process(target=use)
forked.start()
forked.join()
sys.exit(forked.exitcode)
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "then",
    [
        "model.embed_audio(silence)",
        "model.transcribe(np.zeros(16000, np.float32))",
        "model.logits(np.zeros((1, 1), int), features)",
        "model.decoder(features).logits(np.zeros((1, 1, 1), int))",
        "maxwhisper.load_model()",
        "maxwhisper.load_model(device=model.device)",
    ],
)
def test_a_model_loaded_before_a_fork_is_an_error(then: str) -> None:
    """Without the error the process would wait for threads that exist only in its parent."""
    done = in_a_fork("model = maxwhisper.load_model(); features = model.embed_audio(silence)", then)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a model was loaded before this process was forked")
    assert done.stdout.count("\n") == 1


def test_a_model_can_be_loaded_after_a_fork() -> None:
    done = in_a_fork("", "maxwhisper.load_model().embed_audio(silence)")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")


@pytest.mark.undisturbed
def test_an_idle_model_uses_no_processor_time() -> None:
    """This needs a new process, because other graphs have run in this one."""
    script = """
import time
import numpy as np
import maxwhisper
maxwhisper.load_model().embed_audio(np.zeros((80, 3000), np.float32))
time.sleep(2)  # the threads of MAX's pool poll for work for a while
begin = time.process_time()
time.sleep(1)
print(time.process_time() - begin)
"""
    seconds = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert seconds < 0.03, f"used {seconds} s of a core in one idle second"


def test_an_absent_gpu_must_be_chosen_before_the_first_model(
    tiny_en: Implementations, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match="'hopper' is no NVIDIA architecture; sm_90 is one"):
        absent_gpu("hopper")
    with pytest.raises(OptionError, match="before anything is loaded"):
        absent_gpu("sm_90")
    assert main(["compile", "--gpu", "hopper"]) == 1
    assert "'hopper' is no NVIDIA architecture" in capsys.readouterr().err


def compile_for_gpu(rows: Sequence[str], before: str = "") -> tuple[int, list[list[str]]]:
    """Compile rows of the op suite as `nox -s gpu_compile` does, after some Python code.

    Returns:
        The exit status, and the name and verdict of each line.
    """
    script = f"""
import sys
from max.graph import ops as max_ops
from maxwhisper.engine.ops import portable as ops
from tests.gpu import compile_ahead
{before}
sys.exit(compile_ahead.main(["--op", *{rows!r}, "--model"]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    lines = (line.removeprefix("sm_90").split(" s  ") for line in done.stdout.splitlines())
    return done.returncode, [[name.rsplit(maxsplit=1)[0].strip(), verdict] for name, verdict in lines]


@pytest.mark.compiles
@pytest.mark.thorough
def test_ops_compile_for_an_absent_gpu() -> None:
    assert compile_for_gpu(["gelu", "softmax"]) == (
        0,
        [["2 rows in float32", "compiled"], ["2 rows in float16 and bfloat16", "compiled"]],
    )


@pytest.mark.skipif(BEFORE_26_7, reason=KEEPS_FLOAT32)
@pytest.mark.compiles
@pytest.mark.thorough
def test_an_op_that_rounds_to_tf32_is_named() -> None:
    """The planted op is MAX's own matrix product. Half precision, which may round, is left out."""
    status, verdicts = compile_for_gpu(
        ["linear"],
        "transpose = lambda y: max_ops.transpose(y, -2, -1)\n"
        "ops.matmul = lambda x, y, transposed=False: max_ops.matmul(x, transpose(y) if transposed else y)\n"
        "compile_ahead.HALF_DTYPES = ()",
    )
    assert (status, verdicts) == (1, [["linear", "rounds float32 to TF32: cuBLAS"]])
