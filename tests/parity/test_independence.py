"""The code that compares activations does not import the implementations that it compares."""

import subprocess
import sys

import pytest

COMPARE = """
import sys
from importlib import import_module
from pkgutil import iter_modules

import numpy as np

import reference.flow
import reference.numerics
import reference.ptx

for package in (reference.numerics, reference.flow, reference.ptx):
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)

from reference.flow.dataflow import Step
from reference.ops.judge import judge_alone
from reference.parity.activations import compare_activations, first_divergence, truth

flow = {"ln": Step("layer_norm", ("x", "weight", "bias"))}
inputs = {"x": np.eye(3, 4, dtype=np.float32)[None], "weight": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
exact = truth(flow, inputs)


def blamed(activation, **options):
    return first_divergence(compare_activations(flow, {"ln": activation}, inputs, exact, **options))


assert blamed(exact["ln"].astype(np.float32), verdict=judge_alone) is None
assert blamed(1.01 * exact["ln"].astype(np.float32), verdict=judge_alone).resembles == "a constant factor of 1.01"
"""
WITH_PYTORCH = """
assert blamed(exact["ln"].astype(np.float32)) is None
"""


@pytest.mark.parametrize(
    ("script", "loaded"), [(COMPARE, []), (COMPARE + WITH_PYTORCH, ["torch"])], ids=["alone", "with PyTorch"]
)
def test_comparing_activations_imports_no_implementation(script: str, loaded: list[str]) -> None:
    """Numerics, data flow, the interpreter of PTX and the comparison import no MAX and no Whisper.

    They import PyTorch only to compute its own result.
    """
    report = "\nprint([name for name in ('max', 'maxwhisper', 'torch', 'whisper') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(loaded)
