"""Results on other processors, imitated on this one.

Libraries are told to use other processors' kernels, and graphs are compiled for lower levels.
"""

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
# OpenBLAS's names of processors. For each, the level that it needs, and possible names of the
# kernels that OpenBLAS then uses.
CORE_TYPES = {
    "Haswell": ("x86-64-v3", {"Haswell"}),
    "SkylakeX": ("x86-64-v4", {"SkylakeX"}),
    "Zen": ("x86-64-v3", {"Haswell", "Zen"}),
}
COMPARE_WITH_STORED_RESULTS = (
    "ops/test_golden.py::test_the_definition_gives_the_stored_output",
    "ops/test_sensitivity.py::test_the_value_of_a_bound_is_that_of_the_definition",
    "parity/test_localisation.py::test_openai_whisper_in_float64_is_the_definitions",
    "parity/test_report.py::test_a_change_in_the_third_digit_of_one_stored_element_is_drift",
    "test_reference.py::test_definitions_are_pytorchs_in_float64",
)


def above(level: str) -> list[str]:
    """Return the levels above a level, best first."""
    best_first = list(CPU_LEVELS)
    return best_first[: best_first.index(level)]


def skip_without(level: str) -> None:
    """Skip a test if this processor can't execute code of a level."""
    if level in above(cpu_level()):
        pytest.skip(f"this processor does not support {level}")


def environment(core_type: str, level: str) -> dict[str, str]:
    """Return environment variables that make libraries compute as on a different processor.

    OpenBLAS uses that processor's kernels. NumPy, PyTorch, MKL and oneDNN don't use AVX-512 if the
    level lacks it.
    """
    variables = {**os.environ, "OPENBLAS_CORETYPE": core_type}
    if level == "x86-64-v4":
        return variables
    features = [
        name for name in np.show_config(mode="dicts")["SIMD Extensions"]["found"] if "AVX512" in name or "V4" in name
    ]
    without_avx512 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    return {**variables, **without_avx512, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}


@pytest.mark.parametrize("core_type", CORE_TYPES)
def test_stored_results_hold_on_a_different_processor(core_type: str) -> None:
    level, kernel_names = CORE_TYPES[core_type]
    skip_without(level)
    variables = environment(core_type, level)
    script = (
        "import numpy, scipy.linalg, threadpoolctl as t; print(*{lib['architecture'] for lib in t.threadpool_info()})"
    )
    used_kernels = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True
    ).stdout.split()
    assert used_kernels
    assert set(used_kernels) <= kernel_names
    tests = [f"tests/{test}" for test in COMPARE_WITH_STORED_RESULTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def level(device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Treat this processor as one of a lower level. Skip its own level, which all tests use."""
    level: str = request.param
    if device != "cpu":
        pytest.skip("only for the CPU")
    skip_without(level)
    if level == cpu_level():
        pytest.skip(f"this processor's level is {level}, so all tests run for it")
    for better in above(level):
        monkeypatch.delitem(CPU_LEVELS, better)
    assert cpu_level() == level
    return level


INT8_ROWS = ("attention_int8", "linear_int8")
ROWS_BY_LEVEL = {  # rows computed by this project's kernels, in vectors of the processor's width
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
        *("linear_of_halves", "linear_scaled", *INT8_ROWS),
    ),
    "x86-64-v4": INT8_ROWS,  # the only rows computed differently for "cascadelake"
}


@pytest.mark.parametrize("level", ROWS_BY_LEVEL, indirect=True)
def test_rows_compiled_for_a_lower_level_meet_both_bounds(level: str) -> None:
    rows = {name: TABLE[name] for name in ROWS_BY_LEVEL[level]}
    compiled = Suite("cpu", rows, ["float32"])
    for op in rows:
        fuzz(compiled, op, "float32", n_examples=20)
