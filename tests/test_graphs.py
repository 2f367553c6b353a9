"""The graphs before compilation: names and order of activations, and signatures of backends."""

import inspect
import itertools
import re

import pytest
from max.graph import DeviceRef

from maxwhisper import ModelDimensions
from maxwhisper.engine.compiled import PACKAGE
from maxwhisper.engine.decoder_block import ACTIVATIONS, LINEARS, VECTORS
from maxwhisper.engine.graphs import build_module
from maxwhisper.engine.ops import Backend, cpu, nvidia, portable

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
    "encoder": names(
        "encoder", ["conv1", "conv1.gelu", "conv2", "conv2.gelu", "positions"], ENCODER_BLOCK, ["ln_post"]
    ),
    "cross_kv": names("decoder", [], ["cross_attn.key", "cross_attn.value"], []),
    "decoder": names("decoder", ["embedding", "positions"], DECODER_BLOCK, ["ln", "logits"]),
}


def test_every_activation_has_its_name() -> None:
    _, activations = build_module(DIMS, DeviceRef.CPU())
    assert activations == {graph: [] for graph in EXPECTED}
    all_names = [name for graph in EXPECTED.values() for name in graph]
    _, activations = build_module(DIMS, DeviceRef.CPU(), capture=all_names)
    assert activations == EXPECTED


def test_captured_activations_become_outputs_in_data_flow_order() -> None:
    wanted = ["decoder.logits", "encoder.conv1", "decoder.blocks.1.attn.context", "encoder.blocks.0.attn.context"]
    _, activations = build_module(DIMS, DeviceRef.CPU(), capture=wanted)
    assert activations == {
        "encoder": ["encoder.conv1", "encoder.blocks.0.attn.context"],
        "cross_kv": [],
        "decoder": ["decoder.blocks.1.attn.context", "decoder.logits"],
    }


def test_unknown_activations_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"encoder\.blocks\.7\.attn_ln"):
        build_module(DIMS, DeviceRef.CPU(), capture=["encoder.conv1", "encoder.blocks.7.attn_ln"])


@pytest.mark.parametrize(
    ("backend", "own"),
    [(cpu, {"greedy", "beams"}), (portable, {"log_mel", "step"}), (nvidia, {"log_mel", "step", "beams"})],
)
def test_a_backend_has_its_own_graphs(backend: Backend, own: set[str]) -> None:
    module, _ = build_module(DIMS, DeviceRef.CPU(), backend=backend)
    assert set(module.top_level_graph_names()) - {*EXPECTED, "alignment"} == own


def test_backends_have_equal_signatures() -> None:
    functions = {
        backend: {name: f for name, f in vars(backend).items() if inspect.isfunction(f) and name[0] != "_"}
        for backend in (cpu, portable, nvidia)
    }
    shared = functions[cpu].keys() & functions[portable].keys() & functions[nvidia].keys()
    assert {"linear", "conv1d", "lm_head", "attention", "embed", "normed_lm_head"} <= shared
    for one, other in itertools.combinations(functions.values(), 2):
        for name in one.keys() & other.keys():
            assert inspect.signature(one[name]) == inspect.signature(other[name]), name
    # What is not portable: quantized layers, fused blocks, and the candidates of a beam search.
    portables = functions[portable].keys()
    assert functions[cpu].keys() - portables == {"linear_int8", "attention_int8", "decoder_block", "top_k_tokens"}
    assert functions[nvidia].keys() - portables == {"decoder_block", "rank_tokens", "supports", "top_k_tokens"}


@pytest.mark.parametrize("backend", [portable, nvidia])
def test_backends_record_the_same_activations(backend: Backend) -> None:
    every = [name for graph in EXPECTED.values() for name in graph]
    assert build_module(DIMS, DeviceRef.CPU(), capture=every, backend=backend)[1] == EXPECTED


def test_the_fused_blocks_constants_are_those_of_python() -> None:
    source = (PACKAGE / "engine" / "kernels" / "decoder_block.mojo").read_text(encoding="utf-8")
    constants = {name: int(n) for name, n in re.findall(r"^comptime ([A-Z0-9_]+) = (\d+)$", source, re.MULTILINE)}

    def constant(name: str) -> str:
        return name.replace(".", "_").upper()

    for names in (ACTIVATIONS, [f"{name}.weight" for name in LINEARS], VECTORS):
        assert [constants[constant(name)] for name in names] == list(range(len(names)))
    assert (constants["N_MATRICES"], constants["N_VECTORS"]) == (len(LINEARS), len(VECTORS))
