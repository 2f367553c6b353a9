"""Compare activations of a model other than Whisper: two GPT-style blocks in PyTorch.

The test writes down their data flow, and a fault is found.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference.flow.dataflow import Step
from reference.numerics.definitions import causal_mask
from reference.parity.activations import compare_activations, first_divergence, truth

N_LAYER, N_HEAD, N_STATE, N_VOCAB = 2, 3, 24, 50
Weights = dict[str, np.ndarray]


def flow() -> dict[str, Step]:
    """Write the data flow: tokens → embedding → blocks → logits.

    Attention and MLP are parallel in a block, as in GPT-J.
    """
    steps = {"embed": Step("token_embedding", ("tokens", "embed.weight"))}
    x = "embed"
    for i in range(N_LAYER):
        h = f"h{i}"
        steps[f"{h}.ln"] = Step("layer_norm", (x, f"{h}.ln.weight", f"{h}.ln.bias"))
        for name in ("q", "k", "v"):
            steps[f"{h}.{name}"] = Step("linear", (f"{h}.ln", f"{h}.{name}.weight"))
        heads = tuple(f"{h}.{name}:{N_HEAD} heads" for name in ("q", "k", "v"))
        steps[f"{h}.context:{N_HEAD} heads"] = Step("masked_attention", (*heads, "mask"))
        steps[f"{h}.attn"] = Step("linear", (f"{h}.context", f"{h}.attn.weight"))
        steps[f"{h}.up"] = Step("linear", (f"{h}.ln", f"{h}.up.weight", f"{h}.up.bias"))
        steps[f"{h}.act"] = Step("gelu", (f"{h}.up",))
        steps[f"{h}.down"] = Step("linear", (f"{h}.act", f"{h}.down.weight", f"{h}.down.bias"))
        steps[f"{h}.parallel"] = Step("residual", (f"{h}.attn", f"{h}.down"))
        steps[f"{h}.out"] = Step("residual", (x, f"{h}.parallel"))
        x = f"{h}.out"
    return steps | {"logits": Step("lm_head", (x, "embed.weight"))}


def run(w: Weights, tokens: np.ndarray, gelu: Callable[[torch.Tensor], torch.Tensor] = F.gelu) -> dict[str, np.ndarray]:
    """Run the model as a port would compute it, and record its activations."""
    activations: dict[str, torch.Tensor] = {}

    def record(name: str, value: torch.Tensor) -> torch.Tensor:
        activations[name] = value
        return value

    t = {name: torch.from_numpy(value) for name, value in w.items()}
    x = record("embed", t["embed.weight"][torch.from_numpy(tokens)])
    for h in (f"h{i}" for i in range(N_LAYER)):
        ln = record(f"{h}.ln", F.layer_norm(x, (N_STATE,), t[f"{h}.ln.weight"], t[f"{h}.ln.bias"]))
        q, k, v = (
            record(f"{h}.{name}", ln @ t[f"{h}.{name}.weight"].T).unflatten(-1, (N_HEAD, -1)).transpose(1, 2)
            for name in ("q", "k", "v")
        )
        context = record(
            f"{h}.context", F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        attn = record(f"{h}.attn", context @ t[f"{h}.attn.weight"].T)
        act = record(f"{h}.act", gelu(record(f"{h}.up", F.linear(ln, t[f"{h}.up.weight"], t[f"{h}.up.bias"]))))
        down = record(f"{h}.down", F.linear(act, t[f"{h}.down.weight"], t[f"{h}.down.bias"]))
        x = record(f"{h}.out", x + record(f"{h}.parallel", attn + down))
    record("logits", x @ t["embed.weight"].T)
    return {name: value.numpy() for name, value in activations.items()}


@pytest.fixture(scope="module")
def weights() -> Weights:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (N_VOCAB, N_STATE)}
    for h in (f"h{i}" for i in range(N_LAYER)):
        shapes |= {
            f"{h}.ln.weight": (N_STATE,),
            f"{h}.ln.bias": (N_STATE,),
            f"{h}.up.weight": (96, N_STATE),
            f"{h}.up.bias": (96,),
        }
        shapes |= {f"{h}.{name}.weight": (N_STATE, N_STATE) for name in ("q", "k", "v", "attn")}
        shapes |= {f"{h}.down.weight": (N_STATE, 96), f"{h}.down.bias": (N_STATE,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_correct_port_is_equal_and_a_fault_is_named(weights: Weights) -> None:
    tokens = np.arange(22).reshape(2, 11) % N_VOCAB
    inputs = {**weights, "tokens": tokens, "mask": causal_mask(11)}
    exact = truth(flow(), inputs)
    assert first_divergence(compare_activations(flow(), run(weights, tokens), inputs, exact)) is None
    wrong = run(weights, tokens, gelu=lambda x: F.gelu(x, approximate="tanh"))
    culprit = first_divergence(compare_activations(flow(), wrong, inputs, exact))
    assert culprit is not None
    assert culprit.name == "h0.act"
    transposed = {**weights, "h1.attn.weight": weights["h1.attn.weight"].T.copy()}
    culprit = first_divergence(compare_activations(flow(), run(transposed, tokens), inputs, exact))
    assert culprit is not None
    assert culprit.name == "h1.attn"
