"""Activations of MAX and of OpenAI Whisper under the same names.

The prompt is one prefill. Forced tokens follow one by one, with the KV cache. The activations of
all decoder calls are joined along the tokens, so they have the shapes of one long prefill.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from max.driver import Buffer
from torch import nn
from whisper.model import MultiHeadAttention, ResidualAttentionBlock

import maxwhisper
from maxwhisper.speech_model import SpeechModel
from reference.flow import dataflow
from reference.flow import whisper as whisper_flow
from reference.ops.buffers import from_max

Activations = dict[str, np.ndarray]


class CapturedModel(SpeechModel, Protocol):
    """A model that stores the captured activations of each call."""

    @property
    def activations(self) -> dict[str, Buffer]: ...


def activation_names(dims: maxwhisper.ModelDimensions) -> list[str]:
    """Return the names of all activations of MAX's graphs, in data-flow order."""
    return dataflow.names(whisper_flow.of_max(dims))


def capture_max(model: CapturedModel, mel: np.ndarray, prompt: Sequence[int], forced: Sequence[int]) -> Activations:
    """Return the activations that MAX computes for a log-mel window and tokens.

    Args:
        model: built with `capture`; only the activations named there are returned.
        mel: the log-mel window [n_mels, n_frames].
        prompt: tokens of the prefill.
        forced: tokens fed one by one after the prompt.
    """
    model.activations.clear()
    audio = model.embed_audio(mel)
    encoder = {name: from_max(buffer) for name, buffer in model.activations.items()}
    decoder = model.decoder(audio)
    calls = []
    for tokens in (list(prompt), *([token] for token in forced)):
        model.activations.clear()
        decoder.logits(np.array([[tokens]]))
        calls.append({name: from_max(buffer) for name, buffer in model.activations.items()})
        if "decoder.logits" in calls[-1]:
            calls[-1]["decoder.logits"] = calls[-1]["decoder.logits"][:, 0]  # one sequence per window
    return encoder | _joined(calls)


def capture_max_and_input(
    model: CapturedModel, mel: np.ndarray, prompt: Sequence[int], forced: Sequence[int]
) -> Activations:
    """Return the result of `capture_max`, and as `log_mel` the actual input of the encoder.

    If `model` runs on PyTorch rather than on MAX's graphs, `log_mel` is missing.
    """
    if not isinstance(model, maxwhisper.Whisper):
        return capture_max(model, mel, prompt, forced)
    encoder_input, graphs = Activations(), model.runtime.graphs

    def execute(*inputs: Any) -> Any:
        encoder_input["log_mel"] = from_max(inputs[0])
        return graphs["encoder"].execute(*inputs)

    model.runtime.graphs = {**graphs, "encoder": SimpleNamespace(execute=execute)}
    try:
        return capture_max(model, mel, prompt, forced) | encoder_input
    finally:
        model.runtime.graphs = graphs


def capture_openai(
    model: whisper.Whisper, mel: np.ndarray, prompt: Sequence[int], forced: Sequence[int]
) -> Activations:
    """Return the activations that OpenAI Whisper computes, in the model's dtype.

    If it uses PyTorch's fused attention, scores and weights are missing.

    Args:
        model: OpenAI Whisper.
        mel: the log-mel window [n_mels, n_frames].
        prompt: tokens of the prefill.
        forced: tokens fed one by one after the prompt.
    """
    with torch.no_grad(), watched(model) as activations:
        features = model.embed_audio(torch.from_numpy(mel)[None].to(model.encoder.conv1.weight.dtype))
        encoder = dict(activations)
        cache, hooks = model.install_kv_cache_hooks()
        calls = []
        try:
            for tokens in (list(prompt), *([token] for token in forced)):
                activations.clear()
                model.decoder(torch.tensor([tokens]), features, kv_cache=cache)
                calls.append(dict(activations))
        finally:
            for hook in hooks:
                hook.remove()
    return encoder | _joined(calls)


def _joined(calls: list[Activations]) -> Activations:
    """Join the activations of all calls; those of a single call are returned unchanged."""
    names = list(dict.fromkeys(name for call in calls for name in call))
    return {name: _join(name, [call[name] for call in calls if name in call]) for name in names}


def _join(name: str, parts: list[np.ndarray]) -> np.ndarray:
    if parts[0].ndim == 4:  # scores and weights [batch, n_head, n, n_kv]; n_kv grows with each call
        n_kv = parts[-1].shape[-1]
        padding = -np.inf if name.endswith(".scores") else 0.0
        widths = [[(0, 0)] * 3 + [(0, n_kv - part.shape[-1])] for part in parts]
        return np.concatenate(
            [np.pad(part, width, constant_values=padding) for part, width in zip(parts, widths)], axis=2
        )
    return np.concatenate(parts, axis=1)


@contextmanager
def watched(model: whisper.Whisper) -> Iterator[Activations]:
    """Record the activations of a model until the end of the block.

    The installed package is not edited. Outputs of modules are recorded by hooks. Positions and
    residuals are no modules: they are recorded as inputs of the next module. GELU after the
    convolutions and softmax are recorded by wrapping the functions.

    Yields:
        The activations by name, filled by each call of the model.
    """
    activations: Activations = {}
    handles: list[Any] = []
    current = SimpleNamespace(attention="", conv="")

    def record(name: str, value: torch.Tensor) -> None:
        # Returns None, because a value returned by a hook would replace the module's output.
        activations[name] = value.detach().numpy()

    def on_output(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _, inputs, output: record(name, output)))

    def on_input(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, inputs: record(name, inputs[0])))

    def enter(kind: str, module: nn.Module, path: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: setattr(current, kind, path)))

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            enter("conv", module, path)
            handles.append(module.register_forward_hook(lambda _, inputs, output, path=path: record(path, output.mT)))
        elif isinstance(module, (nn.Linear, nn.LayerNorm, nn.Embedding)) or path.endswith("mlp.1"):
            on_output(module, re.sub(r"token_embedding$", "embedding", re.sub(r"mlp\.1$", "mlp.gelu", path)))
        elif isinstance(module, MultiHeadAttention):
            enter("attention", module, path)
            on_input(module.out, f"{path}.context")
        elif isinstance(module, ResidualAttentionBlock):
            on_input(module.cross_attn_ln or module.mlp_ln, f"{path}.attn.residual")
            if module.cross_attn_ln:
                on_input(module.mlp_ln, f"{path}.cross_attn.residual")
            on_output(module, f"{path}.mlp.residual")
    on_input(model.encoder.blocks[0], "encoder.positions")
    on_input(model.decoder.blocks[0], "decoder.positions")
    on_output(model.decoder, "decoder.logits")

    def softmax(scores: torch.Tensor, dim: int) -> torch.Tensor:
        weights = F.softmax(scores, dim=dim)
        record(f"{current.attention}.scores", scores)
        record(f"{current.attention}.weights", weights)
        return weights

    def gelu(x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(x)
        record(f"{current.conv}.gelu", y.mT)
        return y

    functions: Any = whisper.model
    functions.F = SimpleNamespace(**{**vars(F), "softmax": softmax, "gelu": gelu})
    try:
        yield activations
    finally:
        functions.F = F
        for handle in handles:
            handle.remove()
