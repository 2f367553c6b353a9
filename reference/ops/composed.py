"""Rows that are made of rows, in the graphs' own functions where there are such. A bound for the whole would say nothing, so each part is
judged by its own row on the inputs that it was really given (in situ), and the first one outside is named.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from max.dtype import DType
from max.graph import BufferValue, TensorValue
from max.graph import ops as max_ops

from maxwhisper.engine import graphs, ops
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import Dataflow, Step, evaluate, parse
from reference.ops.attention import heads_of, positions
from reference.ops.row import TABLE, Input, Op, row

N_HEAD = 2
STATE = "24"  # heads are split, so the width is fixed


class Composed(Op):
    """A row whose parts are rows.

    build: from the graph's inputs by name to the parts by name.
    """

    parts: ClassVar[Dataflow]
    dtypes = ("float32",)  # which graphs are built in; their parts are rows in every dtype

    @classmethod
    def outputs(cls, *values: TensorValue | BufferValue) -> list[TensorValue]:
        """The parts, in order."""
        parts = cls.build(dict(zip(cls.inputs, values, strict=True)))
        return [parts[parse(name).name] for name in cls.parts]

    @classmethod
    def define(cls, *arrays: np.ndarray) -> np.ndarray:
        """The last part, by definitions alone."""
        given = dict(zip(cls.inputs, arrays, strict=True))
        return list(evaluate(cls.parts, given, lambda op, inputs: TABLE[op].define(*inputs)).values())[-1]


def _weights(shapes: Mapping[str, str]) -> dict[str, Input]:
    return {name: Input(shape) for name, shape in shapes.items()}


def _recorded(function: Callable[[graphs.Scope, Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Mapping[str, TensorValue]]:
    """Build one of the graphs' functions under its weights, and take what it records."""

    def build(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
        at = graphs.Scope(values) / "block"
        function(at, values)
        return at.activations

    return build


@row
class Mlp(Composed):
    """The second half of a block, `maxwhisper.engine.graphs.mlp`: layer norm, linear, GELU, linear, residual."""

    tight = ("x", {"batch": 1, "n": 2, "n_state": 3, "n_mlp": 5}, {"block.mlp.2.weight": "zeros", "block.mlp.2.bias": "zeros"})
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
    build = staticmethod(_recorded(lambda at, values: graphs.mlp(at, values["x"])))
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


@row
class ResidualBlock(Composed):
    """The first half of an encoder's block, `maxwhisper.engine.graphs.self_attention`. Attention is one fused op: no scores, no weights."""

    tight = ("x", {"batch": 1, "n": 2}, {"block.attn.out.weight": "zeros", "block.attn.out.bias": "zeros"})
    inputs = {"x": Input(f"batch n {STATE}")} | _weights({"block.attn_ln.weight": STATE, "block.attn_ln.bias": STATE, **PROJECTIONS})
    build = staticmethod(_recorded(lambda at, values: graphs.self_attention(at, values["x"], N_HEAD)))
    parts = whisper_flow.self_attention("block", "x", N_HEAD, fused=True)


def _cross_attention(at: graphs.Scope, values: Mapping[str, Any]) -> None:
    keys, kept = graphs.keys_and_values(at / "cross_attn", values["xa"])
    graphs.cross_attention(at, values["x"], [ops.split_heads(keys, N_HEAD), ops.split_heads(kept, N_HEAD)])


@row
class CrossAttentionBlock(Composed):
    """`graphs.cross_attention` of a text's queries to an audio's keys and values, which are projected from other activations."""

    tight = ("block.cross_attn.out.bias", {"batch": 1, "n": 2, "n_kv": 3}, {"block.cross_attn.out.weight": "zeros"})
    inputs = {"x": Input(f"batch n {STATE}"), "xa": Input(f"batch n_kv {STATE}")} | _weights(
        {"block.cross_attn_ln.weight": STATE, "block.cross_attn_ln.bias": STATE}
        | {name.replace(".attn.", ".cross_attn."): shape for name, shape in PROJECTIONS.items()}
    )
    build = staticmethod(_recorded(_cross_attention))
    parts = whisper_flow.keys_and_values("block.cross_attn", "xa") | whisper_flow.cross_attention("block", "x", N_HEAD, fused=True)


def _positions(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    embedding = ops.token_embedding(values["tokens"], values["weight"])
    rows = ops.token_embedding(values["positions"], values["positional_embedding"])
    return {"embedding": embedding, "rows": rows, "positions_added": embedding + rows}


@row
class PositionEmbedding(Composed):
    """Token embedding, the rows of the positions, and their sum, as `graphs.decoder` does it (in the whole model: parity)."""

    tight = ("positional_embedding", {"batch": 1, "n": 2, "n_state": 3, "n_vocab": 4, "n_ctx": 1}, {})
    inputs = {
        "tokens": Input("batch n", ("index",), dtype="int64", below="n_vocab"),
        "weight": Input("n_vocab n_state"),
        "positions": Input("n", ("index",), dtype="int64", below="n_ctx"),
        "positional_embedding": Input("n_ctx n_state"),
    }
    build = staticmethod(_positions)
    parts = {
        "embedding": Step("token_embedding", ("tokens", "weight")),
        "rows": Step("token_embedding", ("positions", "positional_embedding")),
        "positions_added": Step("residual", ("embedding", "rows")),
    }


def _cached_attention(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    q, k, v = (ops.merge_heads(values[name]) for name in ("q", "k", "v"))
    k_cache, v_cache, slots, mask = values["k_cache"], values["v_cache"], values["slots"], values["mask"]
    context = ops.cached_attention(q, k, v, k_cache, v_cache, slots, positions(mask))
    return {**_kept([k_cache, v_cache], slots, mask), "context": heads_of(context, values["q"])}


def _kept(caches: Iterable[BufferValue], slots: TensorValue, mask: TensorValue) -> Mapping[str, TensorValue]:
    """What a cache holds of the tokens of a causal mask."""
    keys, kept = (ops.read_cache(cache, slots)[:, :, : mask.shape[1]] for cache in caches)
    return {"keys": keys, "values": kept}


CACHES = {
    "mask": Input("n n_kv", ("causal",), dtype="float32"),  # says how many tokens there are, and how many with those before
    "k_cache": Input("batch n_head 448 head_dim", in_place=True),
    "v_cache": Input("batch n_head 448 head_dim", in_place=True),
    "slots": Input("batch 1 448", ("slots",), dtype="int64"),
}


@row
class CachedAttention(Composed):
    """New tokens attend to a cache that their keys and values are written into, and to themselves: `ops.cached_attention`."""

    tight = ("k", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "head_dim": 3}, {})
    inputs = {
        "q": Input("batch n_head n head_dim"),
        "k": Input("batch n_head n head_dim"),
        "v": Input("batch n_head n head_dim"),
        **CACHES,
    }
    build = staticmethod(_cached_attention)
    parts = {
        "keys": Step("cached", ("k_cache", "k", "slots", "mask")),
        "values": Step("cached", ("v_cache", "v", "slots", "mask")),
        "context": Step("masked_attention", ("q", "keys", "values", "mask")),
    }


WIDE = "160"  # two heads of 80: whole vectors of every kind, and a rest
WIDE_MLP = "176"


AUDIO = ("block.cross_attn.key", "block.cross_attn.value")


def _decoder_block(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    at = graphs.Scope(values) / "block"
    caches, audio = [values["k_cache"], values["v_cache"]], [values[name] for name in AUDIO]
    if (at / "attn" / "query").scale() is not None:
        audio = [max_ops.cast(kv, DType.float16) for kv in audio]
    graphs.decoder_block(at, values["x"], caches, [ops.split_heads(kv, N_HEAD) for kv in audio], values["slots"], positions(values["mask"]))
    halves = {f"{name}.half": max_ops.cast(kv, DType.float32) for name, kv in zip(AUDIO, audio)}
    return {**at.activations, **halves, **_kept(caches, values["slots"], values["mask"])}


def _decoder_block_weights(*matrix: Any) -> dict[str, Input]:
    sizes = {"mlp.0": (WIDE_MLP, WIDE), "mlp.2": (WIDE, WIDE_MLP)}
    weights = {f"block.{norm}.{name}": Input(WIDE) for norm in graphs.NORMS for name in ("weight", "bias")}
    for layer in graphs.LAYERS:
        n_out, n_in = sizes.get(layer, (WIDE, WIDE))
        weights[f"block.{layer}.weight"] = Input(f"{n_out} {n_in}", *matrix)
        if layer != "attn.key":
            weights[f"block.{layer}.bias"] = Input(n_out)
    return weights


@row
class DecoderBlock(Composed):
    """A whole block of the decoder, `maxwhisper.engine.graphs.decoder_block`, with its matrices in float16: on the CPU a kernel of ours."""

    tight = ("block.attn.out.bias", {"batch": 1, "n": 2, "n_kv": 3, "n_audio": 5}, {"block.attn.out.weight": "zeros"})
    inputs = {
        "x": Input(f"batch n {WIDE}"),
        **{name: replace(spec, shape=spec.shape.replace("n_head", str(N_HEAD)).replace("head_dim", "80")) for name, spec in CACHES.items()},
        **{name: Input(f"batch n_audio {WIDE}") for name in AUDIO},
        **_decoder_block_weights(("small",), "float16"),
    }
    build = staticmethod(_decoder_block)
    parts = {
        **whisper_flow.layer_norm("block.attn_ln", "x"),
        **whisper_flow.projections("block.attn", "block.attn_ln", "block.attn_ln"),
        "keys": Step("cached", ("k_cache", f"block.attn.key:{N_HEAD} heads", "slots", "mask")),
        "values": Step("cached", ("v_cache", f"block.attn.value:{N_HEAD} heads", "slots", "mask")),
        f"block.attn.context:{N_HEAD} heads": Step("masked_attention", (f"block.attn.query:{N_HEAD} heads", "keys", "values", "mask")),
        **whisper_flow.linear("block.attn.out", "block.attn.context"),
        "block.attn.residual": Step("residual", ("x", "block.attn.out")),
        **whisper_flow.cross_attention("block", "block.attn.residual", N_HEAD, fused=True),
        **whisper_flow.mlp("block", "block.cross_attn.residual"),
    }


@row
class DecoderBlockInt8(DecoderBlock):
    """The same with matrices rounded to 8 bits."""

    devices = ("cpu",)
    inputs = {
        **DecoderBlock.inputs,
        **_decoder_block_weights(("whole",), "int8"),
        **{f"block.{layer}.scale": Input(WIDE_MLP if layer == "mlp.0" else WIDE, ("scales",)) for layer in graphs.LAYERS},
    }
    parts = {f"{kv}.half": Step("half", (kv,)) for kv in AUDIO} | whisper_flow.int8(DecoderBlock.parts)
    tight = ("block.attn.out.bias", {"batch": 1, "n": 2, "n_kv": 3, "n_audio": 5}, {"block.attn.out.scale": "zeros"})
