"""Rows that are composed of rows.

They use the functions that build the graphs, if there are such functions. A bound for the whole
would say nothing. So each part is judged by its own row on its own inputs (in situ), and the first
part outside its bounds is named.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import Dataflow, Step, evaluate, names
from reference.ops.row import Build, Input, Op, find_row

N_HEAD = 2
STATE = "24"  # a fixed width, because it is split into heads


class Composed(Op):
    """A row whose parts are rows.

    The function that `build` names takes the graph's inputs by name, and returns the parts by name.
    """

    required = ("inputs", "build", "parts", "sensitivity_case")
    parts: ClassVar[Dataflow]
    dtypes = ("float32",)  # the dtype of graphs; the parts are rows in every dtype

    @classmethod
    def outputs(cls, resolve: Callable[[Build], Callable[..., Any]], *values: Any) -> list[Any]:
        """Build the graph, and return the parts in order."""
        parts = resolve(cls.build)(dict(zip(cls.inputs, values, strict=True)))
        return [parts[name] for name in names(cls.parts)]

    @classmethod
    def define(cls, *arrays: np.ndarray) -> np.ndarray:
        """Compute the last part by definitions alone."""
        inputs = dict(zip(cls.inputs, arrays, strict=True))
        return list(evaluate(cls.parts, inputs, lambda op, sources: find_row(op).define(*sources)).values())[-1]


def _weights(shapes: Mapping[str, str]) -> dict[str, Input]:
    return {name: Input(shape) for name, shape in shapes.items()}


class Mlp(Composed, row="mlp"):
    """The second half of a block, `maxwhisper.engine.graphs.mlp`.

    It is a layer norm, a linear layer, a GELU, a linear layer and the residual.
    """

    sensitivity_case = (
        "x",
        {"batch": 1, "n": 2, "n_state": 3, "n_mlp": 5},
        {"block.mlp.2.weight": "zeros", "block.mlp.2.bias": "zeros"},
    )
    inputs = {"x": Input("batch n n_state")} | _weights(
        {
            "block.mlp_ln.weight": "n_state",
            "block.mlp_ln.bias": "n_state",
            "block.mlp.0.weight": "n_mlp n_state",
            "block.mlp.0.bias": "n_mlp",
            "block.mlp.2.weight": "n_state n_mlp",
            "block.mlp.2.bias": "n_state",
        }
    )
    build = "adapters.mlp"
    parts = whisper_flow.mlp("block", "x")


PROJECTIONS = {
    "block.attn.query.weight": f"{STATE} {STATE}",
    "block.attn.query.bias": STATE,
    "block.attn.key.weight": f"{STATE} {STATE}",
    "block.attn.value.weight": f"{STATE} {STATE}",
    "block.attn.value.bias": STATE,
    "block.attn.out.weight": f"{STATE} {STATE}",
    "block.attn.out.bias": STATE,
}


class ResidualBlock(Composed, row="residual_block"):
    """The first half of an encoder block, `maxwhisper.engine.graphs.self_attention`.

    Attention is one fused op, without scores and weights.
    """

    sensitivity_case = ("x", {"batch": 1, "n": 2}, {"block.attn.out.weight": "zeros", "block.attn.out.bias": "zeros"})
    inputs = {"x": Input(f"batch n {STATE}")} | _weights(
        {"block.attn_ln.weight": STATE, "block.attn_ln.bias": STATE, **PROJECTIONS}
    )
    build = "adapters.residual_block"
    parts = whisper_flow.self_attention("block", "x", N_HEAD, fused=True)


class CrossAttentionBlock(Composed, row="cross_attention_block"):
    """`graphs.cross_attention` from the queries of a text to the keys and values of an audio.

    Keys and values are projected from different activations than the queries.
    """

    sensitivity_case = (
        "block.cross_attn.out.bias",
        {"batch": 1, "n": 2, "n_kv": 3},
        {"block.cross_attn.out.weight": "zeros"},
    )
    inputs = {"x": Input(f"batch n {STATE}"), "xa": Input(f"batch n_kv {STATE}")} | _weights(
        {"block.cross_attn_ln.weight": STATE, "block.cross_attn_ln.bias": STATE}
        | {name.replace(".attn.", ".cross_attn."): shape for name, shape in PROJECTIONS.items()}
    )
    build = "adapters.cross_attention_block"
    parts = whisper_flow.keys_and_values("block.cross_attn", "xa") | whisper_flow.cross_attention(
        "block", "x", N_HEAD, fused=True
    )


class PositionEmbedding(Composed, row="position_embedding"):
    """Token embedding, the rows of the positions, and their sum, as in `graphs.decoder`.

    The parity report tests them in the whole model.
    """

    sensitivity_case = ("positional_embedding", {"batch": 1, "n": 2, "n_state": 3, "n_vocab": 4, "n_ctx": 1}, {})
    inputs = {
        "tokens": Input("batch n", ("index",), dtype="int64", below="n_vocab"),
        "weight": Input("n_vocab n_state"),
        "positions": Input("n", ("index",), dtype="int64", below="n_ctx"),
        "positional_embedding": Input("n_ctx n_state"),
    }
    build = "adapters.position_embedding"
    parts = {
        "embedding": Step("token_embedding", ("tokens", "weight")),
        "rows": Step("token_embedding", ("positions", "positional_embedding")),
        "positions_added": Step("residual", ("embedding", "rows")),
    }


CACHES = {
    # Its shape is the number of new tokens, and the number of all tokens so far.
    "mask": Input("n n_kv", ("causal",), dtype="float32"),
    "k_cache": Input("batch n_head 448 head_dim", in_place=True),
    "v_cache": Input("batch n_head 448 head_dim", in_place=True),
    "slots": Input("batch 1 448", ("slots",), dtype="int64"),  # the page table
}


class CachedAttention(Composed, row="cached_attention"):
    """Attention of new tokens to a KV cache and to themselves, `ops.cached_attention`.

    The keys and values of the new tokens are written into the cache.
    """

    sensitivity_case = ("k", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "head_dim": 3}, {})
    inputs = {
        "q": Input("batch n_head n head_dim"),
        "k": Input("batch n_head n head_dim"),
        "v": Input("batch n_head n head_dim"),
        **CACHES,
    }
    build = "adapters.cached_attention"
    parts = {
        "keys": Step("cached", ("k_cache", "k", "slots", "mask")),
        "values": Step("cached", ("v_cache", "v", "slots", "mask")),
        "context": Step("masked_attention", ("q", "keys", "values", "mask")),
    }


WIDE = "160"  # two heads of 80, which is no multiple of the longest SIMD vectors
WIDE_MLP = "176"


# The weights of a decoder block.
NORMS = ("attn_ln", "cross_attn_ln", "mlp_ln")
LAYERS = ("attn.query", "attn.key", "attn.value", "attn.out", "cross_attn.query", "cross_attn.out", "mlp.0", "mlp.2")
AUDIO = ("block.cross_attn.key", "block.cross_attn.value")


def _decoder_block_weights(*matrix: Any) -> dict[str, Input]:
    sizes = {"mlp.0": (WIDE_MLP, WIDE), "mlp.2": (WIDE, WIDE_MLP)}
    weights = {f"block.{norm}.{name}": Input(WIDE) for norm in NORMS for name in ("weight", "bias")}
    for layer in LAYERS:
        n_out, n_in = sizes.get(layer, (WIDE, WIDE))
        weights[f"block.{layer}.weight"] = Input(f"{n_out} {n_in}", *matrix)
        if layer != "attn.key":
            weights[f"block.{layer}.bias"] = Input(n_out)
    return weights


class DecoderBlock(Composed, row="decoder_block"):
    """A whole block of the decoder, `maxwhisper.engine.graphs.decoder_block`.

    Its matrices are float16. On the CPU it is one kernel of this project.
    """

    sensitivity_case = (
        "block.attn.out.bias",
        {"batch": 1, "n": 2, "n_kv": 3, "n_audio": 5},
        {"block.attn.out.weight": "zeros"},
    )
    inputs = {
        "x": Input(f"batch n {WIDE}"),
        **{
            name: replace(spec, shape=spec.shape.replace("n_head", str(N_HEAD)).replace("head_dim", "80"))
            for name, spec in CACHES.items()
        },
        **{name: Input(f"batch n_audio {WIDE}") for name in AUDIO},
        **_decoder_block_weights(("small",), "float16"),
    }
    build = "adapters.decoder_block"
    parts = {
        **whisper_flow.layer_norm("block.attn_ln", "x"),
        **whisper_flow.projections("block.attn", "block.attn_ln", "block.attn_ln"),
        "keys": Step("cached", ("k_cache", f"block.attn.key:{N_HEAD} heads", "slots", "mask")),
        "values": Step("cached", ("v_cache", f"block.attn.value:{N_HEAD} heads", "slots", "mask")),
        f"block.attn.context:{N_HEAD} heads": Step(
            "masked_attention", (f"block.attn.query:{N_HEAD} heads", "keys", "values", "mask")
        ),
        **whisper_flow.linear("block.attn.out", "block.attn.context"),
        "block.attn.residual": Step("residual", ("x", "block.attn.out")),
        **whisper_flow.cross_attention("block", "block.attn.residual", N_HEAD, fused=True),
        **whisper_flow.mlp("block", "block.cross_attn.residual"),
    }


class DecoderBlockInt8(DecoderBlock, row="decoder_block_int8"):
    """`DecoderBlock` with matrices quantized to int8."""

    devices = ("cpu",)
    inputs = {
        **DecoderBlock.inputs,
        **_decoder_block_weights(("int8",), "int8"),
        **{f"block.{layer}.scale": Input(WIDE_MLP if layer == "mlp.0" else WIDE, ("scales",)) for layer in LAYERS},
    }
    parts = {f"{kv}.half": Step("half", (kv,)) for kv in AUDIO} | whisper_flow.int8(DecoderBlock.parts)
    sensitivity_case = (
        "block.attn.out.bias",
        {"batch": 1, "n": 2, "n_kv": 3, "n_audio": 5},
        {"block.attn.out.scale": "zeros"},
    )
