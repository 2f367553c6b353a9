"""Mistakes planted into kernels for NVIDIA GPUs are caught, and the right name blamed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from reference.ptx import KernelError, MisalignedAddress, Race, UninitializedRead
from tests.gpu.emulated import ENGINE, Gpu
from tests.gpu.test_nvidia_kernels import Block

KIND = "float16 in float32"
SHAPE = (2, 1, 2, 21)  # windows, sequences of each, new tokens, tokens before


class Fault(NamedTuple):
    """A mistake in a file of `kernels/nvidia`, and who must be blamed."""

    name: str
    file: str
    old: str
    new: str
    blamed: str | tuple[type[KernelError], ...]  # the first activation outside its bounds, or the error
    always: bool = True  # whether it is tried without `thorough`; a fault of each kind is


# A missing barrier or wait is one of these, depending on which warp comes first.
TOO_EARLY = (Race, UninitializedRead)
WAIT = "    wait_for_previous[pdl]()\n"
FAULTS = [
    Fault("a barrier missing", "staging", "        )\n    barrier()\n", "        )\n", TOO_EARLY),
    Fault(
        "a barrier missing between warps",
        "attention",
        "running.total)\n    barrier()",
        "running.total)",
        TOO_EARLY,
        always=False,
    ),
    Fault(
        "a kernel that does not wait",
        "linear",
        f"{WAIT}    var staged = room_for[together * n_in]",
        "    var staged = room_for[together * n_in]",
        TOO_EARLY,
    ),
    Fault(
        "an attention that does not wait",
        "attention",
        f"{WAIT}    var n_keys",
        "    var n_keys",
        TOO_EARLY,
        always=False,
    ),
    Fault(
        "a misaligned load",
        "product",
        "tile * lanes + lane) * width)",
        "tile * lanes + lane) * width + 1)",
        (MisalignedAddress,),
    ),
    Fault(
        "sixteen lanes of 32 summed",
        "lanes",
        "comptime for i in range(5):",
        "comptime for i in range(4):",
        "block.attn_ln",
    ),
    Fault("the wrong lanes keep a sum", "lanes", "(lane & bit) != 0", "(lane & bit) == 0", "block.attn.query"),
    Fault("epsilon 1e-6", "staging", "Float32(1e-5)", "Float32(1e-6)", "block.attn_ln", always=False),
    Fault("a token that is not attended to", "attention", "* Int(n))) + 1", "* Int(n)))", "block.attn.context"),
    Fault(
        "one key too many",
        "attention",
        "+ group < end:\n                    scores",
        "+ group <= end:\n                    scores",
        "block.cross_attn.context",
    ),
    Fault(
        "the page of another sequence",
        "attention",
        "load(sequence * Int(n_ctx) + key)",
        "load(key)",
        "block.attn.context",
    ),
    Fault("scale missing", "attention", "Float32(0.125)", "Float32(1)", "block.attn.context", always=False),
    Fault(
        "parts without their shares",
        "staging",
        "exp(some_scales[j][0] - highest)",
        "Float32(1)",
        "block.attn.context",
        always=False,
    ),
    Fault(
        "tanh GELU",
        "linear",
        "(1 + erf(x * SQRT_HALF))",
        "(1 + tanh(x * (0.79788456 + 0.035677408 * x * x)))",
        "block.mlp.gelu",
        always=False,
    ),
]


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f.name, marks=[] if f.always else pytest.mark.thorough) for f in FAULTS]
)
def test_a_mistake_in_a_kernel_is_blamed(fault: Fault, tmp_path: Path) -> None:
    gpu, block = planted(fault, tmp_path), Block(KIND, *SHAPE, seed=0)
    with gpu.noting():
        block.compute(gpu)
    assert_blamed(fault, lambda: block.failures(gpu))


def planted(fault: Fault, folder: Path) -> Gpu:
    """Return a GPU whose kernels have a mistake, in a copy of the sources."""
    sources = shutil.copytree(ENGINE / "kernels", folder / "kernels")
    path = sources / "nvidia" / f"{fault.file}.mojo"
    text = path.read_text(encoding="utf-8")
    assert text.count(fault.old) >= 1
    path.write_text(text.replace(fault.old, fault.new, 1).replace("import erf", "import erf, tanh"), encoding="utf-8")
    return Gpu(sources=folder)


def assert_blamed(fault: Fault, failures_of: Callable[[], list[str]]) -> None:
    """Check that the first failure, or the error, is the one that the mistake must cause."""
    if isinstance(fault.blamed, str):
        failures = failures_of()
        assert failures and re.match(rf"{re.escape(fault.blamed)}: ", failures[0]), failures[:1]
    else:
        with pytest.raises(fault.blamed):
            failures_of()
