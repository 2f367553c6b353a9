"""Which devices there are, what they may do, and what compiles for those that are not here."""

import subprocess
import sys

import pytest

from conftest import Trio
from maxwhisper import OptionError, load_model, set_num_threads
from maxwhisper.cli import main
from maxwhisper.devices import absent_gpu, find_device
from tests.versions import BEFORE_26_7, KEEPS_FLOAT32


def test_threads_are_chosen_before_the_first_model(tiny_en: Trio) -> None:
    with pytest.raises(OptionError, match="before the first model is loaded"):
        set_num_threads(1)
    with pytest.raises(OptionError, match=r"1000000 threads can't be used on \d+ cores"):
        set_num_threads(1000000)


def test_unknown_devices_are_named() -> None:
    with pytest.raises(OptionError, match="'tpu' is neither 'cpu' nor 'gpu'"):
        find_device("tpu")
    with pytest.raises(OptionError, match="'tpu'"):
        load_model("tiny.en", device="tpu")


def test_a_model_that_waits_costs_nothing() -> None:
    """In a process of its own: here, graphs have run that were none of a model's."""
    script = """
import time
import numpy as np
import maxwhisper
maxwhisper.load_model().embed_audio(np.zeros((80, 3000), np.float32))
time.sleep(2)  # the threads of MAX's pool look for work for a while
begin = time.process_time()
time.sleep(1)
print(time.process_time() - begin)
"""
    seconds = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert seconds < 0.03, f"{seconds} s of a core in a second of waiting"


def test_a_gpu_is_chosen_before_the_first_model(tiny_en: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="'hopper' is no NVIDIA architecture; sm_90 is one"):
        absent_gpu("hopper")
    with pytest.raises(OptionError, match="before anything is loaded"):
        absent_gpu("sm_90")
    assert main(["compile", "--gpu", "hopper"]) == 1
    assert "'hopper' is no NVIDIA architecture" in capsys.readouterr().err


def compile_for_gpu(before: str) -> tuple[int, list[list[str]]]:
    """`nox -s gpu_compile -- --op gelu linear --model` with Python that runs before; its exit status, and name and verdict of each line."""
    script = f"""
import sys
from max.graph import ops as max_ops
from maxwhisper import ops
from reference.gpu_compile import main
{before}
sys.exit(main(["--op", "gelu", "linear", "--model"]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    lines = (line.removeprefix("sm_90").split(" s  ") for line in done.stdout.splitlines())
    return done.returncode, [[name.rsplit(maxsplit=1)[0].strip(), says] for name, says in lines]


@pytest.mark.compiles
def test_ops_compile_for_a_gpu_that_is_not_here() -> None:
    assert compile_for_gpu("") == (0, [["2 rows in float32", "compiled"], ["2 rows in float16 and bfloat16", "compiled"]])


@pytest.mark.skipif(BEFORE_26_7, reason=KEEPS_FLOAT32)
@pytest.mark.compiles
def test_an_op_that_rounds_to_tf32_is_named() -> None:
    """MAX's own product, in place of ours."""
    status, (linear, gelu, halves) = compile_for_gpu(
        "ops.matmul = lambda x, y, transposed=False: max_ops.matmul(x, max_ops.transpose(y, -2, -1) if transposed else y)"
    )
    assert (status, linear) == (1, ["linear", "rounds float32 to TF32: cuBLAS"])
    assert gelu == ["gelu", "compiled"] and halves[1] == "compiled"
