"""Rows that are made of rows, in the graphs' own functions where there are such. A bound for the whole would say nothing, so each part is
judged by its own row on the inputs that it was really given (in situ), and the first one outside is named.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from max.graph import BufferValue, TensorValue
from max.graph import ops as max_ops

from maxwhisper import graphs, ops
from reference import wiring
from reference.dataflow import Dataflow, Step, evaluate, split
from reference.table.attention import heads_of, positions
from reference.table.row import FACTORS, SUMMANDS, TABLE, Input, Op, row

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
        return [parts[split(name)[0]] for name in cls.parts]

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
    """The second half of a block, `maxwhisper.graphs.mlp`: layer norm, linear, GELU, linear, residual."""

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
    parts = wiring.mlp("block", "x")


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
    """The first half of an encoder's block, `maxwhisper.graphs.self_attention`. Attention is one fused op: no scores, no weights."""

    tight = ("x", {"batch": 1, "n": 2}, {"block.attn.out.weight": "zeros", "block.attn.out.bias": "zeros"})
    inputs = {"x": Input(f"batch n {STATE}")} | _weights({"block.attn_ln.weight": STATE, "block.attn_ln.bias": STATE, **PROJECTIONS})
    build = staticmethod(_recorded(lambda at, values: graphs.self_attention(at, values["x"], N_HEAD)))
    parts = wiring.self_attention("block", "x", N_HEAD, fused=True)


def _cross_attention(at: graphs.Scope, values: Mapping[str, Any]) -> None:
    keys, kept = graphs.keys_and_values(at / "cross_attn", values["xa"])
    graphs.cross_attention(at, values["x"], [ops.split_heads(keys, N_HEAD), ops.split_heads(kept, N_HEAD)])


@row
class CrossAttentionBlock(Composed):
    """`maxwhisper.graphs.cross_attention` of a text's queries to an audio's keys and values, which are projected from other activations."""

    tight = ("block.cross_attn.out.bias", {"batch": 1, "n": 2, "n_kv": 3}, {"block.cross_attn.out.weight": "zeros"})
    inputs = {"x": Input(f"batch n {STATE}"), "xa": Input(f"batch n_kv {STATE}")} | _weights(
        {"block.cross_attn_ln.weight": STATE, "block.cross_attn_ln.bias": STATE}
        | {name.replace(".attn.", ".cross_attn."): shape for name, shape in PROJECTIONS.items()}
    )
    build = staticmethod(_recorded(_cross_attention))
    parts = wiring.keys_and_values("block.cross_attn", "xa") | wiring.cross_attention("block", "x", N_HEAD, fused=True)


def _positions(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    embedding = ops.token_embedding(values["tokens"], values["weight"])
    rows = ops.token_embedding(values["positions"], values["positional_embedding"])
    return {"embedding": embedding, "rows": rows, "positions_added": embedding + rows}


@row
class PositionEmbedding(Composed):
    """Token embedding, the rows of the positions, and their sum, as `maxwhisper.graphs.decoder` does it (in the whole model: parity)."""

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


def _query_key_value(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    names = ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias")
    return dict(zip(("query", "key", "value"), ops.query_key_value(values["x"], *(values[name] for name in names))))


@row
class QueryKeyValue(Composed):
    """The three projections of the decoder's self-attention, which are one op, from weights that stay in float16."""

    tight = ("value.bias", {"batch": 1, "n": 2, "n_in": 3, "n_out": 5}, {"x": "zeros"})
    inputs = {
        "x": Input("batch n n_in", SUMMANDS),
        "query.weight": Input("n_out n_in", FACTORS, dtype="float16"),
        "query.bias": Input("n_out"),
        "key.weight": Input("n_out n_in", FACTORS, dtype="float16"),
        "value.weight": Input("n_out n_in", FACTORS, dtype="float16"),
        "value.bias": Input("n_out"),
    }
    build = staticmethod(_query_key_value)
    parts = {
        "query": Step("few_rows", ("x", "query.weight", "query.bias")),
        "key": Step("few_rows", ("x", "key.weight")),
        "value": Step("few_rows", ("x", "value.weight", "value.bias")),
    }


def _cached_attention(op: Callable[..., TensorValue]) -> Callable[[Mapping[str, Any]], Mapping[str, TensorValue]]:
    def build(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
        q, caches, mask = values["q"], (values["k_cache"], values["v_cache"]), values["mask"]
        context = op(*(ops.merge_heads(values[name]) for name in ("q", "k", "v")), *caches, positions(mask))
        keys, kept = (max_ops.squeeze(max_ops.buffer_load(cache)[:, :, :, : mask.shape[1]], 1) for cache in caches)
        return {"keys": keys, "values": kept, "context": heads_of(context, q)}

    return build


@row
class CachedAttention(Composed):
    """New tokens attend to a cache that their keys and values are written into, and to themselves: `maxwhisper.ops.cached_attention`."""

    tight = ("k", {"batch": 1, "n_head": 1, "n": 2, "n_kv": 3, "head_dim": 3}, {})
    inputs = {
        "q": Input("batch n_head n head_dim"),
        "k": Input("batch n_head n head_dim"),
        "v": Input("batch n_head n head_dim"),
        "mask": Input("n n_kv", ("causal",), dtype="float32"),  # says how many tokens there are, and how many with those before
        "k_cache": Input("batch 1 n_head 448 head_dim", in_place=True),
        "v_cache": Input("batch 1 n_head 448 head_dim", in_place=True),
    }
    build = staticmethod(_cached_attention(lambda *inputs: ops.cached_attention(*inputs)))
    parts = {
        "keys": Step("cached", ("k_cache", "k", "mask")),
        "values": Step("cached", ("v_cache", "v", "mask")),
        "context": Step("masked_attention", ("q", "keys", "values", "mask")),
    }


@row
class AttentionOverCache(CachedAttention):
    """The same of MAX's own operations: `maxwhisper.ops.attention_over_cache`."""

    build = staticmethod(_cached_attention(lambda *inputs: ops.attention_over_cache(*inputs)))
