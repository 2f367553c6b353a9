"""What holds on this processor holds on others: its libraries are told to compute as theirs do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maxwhisper.compiled import CPU_LEVELS, cpu_level

ROOT = Path(__file__).parents[1]
# OpenBLAS's names of processors, the level that each needs, and what it calls the kernels that it takes there.
CORE_TYPES = {"Haswell": ("x86-64-v3", {"Haswell"}), "SkylakeX": ("x86-64-v4", {"SkylakeX"}), "Zen": ("x86-64-v3", {"Haswell", "Zen"})}
COMPARE_WITH_WHAT_IS_KEPT = (
    "ops/test_golden.py::test_the_definition_says_what_it_did",
    "ops/test_sensitivity.py::test_definitions_are_what_bounds_stand_around",
    "parity/test_localisation.py::test_openai_whisper_in_float64_is_the_definitions",
    "parity/test_report.py::test_the_third_digit_of_one_kept_element_is_seen",
    "test_reference.py::test_definitions_are_torchs_in_float64",
)


def skip_without(level: str) -> None:
    """Skip what this processor can't execute."""
    best_first = list(CPU_LEVELS)
    if best_first.index(cpu_level()) > best_first.index(level):
        pytest.skip(f"this processor is no {level}")


def environment(core_type: str, level: str) -> dict[str, str]:
    """In which OpenBLAS takes the kernels of a processor, and NumPy, PyTorch and what it brings along no AVX-512 where that has none."""
    given = {**os.environ, "OPENBLAS_CORETYPE": core_type}
    if level == "x86-64-v4":
        return given
    features = [name for name in np.show_config(mode="dicts")["SIMD Extensions"]["found"] if "AVX512" in name or "V4" in name]
    narrow = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    return {**given, **narrow, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}


@pytest.mark.parametrize("core_type", CORE_TYPES)
def test_what_is_kept_holds_on_another_processor(core_type: str) -> None:
    level, names = CORE_TYPES[core_type]
    skip_without(level)
    elsewhere = environment(core_type, level)
    ask = "import numpy, scipy.linalg, threadpoolctl; print(*{lib['architecture'] for lib in threadpoolctl.threadpool_info()})"
    taken = subprocess.run([sys.executable, "-c", ask], env=elsewhere, capture_output=True, text=True, check=True).stdout.split()
    assert taken
    assert set(taken) <= names
    tests = [f"tests/{test}" for test in COMPARE_WITH_WHAT_IS_KEPT]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
