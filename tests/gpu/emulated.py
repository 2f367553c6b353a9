"""NVIDIA GPUs without one: the operations of `kernels/nvidia`, by interpreting their kernels.

`emulated_gpu` replaces MAX's graph building by NumPy, so that the functions of
`maxwhisper.engine.graphs`, built from `maxwhisper.engine.ops.nvidia`, compute at once. Each custom
operation is launched as `kernels/nvidia/ops.mojo` launches it. What the kernels are compiled to
(PTX), and the sizes that their launches depend on, come from the Mojo sources.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import ml_dtypes
import numpy as np
from max.dtype import DType

from maxwhisper.engine import graphs
from maxwhisper.engine.ops import nvidia
from reference.ptx import Kernel, Memory, Stream

ENGINE = Path(graphs.__file__).parent
# Where Mojo's names in the expressions below come from.
IMPORTS = {
    "attention": "cross_attention_kernel, cross_splits_of, self_attention_kernel, self_splits_of",
    "embedding": "embed_kernel, embed_last_kernel",
    "encoder_attention": "encoder_attention_kernel",
    "encoder_attention_half": "encoder_attention_half_kernel",
    "linear": "FEW, attended_linear_kernel, lm_head_kernel, normed_linear_kernel, project_kernel, "
    "residual_linear_kernel",
    "next_token": "SHARES, append_token_kernel, rank_tokens_kernel, survey_kernel",
    "product": "BLOCKS, outputs_of_block",
}
PROGRAM = """
from max.gpu.host import get_gpu_target
from max.gpu.host.compile import _compile_code
from std.math import ceildiv
{imports}
from kernels.nvidia.attention import THREADS as ATTENTION_THREADS
from kernels.nvidia.next_token import THREADS as SURVEY_THREADS
from kernels.nvidia.ops import EMBED_THREADS, ENCODER_THREADS, HALF_ROWS, HALF_THREADS, MOST_WARPS, ROWS
from kernels.nvidia.product import THREADS

comptime F32 = DType.float32
comptime F16 = DType.float16
comptime BF16 = DType.bfloat16
comptime TARGET = get_gpu_target["{architecture}"]()


def main() raises:
{prints}
"""
MARK = "//////// "
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


Sizes = Callable[[str], int]  # evaluates a Mojo expression
Arrays = list[np.ndarray]


class Launch(NamedTuple):
    """A kernel's launch; the kernel is a Mojo expression."""

    kernel: str
    grid: Callable[[Sizes], tuple[int, ...]]
    block: Callable[[Sizes], int]
    arguments: Sequence[np.ndarray | int]


def ceildiv(a: int, b: int) -> int:
    """Divide and round up."""
    return -(-a // b)


class Gpu:
    """A GPU that interprets kernels, one stream of them.

    What is compiled must be known before: run the same within `noting` first, in which nothing is
    computed.

    Args:
        architecture: what kernels are compiled for.
        seed: of the order of warps.
        sources: a folder that holds the Mojo package `kernels`.
    """

    def __init__(self, architecture: str = "sm_90a", seed: int = 0, sources: Path = ENGINE) -> None:
        self.architecture, self.seed, self.sources = architecture, seed, sources
        self.launched: list[str] = []  # the kernels, in order
        self.kernels: dict[str, Kernel] = {}  # what is compiled
        self._numbers: dict[str, int] = {}
        self._noted: list[Launch] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all arrays and launches, but not what is compiled."""
        self._memory = Memory()
        self._stream = Stream(self._memory)
        self._addresses = dict[int, tuple[int, np.ndarray]]()  # by the array's own address
        self.launched.clear()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the kernels that are launched in the block, and compile them at its end."""
        self._noted = []
        yield
        kernels, numbers = set[str](), set[str]()

        def note(number: str) -> int:
            numbers.add(number)
            return 1

        for launch in self._noted:
            kernels.add(launch.kernel)
            launch.grid(note), launch.block(note)
        self._noted = None
        ptx, values = compile_mojo(
            tuple(sorted(kernels - self.kernels.keys())), tuple(sorted(numbers)), self.architecture, self.sources
        )
        self.kernels |= {name: Kernel.parse(text) for name, text in ptx.items()}
        self._numbers |= values

    def run(
        self, name: str, values: Sequence[np.ndarray], results: Sequence[np.ndarray], parameters: Mapping[str, int]
    ) -> None:
        """Launch an operation's kernels. They write to `results`, and to those values they may."""
        launches = list(OPERATIONS[name](list(values), list(results), **parameters))
        if self._noted is not None:
            self._noted += launches
            return
        for array in results:
            self._keep(array, self._memory.empty(array.shape, array.dtype))
        for launch in launches:
            grid, block = (size(self._numbers.__getitem__) for size in (launch.grid, launch.block))
            arguments = [a if isinstance(a, int) else self._address(a) for a in launch.arguments]
            self._stream.launch(self.kernels[launch.kernel], grid, block, arguments, seed=self.seed, overlaps=True)
            self.launched.append(launch.kernel)
        for array in (*values, *results):
            if array.flags.writeable:
                array.reshape(-1)[:] = self._memory.get(self._address(array)).reshape(-1)

    def _address(self, array: np.ndarray) -> int:
        if array.ctypes.data not in self._addresses:
            self._keep(array, self._memory.put(array, read_only=not array.flags.writeable))
        return self._addresses[array.ctypes.data][0]

    def _keep(self, array: np.ndarray, address: int) -> None:
        self._addresses[array.ctypes.data] = address, array  # with the array, so that no other takes its place


@cache
def compile_mojo(
    kernels: tuple[str, ...], numbers: tuple[str, ...], architecture: str, sources: Path
) -> tuple[dict[str, str], dict[str, int]]:
    """Compile kernels to PTX, and evaluate expressions of whole numbers.

    Returns:
        The PTX and the numbers, by expression.
    """
    lines = [f'    print("{MARK}{n}\\n", Int({n}))' for n in numbers]
    lines += [
        f'    print("{MARK}{k}\\n", _compile_code[{k}, target=TARGET, emission_kind="asm"]().asm)' for k in kernels
    ]
    imports = "\n".join(f"from kernels.nvidia.{module} import {names}" for module, names in IMPORTS.items())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.mojo"
        path.write_text(PROGRAM.format(imports=imports, architecture=architecture, prints="\n".join(lines)))
        mojo = Path(sys.executable).with_name("mojo")
        done = subprocess.run([mojo, "run", "-I", sources, path], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    parts = dict(part.split("\n", 1) for part in done.stdout.split(MARK)[1:])
    return {name: parts[name] for name in kernels}, {name: int(parts[name]) for name in numbers}


def _dtype(array: np.ndarray) -> str:
    return DTYPES[array.dtype.name]


def _together(n: int) -> str:
    return "1" if n == 1 else "FEW"


def _encoder_attention(values: Arrays, results: Arrays, half: str = "") -> Iterator[Launch]:
    query, key, _ = values
    batch, n, n_head, _ = query.shape
    rows, threads = ("HALF_ROWS", "HALF_THREADS") if half else ("ROWS", "ENCODER_THREADS")

    def grid(size: Sizes) -> tuple[int, ...]:
        return ceildiv(n, size(rows)), n_head, batch

    yield Launch(f"encoder_attention{half}_kernel", grid, _block(threads), [*results, *values, n, key.shape[1]])


def _embed(values: Arrays, results: Arrays) -> Iterator[Launch]:
    _, _, weight, _ = values
    n_seq, n, n_state = results[0].shape
    kernel = f"embed_kernel[{_dtype(weight)}, True]"
    yield Launch(kernel, lambda size: (n_seq * n,), _block("EMBED_THREADS"), [*results, *values, n, n_state])


def _embed_last(values: Arrays, results: Arrays) -> Iterator[Launch]:
    tokens, _, weight, _ = values
    n_seq, _, n_state = results[0].shape
    kernel = f"embed_last_kernel[{_dtype(weight)}, True]"
    arguments = [*results, *values, tokens.shape[2], n_state]
    yield Launch(kernel, lambda size: (n_seq,), _block("EMBED_THREADS"), arguments)


def _project(values: Arrays, results: Arrays, n_state: int) -> Iterator[Launch]:
    k_cache, _, x, _, _, w_query, *_ = values
    n_rows = x.shape[0] * x.shape[1]
    kernel = f"project_kernel[{_dtype(w_query)}, {_dtype(k_cache)}, {n_state}, {_together(n_rows)}, True]"
    arguments = [*results, *values, n_rows, x.shape[1], k_cache.shape[2]]
    yield Launch(kernel, _linear_grid(w_query, n_state, 3 * n_state, n_rows), _block("THREADS"), arguments)


def _self_attention(values: Arrays, results: Arrays, n_head: int) -> Iterator[Launch]:
    query, k_cache, *_ = values
    n_rows = query.shape[0] * query.shape[1]
    splits = f"self_splits_of({n_head}, {_together(n_rows)})"
    kernel = f"self_attention_kernel[{_dtype(k_cache)}, {n_head}, {splits}, True]"
    arguments = [*results, *values, query.shape[1], k_cache.shape[2]]
    yield Launch(kernel, lambda size: (size(splits), n_head, n_rows), _block("ATTENTION_THREADS"), arguments)


def _cross_attention(values: Arrays, results: Arrays, n_head: int) -> Iterator[Launch]:
    query, k, _ = values
    n_rows, n_audio = query.shape[0] * query.shape[1], k.shape[0]
    n = n_rows // n_audio
    splits, together = f"cross_splits_of({n_head}, {_together(n_rows)})", _together(n)
    kernel = f"cross_attention_kernel[{_dtype(k)}, {n_head}, {splits}, {together}, True]"
    arguments = [*results, *values, n, k.shape[2]]

    def grid(size: Sizes) -> tuple[int, ...]:
        return size(splits), n_head, n_audio * ceildiv(n, size(together))

    yield Launch(kernel, grid, _block("ATTENTION_THREADS"), arguments)


def _attended_linear(values: Arrays, results: Arrays, n_state: int, is_cross: bool) -> Iterator[Launch]:
    _, _, residual, weight, _ = values
    n_rows = residual.shape[0] * residual.shape[1]
    splits = f"{'cross' if is_cross else 'self'}_splits_of({n_state // 64}, {_together(n_rows)})"
    kernel = f"attended_linear_kernel[{_dtype(weight)}, {n_state}, {splits}, {_together(n_rows)}, True]"
    grid = _linear_grid(weight, n_state, n_state, n_rows)
    yield Launch(kernel, grid, _block("THREADS"), [*results, *values, n_rows])


def _normed_linear(values: Arrays, results: Arrays, n_in: int, n_out: int, activates: bool) -> Iterator[Launch]:
    x, _, _, weight, _ = values
    n_rows = x.shape[0] * x.shape[1]
    kernel = f"normed_linear_kernel[{_dtype(weight)}, {n_in}, {n_out}, {activates}, {_together(n_rows)}, True]"
    grid = _linear_grid(weight, n_in, n_out, n_rows)
    yield Launch(kernel, grid, _block("THREADS"), [*results, *values, n_rows])


def _residual_linear(values: Arrays, results: Arrays, n_in: int, n_out: int) -> Iterator[Launch]:
    x, _, weight, _ = values
    n_rows = x.shape[0] * x.shape[1]
    kernel = f"residual_linear_kernel[{_dtype(weight)}, {n_in}, {n_out}, {_together(n_rows)}, True]"
    grid = _linear_grid(weight, n_in, n_out, n_rows)
    yield Launch(kernel, grid, _block("THREADS"), [*results, *values, n_rows])


def _lm_head(values: Arrays, results: Arrays, n_state: int, n_vocab: int) -> Iterator[Launch]:
    x, wanted, ln_weight, ln_bias, weight = values
    n_rows = results[1].shape[0] * results[1].shape[1]
    kernel = f"lm_head_kernel[{_dtype(weight)}, {n_state}, {n_vocab}, {_together(n_rows)}, True]"
    arguments = [*results, x, ln_weight, ln_bias, weight, wanted, n_rows, len(wanted), x.shape[1]]
    all_blocks = _linear_grid(weight, n_state, n_vocab, n_rows)

    def grid(size: Sizes) -> tuple[int, ...]:
        groups, blocks = all_blocks(size)
        return groups, min(size("BLOCKS"), blocks)

    yield Launch(kernel, grid, _block("THREADS"), arguments)


def _append_token(values: Arrays, results: Arrays, n_vocab: int) -> Iterator[Launch]:
    n_unfinished, *found = results
    tokens, sum_logprobs, n_tokens, logits, mask, rules = values
    n_seq, row_length = len(logits), tokens.shape[2]
    yield _survey(found, logits, tokens, n_tokens, mask, rules, n_vocab, 1)
    arguments = [n_unfinished, tokens, sum_logprobs, n_tokens, *found, rules, row_length, n_seq]
    yield Launch(
        "append_token_kernel[True]", lambda size: (1,), lambda size: 32 * min(n_seq, size("MOST_WARPS")), arguments
    )


def _rank_tokens(values: Arrays, results: Arrays, n_vocab: int) -> Iterator[Launch]:
    ranked, logprobs, *found = results
    logits, tokens, n_tokens, mask, rules = values
    n_seq, k = ranked.shape
    yield _survey(found, logits, tokens, n_tokens, mask, rules, n_vocab, k)
    arguments = [ranked, logprobs, *found, k]
    yield Launch("rank_tokens_kernel[True]", lambda size: (n_seq,), lambda size: 32, arguments)


def _survey(
    found: Arrays,
    logits: np.ndarray,
    tokens: np.ndarray,
    n_tokens: np.ndarray,
    mask: np.ndarray,
    rules: np.ndarray,
    n_vocab: int,
    k: int,
) -> Launch:
    arguments = [*found, logits, tokens, n_tokens, mask, rules, tokens.shape[2], k]
    kernel = f"survey_kernel[{n_vocab}, True]"
    return Launch(kernel, lambda size: (size("SHARES"), len(logits)), _block("SURVEY_THREADS"), arguments)


def _block(threads: str) -> Callable[[Sizes], int]:
    return lambda size: size(threads)


def _linear_grid(weight: np.ndarray, n_in: int, n_out: int, n_rows: int) -> Callable[[Sizes], tuple[int, ...]]:
    together = _together(n_rows)
    outputs = f"outputs_of_block[{_dtype(weight)}, {n_in}, {n_out}, {together}]()"
    return lambda size: (ceildiv(n_rows, size(together)), ceildiv(n_out, size(outputs)))


OPERATIONS: dict[str, Callable[..., Iterator[Launch]]] = {
    "append_token": _append_token,
    "attended_linear": _attended_linear,
    "cross_attention": _cross_attention,
    "embed": _embed,
    "embed_last": _embed_last,
    "encoder_attention": _encoder_attention,
    "encoder_attention_half": partial(_encoder_attention, half="_half"),
    "lm_head": _lm_head,
    "normed_linear": _normed_linear,
    "project": _project,
    "rank_tokens": _rank_tokens,
    "residual_linear": _residual_linear,
    "self_attention": _self_attention,
}


class Type(NamedTuple):
    """What MAX's TensorType says, for NumPy."""

    dtype: DType
    shape: Sequence[int]
    device: object


def numpy_dtype(dtype: DType | np.dtype) -> np.dtype:
    """Return NumPy's dtype for MAX's."""
    if isinstance(dtype, np.dtype):
        return dtype
    return np.dtype(ml_dtypes.bfloat16) if dtype == DType.bfloat16 else np.dtype(dtype.to_numpy())


@contextmanager
def emulated_gpu(gpu: Gpu) -> Iterator[None]:
    """Let the functions of `graphs` and `nvidia` compute at once, on arrays."""
    gpu.clear()

    def custom(
        name: str,
        device: object,
        values: Sequence[np.ndarray],
        out_types: Sequence[Type],
        parameters: Mapping[str, int],
    ) -> list[SimpleNamespace]:
        results = [np.zeros(type.shape, numpy_dtype(type.dtype)) for type in out_types]
        gpu.run(name.removeprefix("maxwhisper.nvidia."), values, results, parameters)
        return [SimpleNamespace(tensor=result) for result in results]

    numpy_ops = SimpleNamespace(
        custom=custom,
        inplace_custom=custom,
        reshape=lambda x, shape: x.reshape([int(n) for n in shape]),
        cast=lambda x, dtype: x.astype(numpy_dtype(dtype)),
        constant=lambda value, device: np.asarray(value),
    )
    with ExitStack() as stack:
        for module, names in {
            graphs: {"max_ops": numpy_ops, "TensorValue": lambda value: value},
            nvidia: {"ops": numpy_ops, "TensorType": Type},
        }.items():
            for name, value in names.items():
                stack.enter_context(mock.patch.object(module, name, value))
        yield
