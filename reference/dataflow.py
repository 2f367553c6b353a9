"""Which op computes each activation, and from what. The same few lines are the float64 truth, when definitions are evaluated along them,
and the judge, when each activation of another implementation is held against its definition on that implementation's own inputs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from maxwhisper import ModelDimensions
from reference import definitions as define


class Step(NamedTuple):
    """An op of the table, and the names of its inputs: activations before it, weights, or what the model is given.

    A name may be followed by a view of the array: `:transposed`; `:6 heads` for its last dimension split into heads; `:positions` for its
    rows at these. A step whose own name ends in `heads` computes that view of the activation.
    """

    op: str
    sources: tuple[str, ...]


Dataflow = Mapping[str, Step]
Arrays = Mapping[str, np.ndarray]


def look_up(known: Arrays, name: str) -> np.ndarray:
    """An activation, or a view of it.

    Raises KeyError for a name that is not known.
    """
    base, view = split(name)
    if view == "transposed":
        return known[base].swapaxes(1, 2)
    if view == "positions":
        return known[base][known["positions"]]
    return define.split_heads(known[base], int(view.split()[0])) if view else known[base]


def store(known: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Keep what a step computed, under the activation's own name and shape."""
    base, view = split(name)
    known[base] = define.merge_heads(array) if view else array


def split(name: str) -> tuple[str, str]:
    """The activation's name, and its view."""
    base, _, view = name.partition(":")
    return base, view


def evaluate(dataflow: Dataflow, given: Arrays, compute: Callable[[str, list[np.ndarray]], np.ndarray]) -> dict[str, np.ndarray]:
    """All activations in order, each computed by `compute(op, inputs)` from those before it and from what is given."""
    known = dict(given)
    for name, (op, sources) in dataflow.items():
        store(known, name, compute(op, [look_up(known, source) for source in sources]))
    return {split(name)[0]: known[split(name)[0]] for name in dataflow}


def whole(dims: ModelDimensions, fused: bool = False) -> dict[str, Step]:
    """All three graphs, one after the other."""
    return encoder(dims, fused) | cross_kv(dims) | decoder(dims, fused)


def encoder(dims: ModelDimensions, fused: bool = False) -> dict[str, Step]:
    """`maxwhisper.graphs.encoder`, from `log_mel` [n_audio, n_mels, n_frames] on.

    fused: attention is one op, which swallows `scores` and `weights`, as where nobody asks for these.
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
        flow |= _layer_norm(f"{block}.attn_ln", x)
        flow |= _projections(f"{block}.attn", f"{block}.attn_ln", f"{block}.attn_ln")
        flow |= _attention(f"{block}.attn", dims.n_audio_head, fused)
        flow |= {f"{block}.attn.residual": Step("residual", (x, f"{block}.attn.out"))}
        flow |= _mlp(block, f"{block}.attn.residual")
        x = f"{block}.mlp.residual"
    return flow | _layer_norm("encoder.ln_post", x)


def cross_kv(dims: ModelDimensions) -> dict[str, Step]:
    """`maxwhisper.graphs.cross_kv`, from `encoder.ln_post` on: every layer's keys and values, their heads side by side."""
    flow = dict[str, Step]()
    for i in range(dims.n_text_layer):
        flow |= _keys_and_values(f"decoder.blocks.{i}.cross_attn", "encoder.ln_post")
    return flow


def decoder(dims: ModelDimensions, fused: bool = False) -> dict[str, Step]:
    """`maxwhisper.graphs.decoder`, from `tokens` [n_audio, n], their `positions` [n] and the causal `mask` [n, n] on."""
    flow = {
        "decoder.embedding": Step("token_embedding", ("tokens", "decoder.token_embedding.weight")),
        "decoder.positions": Step("residual", ("decoder.embedding", "decoder.positional_embedding:positions")),
    }
    x = "decoder.positions"
    for i in range(dims.n_text_layer):
        block = f"decoder.blocks.{i}"
        attn, cross_attn = f"{block}.attn", f"{block}.cross_attn"
        flow |= _layer_norm(f"{block}.attn_ln", x)
        flow |= _projections(attn, f"{block}.attn_ln", f"{block}.attn_ln")
        flow |= _attention(attn, dims.n_text_head, fused, ("mask",))
        flow |= {f"{attn}.residual": Step("residual", (x, f"{attn}.out"))}
        flow |= _layer_norm(f"{block}.cross_attn_ln", f"{attn}.residual")
        flow |= _query(cross_attn, f"{block}.cross_attn_ln")
        flow |= _attention(cross_attn, dims.n_text_head, fused)
        flow |= {f"{cross_attn}.residual": Step("residual", (f"{attn}.residual", f"{cross_attn}.out"))}
        flow |= _mlp(block, f"{cross_attn}.residual")
        x = f"{block}.mlp.residual"
    flow |= _layer_norm("decoder.ln", x)
    return flow | {"decoder.logits": Step("lm_head", ("decoder.ln", "decoder.token_embedding.weight"))}


def _weights(path: str) -> tuple[str, str]:
    return f"{path}.weight", f"{path}.bias"


def _layer_norm(path: str, x: str) -> dict[str, Step]:
    return {path: Step("layer_norm", (x, *_weights(path)))}


def _linear(path: str, x: str) -> dict[str, Step]:
    return {path: Step("linear", (x, *_weights(path)))}


def _query(attn: str, x: str) -> dict[str, Step]:
    return _linear(f"{attn}.query", x)


def _keys_and_values(attn: str, x: str) -> dict[str, Step]:
    return {f"{attn}.key": Step("linear", (x, f"{attn}.key.weight"))} | _linear(f"{attn}.value", x)


def _projections(attn: str, queries: str, keys: str) -> dict[str, Step]:
    return _query(attn, queries) | _keys_and_values(attn, keys)


def _attention(attn: str, n_head: int, fused: bool, mask: tuple[str, ...] = ()) -> dict[str, Step]:
    q, k, v, context = (f"{attn}.{name}:{n_head} heads" for name in ("query", "key", "value", "context"))
    if fused:
        steps = {context: Step("masked_attention" if mask else "attention", (q, k, v, *mask))}
    else:
        steps = {
            f"{attn}.scores": Step("attention_scores", (q, k, *mask)),
            f"{attn}.weights": Step("softmax", (f"{attn}.scores",)),
            context: Step("attention_context", (f"{attn}.weights", v)),
        }
    return steps | _linear(f"{attn}.out", f"{attn}.context")


def _mlp(block: str, x: str) -> dict[str, Step]:
    steps = _layer_norm(f"{block}.mlp_ln", x) | _linear(f"{block}.mlp.0", f"{block}.mlp_ln")
    steps |= {f"{block}.mlp.gelu": Step("gelu", (f"{block}.mlp.0",))} | _linear(f"{block}.mlp.2", f"{block}.mlp.gelu")
    return steps | {f"{block}.mlp.residual": Step("residual", (x, f"{block}.mlp.2"))}
