"""Activations under their shared names, of MAX and of OpenAI Whisper: a prompt in one go, and then token after token from the cache.

What the decoder's calls computed is joined along the tokens, so that everybody's activations have the shapes of one long prefill.
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
from reference.models.buffers import from_max

Activations = dict[str, np.ndarray]


class CapturedModel(SpeechModel, Protocol):
    """A model that keeps, of each call, the activations that it was made to."""

    @property
    def activations(self) -> dict[str, Buffer]: ...


def names(dims: maxwhisper.ModelDimensions) -> list[str]:
    """Every activation of MAX's graphs, in data-flow order."""
    return dataflow.names(whisper_flow.of_max(dims))


def capture_max(model: CapturedModel, mel: np.ndarray, prompt: Sequence[int], forced: Sequence[int]) -> Activations:
    """What MAX computes for a log-mel window [n_mels, n_frames], and for a prompt and the tokens forced after it.

    model: made with `capture`; activations that it was not asked for are missing.
    """
    model.activations.clear()
    audio = model.embed_audio(mel)
    found = {name: from_max(buffer) for name, buffer in model.activations.items()}
    decoder = model.decoder(audio)
    calls = []
    for tokens in (list(prompt), *([token] for token in forced)):
        model.activations.clear()
        decoder.logits(np.array([[tokens]]))
        calls.append({name: from_max(buffer) for name, buffer in model.activations.items()})
        if "decoder.logits" in calls[-1]:
            calls[-1]["decoder.logits"] = calls[-1]["decoder.logits"][:, 0]  # one sequence per window
    return found | _joined(calls)


def capture_max_and_input(
    model: CapturedModel, mel: np.ndarray, prompt: Sequence[int], forced: Sequence[int]
) -> Activations:
    """`capture_max`, and under `log_mel` what the encoder's graph was really given; not where PyTorch stands in the graph's place."""
    if not isinstance(model, maxwhisper.Whisper):
        return capture_max(model, mel, prompt, forced)
    seen, graphs = Activations(), model.runtime.graphs

    def execute(*inputs: Any) -> Any:
        seen["log_mel"] = from_max(inputs[0])
        return graphs["encoder"].execute(*inputs)

    model.runtime.graphs = {**graphs, "encoder": SimpleNamespace(execute=execute)}
    try:
        return capture_max(model, mel, prompt, forced) | seen
    finally:
        model.runtime.graphs = graphs


def capture_openai(
    model: whisper.Whisper, mel: np.ndarray, prompt: Sequence[int], forced: Sequence[int]
) -> Activations:
    """The same of OpenAI Whisper, in the model's dtype. Where it uses PyTorch's fused attention there are no scores and no weights."""
    with torch.no_grad(), watched(model) as found:
        features = model.embed_audio(torch.from_numpy(mel)[None].to(model.encoder.conv1.weight.dtype))
        encoder = dict(found)
        cache, hooks = model.install_kv_cache_hooks()
        calls = []
        try:
            for tokens in (list(prompt), *([token] for token in forced)):
                found.clear()
                model.decoder(torch.tensor([tokens]), features, kv_cache=cache)
                calls.append(dict(found))
        finally:
            for hook in hooks:
                hook.remove()
    return encoder | _joined(calls)


def _joined(calls: list[Activations]) -> Activations:
    """One array for each activation; what is computed once, of the audio, is taken as it is."""
    names = list(dict.fromkeys(name for call in calls for name in call))
    return {name: _join(name, [call[name] for call in calls if name in call]) for name in names}


def _join(name: str, parts: list[np.ndarray]) -> np.ndarray:
    if parts[0].ndim == 4:  # scores and weights [batch, n_head, n, n_kv], of more keys with each call
        n_kv = parts[-1].shape[-1]
        unseen = -np.inf if name.endswith(".scores") else 0.0
        widths = [[(0, 0)] * 3 + [(0, n_kv - part.shape[-1])] for part in parts]
        return np.concatenate(
            [np.pad(part, width, constant_values=unseen) for part, width in zip(parts, widths)], axis=2
        )
    return np.concatenate(parts, axis=1)


@contextmanager
def watched(model: whisper.Whisper) -> Iterator[Activations]:
    """Note what the model computes, until the end of the block. Nothing of the installed package is edited.

    Modules are watched by hooks; what is no module (GELU behind the convolutions, softmax, positions, residuals), by what goes into the
    next one or by wrapping the function.
    """
    found: Activations = {}
    handles: list[Any] = []
    here = SimpleNamespace(attention="", conv="")

    def note(name: str, value: torch.Tensor) -> None:  # a hook that returned something would replace it
        found[name] = value.detach().numpy()

    def on_output(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _, inputs, output: note(name, output)))

    def on_input(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, inputs: note(name, inputs[0])))

    def enter(kind: str, module: nn.Module, path: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: setattr(here, kind, path)))

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            enter("conv", module, path)
            handles.append(module.register_forward_hook(lambda _, inputs, output, path=path: note(path, output.mT)))
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
        note(f"{here.attention}.scores", scores)
        note(f"{here.attention}.weights", weights)
        return weights

    def gelu(x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(x)
        note(f"{here.conv}.gelu", y.mT)
        return y

    functions: Any = whisper.model
    functions.F = SimpleNamespace(**{**vars(F), "softmax": softmax, "gelu": gelu})
    try:
        yield found
    finally:
        functions.F = F
        for handle in handles:
            handle.remove()
