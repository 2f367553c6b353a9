"""Kernels for NVIDIA GPUs, judged like any op, on a machine without one (`emulated.py`)."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwhisper.engine.decoder_block import ACTIVATIONS, LINEARS, VECTORS
from maxwhisper.engine.ops import nvidia
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import Step
from reference.ops.inputs import causal_mask
from reference.ops.judge import judge_alone, judge_each
from tests.gpu.emulated import Gpu, emulated_gpu

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The dtypes of weights and caches, n_state, and n_ctx.
KINDS = {
    "float32": (np.float32, np.float32, 128),
    "float16": (np.float16, np.float16, 128),
    "bfloat16": (BFLOAT16, BFLOAT16, 256),
    "float16 in float32": (np.float16, np.float32, 128),
}
N_CTX = 40
N_KEYS = 37


def block_flow(n_head: int) -> dict[str, Step]:
    """Return the data flow of a decoder block whose keys and values are in caches."""
    attention = (f"block.attn.query:{n_head} heads", "keys", "values", "mask")
    cross = (f"block.cross_attn.query:{n_head} heads", "cross_keys", "cross_values")
    return {
        **whisper_flow.layer_norm("block.attn_ln", "x"),
        **whisper_flow.projections("block.attn", "block.attn_ln", "block.attn_ln"),
        f"block.attn.context:{n_head} heads": Step("masked_attention", attention),
        **whisper_flow.linear("block.attn.out", "block.attn.context"),
        "block.attn.residual": Step("residual", ("x", "block.attn.out")),
        **whisper_flow.layer_norm("block.cross_attn_ln", "block.attn.residual"),
        **whisper_flow.linear("block.cross_attn.query", "block.cross_attn_ln"),
        f"block.cross_attn.context:{n_head} heads": Step("attention", cross),
        **whisper_flow.linear("block.cross_attn.out", "block.cross_attn.context"),
        "block.cross_attn.residual": Step("residual", ("block.attn.residual", "block.cross_attn.out")),
        **whisper_flow.mlp("block", "block.cross_attn.residual"),
    }


class Block:
    """A decoder block's inputs, drawn at random.

    Args:
        kind: of `KINDS`.
        n_audio: windows.
        n_group: sequences of each.
        n: new tokens of each.
        n_past: tokens in the cache.
        seed: of the numbers.
    """

    def __init__(self, kind: str, n_audio: int, n_group: int, n: int, n_past: int, seed: int) -> None:
        dtype, cache_dtype, n_state = KINDS[kind]
        rng = np.random.default_rng(seed)
        sizes = {"n_state": n_state, "n_mlp": 4 * n_state}

        def normal(*shape: int, scale: float = 1.0, dtype: Any = np.float32) -> np.ndarray:
            array = (rng.standard_normal(shape) * scale).astype(dtype)
            array.flags.writeable = False
            return array

        self.n_head, n_seq = n_state // 64, n_audio * n_group
        self.weights = {name: normal(sizes["n_mlp" if name.startswith("mlp.0") else "n_state"]) for name in VECTORS}
        for name, (n_out, n_in) in LINEARS.items():
            scale = sizes[n_in] ** -0.5
            self.weights[f"{name}.weight"] = normal(sizes[n_out], sizes[n_in], scale=scale, dtype=dtype)
        self.x = normal(n_seq, n, n_state)
        shape = (n_seq, self.n_head, N_CTX, 64)
        self.caches = [rng.standard_normal(shape).astype(cache_dtype) for _ in range(2)]
        self.cross_kv = [normal(n_audio, self.n_head, N_KEYS, 64, dtype=cache_dtype) for _ in range(2)]
        # At each position another order of the pages.
        pages = np.tile(np.arange(n_seq)[:, None], (1, N_CTX))
        self.page_table = rng.permuted(pages, axis=0).reshape(n_audio, n_group, N_CTX)
        self.positions = np.arange(n_past, n_past + n)
        self.n_group, self.n_kv = n_group, n_past + n

    def compute(self, gpu: Gpu) -> dict[str, np.ndarray]:
        """Return the activations, by name."""
        matrices = [self.weights[f"{name}.weight"] for name in LINEARS]
        vectors = [self.weights[name] for name in VECTORS]
        with emulated_gpu(gpu):
            activations = nvidia.decoder_block(
                self.x, self.caches, self.page_table, self.positions, self.cross_kv, matrices, vectors
            )
        return {f"block.{name}": activation for name, activation in zip(ACTIVATIONS, activations, strict=True)}

    def failures(self, gpu: Gpu) -> list[str]:
        """Compute the block, and name the activations outside their bounds."""
        before = [cache.copy() for cache in self.caches]
        activations = self.compute(gpu)
        keys, values = (self.cached(cache) for cache in self.caches)
        # What is written into a cache are the keys and values, rounded once, and nothing else.
        for old, cache, name in zip(before, self.caches, ("key", "value")):
            expected = old.transpose(0, 2, 1, 3).copy()  # [n_pages, n_ctx, n_head, head_dim]
            new = activations[f"block.attn.{name}"].astype(cache.dtype)
            table = self.page_table.reshape(-1, N_CTX)
            for sequence, i in np.ndindex(new.shape[:2]):
                position = self.positions[i]
                expected[table[sequence, position], position] = new[sequence, i].reshape(self.n_head, 64)
            assert np.array_equal(expected.transpose(0, 2, 1, 3), cache), name
        cross = [np.repeat(kv.astype(np.float32), self.n_group, axis=0) for kv in self.cross_kv]
        arrays = {
            "x": self.x,
            **{f"block.{name}": weight.astype(np.float32) for name, weight in self.weights.items()},
            **activations,
            **dict(zip(("keys", "values", "cross_keys", "cross_values"), (keys, values, *cross))),
            "mask": causal_mask(len(self.positions), self.n_kv),
        }
        judged = judge_each(block_flow(self.n_head), arrays, verdict=judge_alone, device="gpu")
        return [f"{name}: {verdict.actual}" for name, verdict in judged if not verdict.actual.passes]

    def cached(self, cache: np.ndarray) -> np.ndarray:
        """Return the keys, or values, of all tokens, float32 [n_seq, n_head, n_kv, head_dim]."""
        table = self.page_table.reshape(-1, N_CTX)[:, : self.n_kv]
        pages = cache.transpose(0, 2, 1, 3)[table, np.arange(self.n_kv)]  # [n_seq, n_kv, n_head, head_dim]
        return np.ascontiguousarray(pages.transpose(0, 2, 1, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def gpus() -> dict[str, Gpu]:
    """Return a GPU for each kind of block, with its kernels compiled."""
    gpus = {kind: Gpu() for kind in KINDS}
    for kind, gpu in gpus.items():
        with gpu.noting():
            for n_audio, n_group, n in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)):
                Block(kind, n_audio, n_group, n, 0, 0).compute(gpu)
    return gpus


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_block_is_inside_its_bounds(gpus: dict[str, Gpu], kind: str) -> None:
    @given(data=st.data())
    @settings(max_examples=15 if KINDS[kind][2] == 128 else 6)  # a wider one takes four times as long
    def check(data: st.DataObject) -> None:
        failures = drawn(data, kind, gpus[kind])
        assert not failures, "\n".join(failures)

    check()


def drawn(data: st.DataObject, kind: str, gpu: Gpu) -> list[str]:
    """Draw a decoder block, compute it, and name the activations outside their bounds."""
    n_audio, n_group = data.draw(st.sampled_from([(1, 1), (1, 1), (1, 5), (2, 1), (9, 1), (3, 2), (2, 8)]))
    n = data.draw(st.sampled_from([1, 1, 2, 9] if n_audio * n_group <= 2 else [1]))
    n_past = data.draw(st.integers(0, N_CTX - n))
    block = Block(kind, n_audio, n_group, n, n_past, data.draw(st.integers(0, 2**16)))
    gpu.seed = data.draw(st.integers(0, 2**16))
    return block.failures(gpu)
