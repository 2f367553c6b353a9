"""Whisper's data flow: the op that computes each activation, and its inputs.

Activations are named by OpenAI Whisper's module paths, continued down to single ops.
"""

import re
from collections.abc import Container, Mapping
from typing import Protocol

from reference.flow.dataflow import Step

LM_HEAD = "decoder.proj_out.weight"  # exists if the LM head is not the token embedding
CROSS_KV = re.compile(r"cross_attn\.(key|value)")  # the decoder's layers that run once per window


class Dimensions(Protocol):
    """The sizes of a model that its data flow depends on."""

    @property
    def n_audio_layer(self) -> int: ...
    @property
    def n_audio_head(self) -> int: ...
    @property
    def n_text_layer(self) -> int: ...
    @property
    def n_text_head(self) -> int: ...


def whole(dims: Dimensions, fused: bool = False) -> dict[str, Step]:
    """Return the steps of encoder, cross-attention keys and values, and decoder, in order."""
    return encoder(dims, fused) | cross_kv(dims) | decoder(dims, fused)


def of_max(dims: Dimensions, compute_type: str = "float32") -> dict[str, Step]:
    """Return the steps of MAX's graphs.

    Attention is one op there, without `scores` and `weights`.

    Args:
        dims: The model's dimensions.
        compute_type: "float32" or "int8".
    """
    flow = whole(dims, fused=True)
    return int8(flow) if compute_type == "int8" else flow


def int8(flow: Mapping[str, Step]) -> dict[str, Step]:
    """Return the steps of a flow with the compute type "int8".

    Weights are quantized. If an op has many rows, its input is quantized row by row as well.
    """
    steps = dict[str, Step]()
    for name, (op, (x, *weights)) in flow.items():
        if op == "attention" and name.startswith("encoder."):
            steps[name] = Step("attention_int8", (x, *weights))
        elif op == "attention":
            steps[name] = Step(op, (x, *(f"{kv}.half:{view}" for kv, _, view in (kv.partition(":") for kv in weights))))
        elif op in ("linear", "lm_head"):
            many_rows = name.startswith("encoder.") or CROSS_KV.search(name)
            steps[name] = Step(
                "linear_int8" if many_rows else "linear_scaled", (x, weights[0], _scale_of(weights[0]), *weights[1:])
            )
            if CROSS_KV.search(name):
                steps[f"{name}.half"] = Step("half", (name,))
        elif op == "token_embedding":
            steps[name] = Step(op, (x, weights[0], _scale_of(weights[0])))
        else:
            steps[name] = flow[name]
    return steps


def for_weights(flow: Mapping[str, Step], weights: Container[str]) -> Mapping[str, Step]:
    """Return the flow with the LM head of these weights.

    If the LM head is not the token embedding, it is a weight of its own, `LM_HEAD`.
    """
    if LM_HEAD not in weights or "decoder.logits" not in flow:
        return flow
    op, sources = flow["decoder.logits"]
    return {
        **flow,
        "decoder.logits": Step(op, tuple(source.replace("token_embedding", "proj_out") for source in sources)),
    }


def _scale_of(weight: str) -> str:
    """Return the name of a quantized weight's scales: `NAME.scale` for `NAME.weight`."""
    return weight.removesuffix("weight") + "scale"


def encoder(dims: Dimensions, fused: bool = False) -> dict[str, Step]:
    """Return the steps of the encoder, from `log_mel` [n_audio, n_mels, n_frames] on.

    Args:
        dims: The model's dimensions.
        fused: Whether attention is one op, without `scores` and `weights`, as in MAX's graphs.
    """
    flow = {
        "encoder.conv1": Step("conv1d_stride1", ("log_mel:transposed", *_weights("encoder.conv1"))),
        "encoder.conv1.gelu": Step("gelu", ("encoder.conv1",)),
        "encoder.conv2": Step("conv1d_stride2", ("encoder.conv1.gelu", *_weights("encoder.conv2"))),
        "encoder.conv2.gelu": Step("gelu", ("encoder.conv2",)),
        "encoder.positions": Step("residual", ("encoder.conv2.gelu", "encoder.positional_embedding")),
    }
    x = "encoder.positions"
    for i in range(dims.n_audio_layer):
        block = f"encoder.blocks.{i}"
        flow |= self_attention(block, x, dims.n_audio_head, fused)
        flow |= mlp(block, f"{block}.attn.residual")
        x = f"{block}.mlp.residual"
    return flow | layer_norm("encoder.ln_post", x)


def cross_kv(dims: Dimensions) -> dict[str, Step]:
    """Return the steps for every decoder layer's keys and values of the audio.

    They start at `encoder.ln_post`. The heads of the results are side by side.
    """
    flow = dict[str, Step]()
    for i in range(dims.n_text_layer):
        flow |= keys_and_values(f"decoder.blocks.{i}.cross_attn", "encoder.ln_post")
    return flow


def decoder(dims: Dimensions, fused: bool = False) -> dict[str, Step]:
    """Return the steps of the decoder.

    They start at `tokens` [n_audio, n], their `positions` [n] and the causal `mask` [n, n].

    Args:
        dims: The model's dimensions.
        fused: Whether attention is one op, without `scores` and `weights`, as in MAX's graphs.
    """
    flow = {
        "decoder.embedding": Step("token_embedding", ("tokens", "decoder.token_embedding.weight")),
        "decoder.positions": Step("residual", ("decoder.embedding", "decoder.positional_embedding:at positions")),
    }
    x = "decoder.positions"
    for i in range(dims.n_text_layer):
        block = f"decoder.blocks.{i}"
        flow |= self_attention(block, x, dims.n_text_head, fused, ("mask",))
        flow |= cross_attention(block, f"{block}.attn.residual", dims.n_text_head, fused)
        flow |= mlp(block, f"{block}.cross_attn.residual")
        x = f"{block}.mlp.residual"
    flow |= layer_norm("decoder.ln", x)
    return flow | {"decoder.logits": Step("lm_head", ("decoder.ln", "decoder.token_embedding.weight"))}


def _weights(path: str) -> tuple[str, str]:
    return f"{path}.weight", f"{path}.bias"


def layer_norm(path: str, x: str) -> dict[str, Step]:
    """Return the step of a layer norm with the weights of a path."""
    return {path: Step("layer_norm", (x, *_weights(path)))}


def linear(path: str, x: str) -> dict[str, Step]:
    """Return the step of a linear layer with the weights and the bias of a path."""
    return {path: Step("linear", (x, *_weights(path)))}


def keys_and_values(attn: str, x: str) -> dict[str, Step]:
    """Return the projections to keys and to values; keys have no bias."""
    return {f"{attn}.key": Step("linear", (x, f"{attn}.key.weight"))} | linear(f"{attn}.value", x)


def projections(attn: str, queries: str, keys: str) -> dict[str, Step]:
    """Return the projections to queries, keys and values, the inputs of attention."""
    return linear(f"{attn}.query", queries) | keys_and_values(attn, keys)


def attention(attn: str, n_head: int, fused: bool, mask: tuple[str, ...] = ()) -> dict[str, Step]:
    """Return attention from the projections on, and the linear layer after it."""
    q, k, v, context = (f"{attn}.{name}:{n_head} heads" for name in ("query", "key", "value", "context"))
    if fused:
        steps = {context: Step("masked_attention" if mask else "attention", (q, k, v, *mask))}
    else:
        steps = {
            f"{attn}.scores": Step("attention_scores", (q, k, *mask)),
            f"{attn}.weights": Step("softmax", (f"{attn}.scores",)),
            context: Step("attention_context", (f"{attn}.weights", v)),
        }
    return steps | linear(f"{attn}.out", f"{attn}.context")


def self_attention(block: str, x: str, n_head: int, fused: bool, mask: tuple[str, ...] = ()) -> dict[str, Step]:
    """Return layer norm, self-attention and the residual around them.

    Args:
        block: The path of the block.
        x: The name of the block's input.
        n_head: Number of heads.
        fused: Whether attention is one op, without `scores` and `weights`, as in MAX's graphs.
        mask: The name of the causal mask in the decoder; empty in the encoder.
    """
    attn, ln = f"{block}.attn", f"{block}.attn_ln"
    steps = layer_norm(ln, x) | projections(attn, ln, ln) | attention(attn, n_head, fused, mask)
    return steps | {f"{attn}.residual": Step("residual", (x, f"{attn}.out"))}


def cross_attention(block: str, x: str, n_head: int, fused: bool) -> dict[str, Step]:
    """Return layer norm, attention to stored keys and values, and the residual around them."""
    attn, ln = f"{block}.cross_attn", f"{block}.cross_attn_ln"
    steps = layer_norm(ln, x) | linear(f"{attn}.query", ln) | attention(attn, n_head, fused)
    return steps | {f"{attn}.residual": Step("residual", (x, f"{attn}.out"))}


def mlp(block: str, x: str) -> dict[str, Step]:
    """Return layer norm, two linear layers with a GELU in between, and the residual around them."""
    steps = layer_norm(f"{block}.mlp_ln", x) | linear(f"{block}.mlp.0", f"{block}.mlp_ln")
    steps |= {f"{block}.mlp.gelu": Step("gelu", (f"{block}.mlp.0",))} | linear(f"{block}.mlp.2", f"{block}.mlp.gelu")
    return steps | {f"{block}.mlp.residual": Step("residual", (x, f"{block}.mlp.2"))}
