"""The graphs name what they compute, in data-flow order, and say so before anything is compiled."""

import pytest
from max.graph import DeviceRef

from maxwhisper import ModelDimensions
from maxwhisper.engine.graphs import build_module

DIMS = ModelDimensions(80, 16, 8, 2, 2, 51864, 12, 8, 2, 2)
ENCODER_BLOCK = [
    *("attn_ln", "attn.query", "attn.key", "attn.value", "attn.context", "attn.out", "attn.residual"),
    *("mlp_ln", "mlp.0", "mlp.gelu", "mlp.2", "mlp.residual"),
]
CROSS = ["cross_attn_ln", *(f"cross_attn.{name}" for name in ("query", "context", "out", "residual"))]
DECODER_BLOCK = [*ENCODER_BLOCK[:7], *CROSS, *ENCODER_BLOCK[7:]]


def names(prefix: str, before: list[str], block: list[str], after: list[str]) -> list[str]:
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    return [f"{prefix}.{name}" for name in (*before, *blocks, *after)]


EXPECTED = {
    "encoder": names("encoder", ["conv1", "conv1.gelu", "conv2", "conv2.gelu", "positions"], ENCODER_BLOCK, ["ln_post"]),
    "cross_kv": names("decoder", [], ["cross_attn.key", "cross_attn.value"], []),
    "decoder": names("decoder", ["embedding", "positions"], DECODER_BLOCK, ["ln", "logits"]),
}


def test_every_activation_has_its_name() -> None:
    _, activations = build_module(DIMS, DeviceRef.CPU())
    assert activations == {graph: [] for graph in EXPECTED}
    everything = [name for graph in EXPECTED.values() for name in graph]
    _, activations = build_module(DIMS, DeviceRef.CPU(), capture=everything)
    assert activations == EXPECTED


def test_captured_activations_become_outputs_in_data_flow_order() -> None:
    wanted = ["decoder.logits", "encoder.conv1", "decoder.blocks.1.attn.context", "encoder.blocks.0.attn.context"]
    _, activations = build_module(DIMS, DeviceRef.CPU(), capture=wanted)
    assert activations == {
        "encoder": ["encoder.conv1", "encoder.blocks.0.attn.context"],
        "cross_kv": [],
        "decoder": ["decoder.blocks.1.attn.context", "decoder.logits"],
    }


def test_unknown_activations_are_named() -> None:
    with pytest.raises(ValueError, match=r"encoder\.blocks\.7\.attn_ln"):
        build_module(DIMS, DeviceRef.CPU(), capture=["encoder.conv1", "encoder.blocks.7.attn_ln"])
