"""Ops that are made of ops, in the graphs' own functions. A bound for the whole would say nothing, so each part is judged by its own row
on the inputs that it was really given (in situ), and the first one outside is named.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from max.graph import BufferValue, TensorValue

from maxwhisper import graphs, ops
from reference import definitions as define
from reference.dtypes import from_torch, to_torch
from reference.table.row import TABLE, Input, Op, row

N_HEAD = 2
STATE = "24"  # heads are split, so the width is fixed


class Composed(Op):
    """A row with parts: name of the activation → its op, and the names of what it is computed from.

    `:heads` behind a name is the same activation with its heads split, [batch, n_head, n, head_dim].
    build: from the graph's inputs by name to the parts by name.
    """

    parts: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]]
    dtypes = ("float32",)  # which graphs are built in; their parts are rows in every dtype

    @classmethod
    def outputs(cls, *values: TensorValue | BufferValue) -> list[TensorValue]:
        """The parts, in order."""
        parts = cls.build(dict(zip(cls.inputs, values, strict=True)))
        return [parts[name.partition(":")[0]] for name in cls.parts]

    @classmethod
    def evaluate(cls, known: dict[str, np.ndarray], how: Callable[[type[Op], list[np.ndarray]], np.ndarray]) -> dict[str, np.ndarray]:
        """All parts, each computed from those before it."""
        for name, (op, inputs) in cls.parts.items():
            known[name] = how(TABLE[op], [look_up(known, source) for source in inputs])
        return known

    @classmethod
    def define(cls, *arrays: np.ndarray) -> np.ndarray:
        """The last part, by definitions alone."""
        known = cls.evaluate(dict(zip(cls.inputs, arrays, strict=True)), lambda op, inputs: op.define(*inputs))
        return known[list(cls.parts)[-1]]

    @classmethod
    def torch(cls, *tensors: torch.Tensor) -> torch.Tensor:
        """The last part, by PyTorch alone."""

        def how(op: type[Op], inputs: list[np.ndarray]) -> np.ndarray:
            return from_torch(op.torch(*map(to_torch, inputs)))

        known = cls.evaluate(dict(zip(cls.inputs, map(from_torch, tensors), strict=True)), how)
        return to_torch(known[list(cls.parts)[-1]])


def look_up(known: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """An activation by name, its heads split or merged as asked."""
    if name in known:
        return known[name]
    base, _, heads = name.partition(":")
    return define.split_heads(known[base], N_HEAD) if heads else define.merge_heads(known[f"{base}:heads"])


def _weights(shapes: Mapping[str, str]) -> dict[str, Input]:
    return {name: Input(shape) for name, shape in shapes.items()}


def _recorded(function: Callable[[graphs.Scope, Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Mapping[str, TensorValue]]:
    """Build one of the graphs' functions under its weights, and take what it records."""

    def build(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
        at = graphs.Scope(values)
        function(at, values)
        return at.activations

    return build


@row
class Mlp(Composed):
    """The second half of a block, `maxwhisper.graphs.mlp`: layer norm, linear, GELU, linear, residual."""

    inputs = {"x": Input("batch n n_state")} | _weights(
        {
            "mlp_ln.weight": "n_state",
            "mlp_ln.bias": "n_state",
            "mlp.0.weight": "n_mlp n_state",
            "mlp.0.bias": "n_mlp",
            "mlp.2.weight": "n_state n_mlp",
            "mlp.2.bias": "n_state",
        }
    )
    build = staticmethod(_recorded(lambda at, values: graphs.mlp(at, values["x"])))
    parts = {
        "mlp_ln": ("layer_norm", ("x", "mlp_ln.weight", "mlp_ln.bias")),
        "mlp.0": ("linear", ("mlp_ln", "mlp.0.weight", "mlp.0.bias")),
        "mlp.gelu": ("gelu", ("mlp.0",)),
        "mlp.2": ("linear", ("mlp.gelu", "mlp.2.weight", "mlp.2.bias")),
        "mlp.residual": ("residual", ("x", "mlp.2")),
    }


PROJECTIONS = {
    "attn.query.weight": f"{STATE} {STATE}",
    "attn.query.bias": STATE,
    "attn.key.weight": f"{STATE} {STATE}",
    "attn.value.weight": f"{STATE} {STATE}",
    "attn.value.bias": STATE,
    "attn.out.weight": f"{STATE} {STATE}",
    "attn.out.bias": STATE,
}
ATTENTION_PARTS = {
    "attn.context:heads": ("attention", ("attn.query:heads", "attn.key:heads", "attn.value:heads")),
    "attn.out": ("linear", ("attn.context", "attn.out.weight", "attn.out.bias")),
}


def _projection_parts(queries: str, keys: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {
        "attn.query": ("linear", (queries, "attn.query.weight", "attn.query.bias")),
        "attn.key": ("linear", (keys, "attn.key.weight")),
        "attn.value": ("linear", (keys, "attn.value.weight", "attn.value.bias")),
    }


@row
class ResidualBlock(Composed):
    """The first half of an encoder's block, `maxwhisper.graphs.self_attention`. Attention is one fused op: no scores, no weights."""

    inputs = {"x": Input(f"batch n {STATE}")} | _weights({"attn_ln.weight": STATE, "attn_ln.bias": STATE, **PROJECTIONS})
    build = staticmethod(_recorded(lambda at, values: graphs.self_attention(at, values["x"], N_HEAD)))
    parts = {
        "attn_ln": ("layer_norm", ("x", "attn_ln.weight", "attn_ln.bias")),
        **_projection_parts("attn_ln", "attn_ln"),
        **ATTENTION_PARTS,
        "attn.residual": ("residual", ("x", "attn.out")),
    }


def _cross_attention(at: graphs.Scope, values: Mapping[str, Any]) -> None:
    attn = at / "attn"
    graphs.attention(attn, graphs.linear(attn / "query", values["x"]), *graphs.keys_and_values(attn, values["xa"], N_HEAD))


@row
class CrossAttention(Composed):
    """`maxwhisper.graphs.attention` of a text's queries to an audio's keys and values, which are projected from other activations."""

    inputs = {"x": Input(f"batch n {STATE}"), "xa": Input(f"batch n_kv {STATE}")} | _weights(PROJECTIONS)
    build = staticmethod(_recorded(_cross_attention))
    parts = {**_projection_parts("x", "xa"), **ATTENTION_PARTS}


def _positions(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    embedding = ops.token_embedding(values["tokens"], values["weight"])
    rows = ops.token_embedding(values["positions"], values["positional_embedding"])
    return {"embedding": embedding, "rows": rows, "positions_added": embedding + rows}


@row
class PositionEmbedding(Composed):
    """Token embedding, the rows of the positions, and their sum."""

    inputs = {
        "tokens": Input("batch n", ("index",), dtype="int64", below="n_vocab"),
        "weight": Input("n_vocab n_state"),
        "positions": Input("n", ("index",), dtype="int64", below="n_ctx"),
        "positional_embedding": Input("n_ctx n_state"),
    }
    build = staticmethod(_positions)
    parts = {
        "embedding": ("token_embedding", ("tokens", "weight")),
        "rows": ("token_embedding", ("positions", "positional_embedding")),
        "positions_added": ("residual", ("embedding", "rows")),
    }


def _cached_step(values: Mapping[str, Any]) -> Mapping[str, TensorValue]:
    n_kv = values["mask"].shape[1]
    k, v = (ops.append_to_cache(values[f"{name}_cache"], values[name], n_kv) for name in ("k", "v"))
    scores = ops.apply_mask(ops.attention_scores(values["q"], k), values["mask"])
    return {"keys": k, "values": v, "context": ops.attention_context(ops.softmax(scores), v)}


@row
class CachedStep(Composed):
    """Masked attention of new tokens to a cache of keys and values that they are appended to, in place."""

    inputs = {
        "q": Input("batch n_head n head_dim"),
        "k": Input("batch n_head n head_dim"),
        "v": Input("batch n_head n head_dim"),
        "mask": Input("n n_kv", ("causal",), dtype="float32"),
        "k_cache": Input("batch 1 n_head n_ctx head_dim", in_place=True),
        "v_cache": Input("batch 1 n_head n_ctx head_dim", in_place=True),
    }
    build = staticmethod(_cached_step)
    parts = {
        "keys": ("cached", ("k_cache", "k", "mask")),
        "values": ("cached", ("v_cache", "v", "mask")),
        "context": ("masked_attention", ("q", "keys", "values", "mask")),
    }
