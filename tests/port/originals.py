"""Originals of three architectures, with random weights and sizes that run at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from whisper.model import ModelDimensions, TextDecoder

N, N_STATE, N_HEAD, N_VOCAB = 11, 24, 3, 50


class Original(NamedTuple):
    """A module and its inputs."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]


def whisper() -> Original:
    """Return OpenAI Whisper's decoder of two layers."""
    dims = ModelDimensions(80, 13, N_STATE, N_HEAD, 2, N_VOCAB, 16, N_STATE, N_HEAD, 2)
    decoder = TextDecoder(dims.n_vocab, dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer)
    nn.init.normal_(decoder.positional_embedding)
    return Original(decoder, (torch.arange(2 * N).reshape(2, N) % N_VOCAB, torch.randn(2, 13, N_STATE)))


class BertLayer(nn.Module):
    """A layer of BERT: attention by steps, and layer norm after each residual."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(N_STATE, N_STATE) for _ in range(4))
        self.norm, self.out_norm = (nn.LayerNorm(N_STATE, eps=1e-12) for _ in range(2))
        self.up, self.down = nn.Linear(N_STATE, 4 * N_STATE), nn.Linear(4 * N_STATE, N_STATE)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (N_HEAD, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (q @ k.mT / (N_STATE // N_HEAD) ** 0.5 + mask).softmax(-1)
        x = self.norm(x + self.dense((weights @ v).transpose(1, 2).flatten(2)))
        return self.out_norm(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """An encoder of sentences as sentence-transformers has it: BERT, and the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.types = (nn.Embedding(n, N_STATE) for n in (N_VOCAB, 16, 2))
        self.norm = nn.LayerNorm(N_STATE, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer() for _ in range(2))

    def forward(self, tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1])) + self.types(torch.zeros_like(tokens))
        x, mask = self.norm(x), (1 - present[:, None, None]) * -1e9
        for layer in self.layers:
            x = layer(x, mask)
        return F.normalize((x * present[..., None]).sum(1) / present.sum(1, keepdim=True), dim=-1)


def bert() -> Original:
    """Return an encoder of sentences, and two of them, of which one is shorter."""
    present = torch.ones(2, N)
    present[1, 7:] = 0
    return Original(Bert(), (torch.arange(2 * N).reshape(2, N) % N_VOCAB, present))


class LlamaLayer(nn.Module):
    """A layer of Llama: RMS norm, rotary embedding, grouped queries, and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.RMSNorm(32, eps=1e-6), nn.RMSNorm(32, eps=1e-6)
        self.q, self.o = (nn.Linear(32, 32, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(32, 16, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(32, 64, bias=False) for _ in range(2))
        self.down = nn.Linear(64, 32, bias=False)
        self.act = nn.SiLU()
        self.rotary = Rotary()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        context = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(context.transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        return x + self.down(self.act(self.gate(h)) * self.up(h))


class Rotary(nn.Module):
    """Rotary embedding (Su et al., 2021), of the halves of each head as Llama's weights have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
        cos, sin = (torch.cat([wave, wave], -1) for wave in (angles.cos(), angles.sin()))
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-high, low], dim=-1) * sin


class Llama(nn.Module):
    """A language model of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(N_VOCAB, 32), nn.RMSNorm(32, eps=1e-6)
        self.layers = nn.Sequential(LlamaLayer(), LlamaLayer())
        self.head = nn.Linear(32, N_VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.embed(tokens))))


def llama() -> Original:
    """Return a language model."""
    return Original(Llama(), (torch.arange(2 * N).reshape(2, N) % N_VOCAB,))


ORIGINALS: dict[str, Callable[[], Original]] = {"whisper": whisper, "bert": bert, "llama": llama}
