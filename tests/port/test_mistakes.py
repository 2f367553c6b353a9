"""Mistakes that porters make, in three architectures: each is blamed on its op, and no control is.

A port shows what hooks on modules show. It is the original, but one op computes something else.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference.ops.tensors import from_torch
from reference.port import Traced, judge_port, trace
from tests.port.originals import ORIGINALS


class Change(NamedTuple):
    """An op that computes something else."""

    name: str
    original: str
    at: str  # the op's name
    function: Callable[..., torch.Tensor]  # takes the op's arguments
    blamed: str = ""  # the first activation that differs; "" if it is harmless


def traced(original: str) -> Traced:
    torch.manual_seed(0)
    made = ORIGINALS[original]()
    return trace(made.module, *made.inputs)


def shown(original: Traced, change: Change) -> dict[str, np.ndarray]:
    """Return all modules' outputs and the result, of a port in which an op computes otherwise."""
    values: dict[str, Any] = dict(original.given)
    for name, op in original.ops.items():
        function = change.function if name == change.at else op.target
        with torch.no_grad():
            values[name] = op.call(function, values)
    return {name: from_torch(values[name]) for name in original.shown_by_hooks}


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """Compute causal attention by steps, with softmax in two passes over blocks of keys."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    blocks = scores.exp().split(4, dim=-1)
    total = sum(block.sum(-1, keepdim=True) for block in blocks)
    return sum(block @ part for block, part in zip(blocks, v.split(4, dim=-2))) / total


def interleaved(x: torch.Tensor) -> torch.Tensor:
    """Return -x[1], x[0], -x[3], x[2], …: rotary embedding of neighbours instead of halves."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)


def swapped_kv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
    """Attend with the keys and values of each group in another order."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat(1, groups, 1, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


BLOCK = "blocks.0"
MISTAKES = [
    Change("epsilon 1e-6", "whisper", f"{BLOCK}.attn_ln",
           lambda x, shape, w, b, eps, *_: F.layer_norm(x, shape, w, b, 1e-6), f"{BLOCK}.attn_ln"),
    Change("a bias missing", "whisper", f"{BLOCK}.attn.query", lambda x, w, b: F.linear(x, w), f"{BLOCK}.attn.query"),
    Change("a weight transposed", "whisper", f"{BLOCK}.attn.value",
           lambda x, w, b: F.linear(x, w.T, b), f"{BLOCK}.attn.value"),
    Change("scale missing", "whisper", f"{BLOCK}.attn.scaled_dot_product_attention",
           lambda q, k, v, *_, **__: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0),
           f"{BLOCK}.attn.out"),
    Change("mask missing", "whisper", f"{BLOCK}.attn.scaled_dot_product_attention",
           lambda q, k, v, *_, **__: F.scaled_dot_product_attention(q, k, v), f"{BLOCK}.attn.out"),
    Change("heads interleaved", "whisper", f"{BLOCK}.cross_attn.view",
           lambda x, shape: x.unflatten(-1, (-1, 3)).mT, f"{BLOCK}.cross_attn.out"),
    Change("tanh GELU", "whisper", f"{BLOCK}.mlp.1", lambda x: F.gelu(x, approximate="tanh"), f"{BLOCK}.mlp.1"),
    Change("residual lost", "whisper", f"{BLOCK}.add_2", lambda x, y: 0 * x + y, f"{BLOCK}.mlp_ln"),
    Change("positions shifted by one", "whisper", "slice",
           lambda x, dim, begin, end: x[begin + 1 : end + 1], f"{BLOCK}.attn_ln"),
    Change("epsilon 1e-5 for 1e-12", "bert", "layers.0.norm",
           lambda x, shape, w, b, eps, *_: F.layer_norm(x, shape, w, b, 1e-5), "layers.0.norm"),
    Change("padding attended to", "bert", "layers.0.add", lambda scores, mask: scores, "layers.0.dense"),
    Change("kinds of tokens left out", "bert", "add_2", lambda x, y: x + 0 * y, "norm"),
    Change("mean over padding, too", "bert", "mul_2", lambda x, present: x, "div_2"),
    Change("softmax over queries", "bert", "layers.1.softmax", lambda x, dim: x.softmax(-2), "layers.1.dense"),
    Change("epsilon 1e-5 for 1e-6", "llama", "layers.0.norm",
           lambda x, shape, w, eps: F.rms_norm(x, shape, w, 1e-5), "layers.0.norm"),
    Change("weight of RMS norm plus one", "llama", "layers.0.mlp_norm",
           lambda x, shape, w, eps: F.rms_norm(x, shape, w + 1, eps), "layers.0.mlp_norm"),
    Change("rotary embedding of neighbours", "llama", "layers.0.rotary.cat_3",
           lambda parts, dim: interleaved(torch.cat([parts[1], -parts[0]], dim)), "layers.0.o"),
    Change("rotary base of 1e6", "llama", "layers.0.rotary.pow", lambda base, x: 1e6**x, "layers.0.o"),
    Change("groups in another order", "llama", "layers.0.scaled_dot_product_attention", swapped_kv, "layers.0.o"),
    Change("GELU for SiLU", "llama", "layers.0.act", lambda x: F.gelu(x), "layers.0.act"),
    Change("gate not multiplied", "llama", "layers.0.mul", lambda gate, up: gate, "layers.0.down"),
    Change("half precision inside", "llama", "layers.1.down",
           lambda x, w: (x.half() @ w.half().T).float(), "layers.1.down"),
    Change("one weight changed by 1 %", "llama", "layers.1.q",
           lambda x, w: x @ (w * (1 + 0.01 * (torch.arange(w.numel()).reshape(w.shape) == 77))).T, "layers.1.q"),
]  # fmt: skip
CONTROLS = [
    Change("attention by blocks", "whisper", f"{BLOCK}.attn.scaled_dot_product_attention",
           lambda q, k, v, *_, **options: masked(q, k, v)),
    Change("a product summed backwards", "whisper", f"{BLOCK}.mlp.0", lambda x, w, b: b + x.flip(-1) @ w.flip(-1).T),
    Change("variance as a difference of squares", "bert", "norm",
           lambda x, shape, w, b, eps, *_: (x - x.mean(-1, keepdim=True)) / (
               (x**2).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2 + eps).sqrt() * w + b),
    Change("softmax in another base", "bert", "layers.0.softmax",
           lambda x, dim: torch.softmax((x * 1.4426950408889634) * 0.6931471805599453, dim)),
    Change("RMS norm in float64", "llama", "layers.0.norm",
           lambda x, shape, w, eps: F.rms_norm(x.double(), shape, w.double(), eps).float()),
    Change("SiLU by tanh", "llama", "layers.0.act", lambda x: x / 2 * (1 + (x / 2).tanh())),
]  # fmt: skip


@pytest.mark.parametrize("change", MISTAKES, ids=lambda change: f"{change.original}: {change.name}")
def test_a_mistake_is_blamed_on_its_op(change: Change) -> None:
    original = traced(change.original)
    assert change.at in original.ops
    failed = [one for one in judge_port(original, shown(original, change)) if not one.passes]
    assert failed and failed[0].name == change.blamed, [str(one) for one in failed]


@pytest.mark.parametrize("change", CONTROLS, ids=lambda change: f"{change.original}: {change.name}")
def test_a_harmless_change_is_not_reported(change: Change) -> None:
    original = traced(change.original)
    assert change.at in original.ops
    assert not [str(one) for one in judge_port(original, shown(original, change)) if not one.passes]


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("seed", range(5))
def test_the_original_passes_as_its_own_port(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    made = ORIGINALS[name]()
    original = trace(made.module, *made.inputs)
    own: Mapping[str, np.ndarray] = {op: from_torch(x) for op, x in original.run().items()}
    for port in (own, {op: own[op] for op in original.shown_by_hooks}):
        assert not [str(one) for one in judge_port(original, port) if not one.passes]
