"""What holds on this processor holds on others: its libraries are told to compute as theirs do, and graphs are compiled for lesser ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maxwhisper.engine.compiled import CPU_LEVELS, cpu_level
from reference.ops import TABLE
from reference.ops.fuzz import fuzz
from reference.ops.suite import Suite

ROOT = Path(__file__).parents[1]
# OpenBLAS's names of processors, the level that each needs, and what it calls the kernels that it takes there.
CORE_TYPES = {
    "Haswell": ("x86-64-v3", {"Haswell"}),
    "SkylakeX": ("x86-64-v4", {"SkylakeX"}),
    "Zen": ("x86-64-v3", {"Haswell", "Zen"}),
}
COMPARE_WITH_WHAT_IS_KEPT = (
    "ops/test_golden.py::test_the_definition_gives_the_stored_output",
    "ops/test_sensitivity.py::test_the_value_of_a_bound_is_that_of_the_definition",
    "parity/test_localisation.py::test_openai_whisper_in_float64_is_the_definitions",
    "parity/test_report.py::test_a_change_in_the_third_digit_of_one_stored_element_is_drift",
    "test_reference.py::test_definitions_are_torchs_in_float64",
)


def above(level: str) -> list[str]:
    """The levels of processors that are better."""
    best_first = list(CPU_LEVELS)
    return best_first[: best_first.index(level)]


def skip_without(level: str) -> None:
    """Skip what this processor can't execute."""
    if level in above(cpu_level()):
        pytest.skip(f"this processor is no {level}")


def environment(core_type: str, level: str) -> dict[str, str]:
    """In which OpenBLAS takes the kernels of a processor, and NumPy, PyTorch and what it brings along no AVX-512 where that has none."""
    given = {**os.environ, "OPENBLAS_CORETYPE": core_type}
    if level == "x86-64-v4":
        return given
    features = [
        name for name in np.show_config(mode="dicts")["SIMD Extensions"]["found"] if "AVX512" in name or "V4" in name
    ]
    narrow = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    return {**given, **narrow, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}


@pytest.mark.parametrize("core_type", CORE_TYPES)
def test_what_is_kept_holds_on_another_processor(core_type: str) -> None:
    level, names = CORE_TYPES[core_type]
    skip_without(level)
    elsewhere = environment(core_type, level)
    ask = "import numpy, scipy.linalg, threadpoolctl; print(*{lib['architecture'] for lib in threadpoolctl.threadpool_info()})"
    taken = subprocess.run(
        [sys.executable, "-c", ask], env=elsewhere, capture_output=True, text=True, check=True
    ).stdout.split()
    assert taken
    assert set(taken) <= names
    tests = [f"tests/{test}" for test in COMPARE_WITH_WHAT_IS_KEPT]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, env=elsewhere, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def level(device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A level that this processor is taken for; what it is compiled for everywhere else is skipped."""
    level: str = request.param
    if device != "cpu":
        pytest.skip("this is about the CPU")
    skip_without(level)
    if level == cpu_level():
        pytest.skip(f"this processor is a {level}, and all tests run for it")
    for better in above(level):
        monkeypatch.delitem(CPU_LEVELS, better)
    assert cpu_level() == level
    return level


MULTIPLY_BYTES = ("attention_int8", "linear_int8")
COMPILED_FOR = {  # rows that kernels of ours compute, in vectors as wide as the processor's
    "x86-64-v3": (
        *(
            "attention",
            "cached",
            "conv1d_stride1",
            "conv1d_stride2",
            "decoder_block",
            "decoder_block_int8",
            "few_rows",
            "linear",
        ),
        *("linear_of_halves", "linear_scaled", *MULTIPLY_BYTES),
    ),
    "x86-64-v4": MULTIPLY_BYTES,  # all that it does in another way than a "cascadelake"
}


@pytest.mark.parametrize("level", COMPILED_FOR, indirect=True)
def test_rows_compiled_for_a_lesser_processor_stay_inside_both_gates(level: str) -> None:
    rows = {name: TABLE[name] for name in COMPILED_FOR[level]}
    compiled = Suite("cpu", rows, ["float32"])
    for op in rows:
        fuzz(compiled, op, "float32", n_examples=20)
