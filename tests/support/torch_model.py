"""A PyTorch model that `maxwhisper` can decode with instead of MAX.

Nothing is compiled for it, and `maxwhisper` and OpenAI Whisper compute with the same logits.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import whisper
from max.driver import Buffer
from whisper.model import disable_sdpa

import maxwhisper
from maxwhisper.audio import Audio
from maxwhisper.engine.decoder import AudioFeatures
from reference.models.capture import watched


def random_model(multilingual: bool = True, seed: int = 0, n_mels: int = 80, n_added: int = 0) -> whisper.Whisper:
    """Return a small random model: one layer in encoder and decoder, and a context of 64 tokens.

    With 128 mels it has 100 languages, and tokens can be added to its vocabulary.

    Different windows give different texts. Special tokens are likely enough to be sampled, and the
    end of the text becomes more likely with each position.
    """
    torch.manual_seed(seed)
    n_vocab = 51864 + multilingual + (n_mels == 128) + n_added
    model = whisper.model.Whisper(whisper.model.ModelDimensions(n_mels, 1500, 16, 2, 1, n_vocab, 64, 16, 2, 1)).eval()
    eot = 50257 if multilingual else 50256
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.6)
        decoder = model.decoder
        decoder.ln.weight.fill_(1)
        decoder.ln.bias.zero_()
        towards_end = torch.tensor([1.0, -1.0]).repeat(8)
        decoder.positional_embedding += 8 * torch.arange(64)[:, None] * towards_end
        decoder.token_embedding.weight[eot:] *= 1.6
        decoder.token_embedding.weight[eot] = 1.1 * towards_end
        for block in decoder.blocks:
            block.cross_attn.out.weight *= 50
    return model


class TorchModel:
    """A `maxwhisper.speech_model.SpeechModel` computed by PyTorch.

    If `capture` is set, every activation is stored, and attention is computed without a fused
    kernel.
    """

    def __init__(self, model: whisper.Whisper, capture: bool = False) -> None:
        self.model = model
        self.capture = capture
        self.dims = maxwhisper.ModelDimensions(**vars(model.dims))
        self.is_multilingual, self.num_languages = self.dims.is_multilingual, self.dims.num_languages
        self.decodes_in_graph = self.searches_in_graph = False
        self.alignment_heads = model.alignment_heads.indices().T.tolist()
        self.activations: dict[str, Buffer] = {}

    def log_mel_spectrogram(self, audio: Audio, padding: int = 0) -> np.ndarray:
        return maxwhisper.log_mel_spectrogram(audio, self.dims.n_mels, padding)

    def embed_audio(self, mel: np.ndarray) -> Any:
        with self.watched():
            batch = torch.from_numpy(np.ascontiguousarray(mel.reshape(-1, *mel.shape[-2:])))
            return AudioFeatures(self.model.embed_audio(batch), [])

    def decoder(self, audio: Any, n_group: int = 1) -> Any:
        return TorchDecoder(self, audio.features.repeat_interleave(n_group, dim=0), n_group)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Store the block's activations in the shapes of MAX's graphs, if `capture` is set."""
        with torch.no_grad(), ExitStack() as stack:
            if self.capture:
                stack.enter_context(disable_sdpa())
            activations = stack.enter_context(watched(self.model)) if self.capture else {}
            yield
        arrays = {name: array[:, None] if name == "decoder.logits" else array for name, array in activations.items()}
        self.activations.update(
            {name: Buffer.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        )


class TorchDecoder:
    """A `maxwhisper.speech_model.SpeechDecoder` that uses OpenAI Whisper's KV cache."""

    def __init__(self, model: TorchModel, features: torch.Tensor, n_group: int) -> None:
        self.model, self.features, self.n_group = model, features, n_group
        self.cache: dict[Any, torch.Tensor] = {}

    def logits(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return the logits of new tokens, float32 [n_audio, n_group, n_rows, n_vocab].

        Tokens are int [n_audio, n_group or 1, n_tokens]. A single sequence stands for its whole
        group.
        """
        all_tokens = np.broadcast_to(tokens, (len(tokens), self.n_group, tokens.shape[-1])).copy()
        new = torch.from_numpy(all_tokens.reshape(len(self.features), -1))
        with self.model.watched():
            self.cache, hooks = self.model.model.install_kv_cache_hooks(self.cache)
            try:
                output = self.model.model.decoder(new, self.features, kv_cache=self.cache)
            finally:
                for hook in hooks:
                    hook.remove()
        wanted = range(new.shape[1]) if rows is None else rows
        logits: np.ndarray = output[:, list(wanted)].numpy()
        return logits.reshape(-1, self.n_group, *logits.shape[1:])

    def rearrange(self, sources: np.ndarray) -> None:
        """Let each sequence continue a sequence of its group, by index: int [n_audio, n_group]."""
        rows = (np.arange(len(sources))[:, None] * self.n_group + sources).ravel().tolist()
        self.cache = {module: array[rows] for module, array in self.cache.items()}
