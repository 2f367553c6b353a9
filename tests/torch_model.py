"""OpenAI Whisper in MAX's place: a model that `maxwhisper` decodes with, computed by PyTorch. Nothing is compiled for it, and both
programs see the same logits.
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


def random_model(multilingual: bool = True, seed: int = 0) -> whisper.Whisper:
    """A model of one small layer each and a short context. It says something else for each window; special tokens are likely enough to
    matter, and the end becomes likelier with each position.
    """
    torch.manual_seed(seed)
    n_vocab = 51865 if multilingual else 51864
    model = whisper.model.Whisper(whisper.model.ModelDimensions(80, 1500, 16, 2, 1, n_vocab, 64, 16, 2, 1)).eval()
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
    """A `maxwhisper.speech_model.SpeechModel` by PyTorch.

    capture: every activation is kept; attention is written out for that.
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
        """Until the end of the block, keep what is computed, if it is asked for, in the shapes that MAX's graphs have."""
        with torch.no_grad(), ExitStack() as stack:
            if self.capture:
                stack.enter_context(disable_sdpa())
            found = stack.enter_context(watched(self.model)) if self.capture else {}
            yield
        arrays = {name: array[:, None] if name == "decoder.logits" else array for name, array in found.items()}
        self.activations.update(
            {name: Buffer.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        )


class TorchDecoder:
    """A `maxwhisper.speech_model.SpeechDecoder`, with OpenAI Whisper's own cache."""

    def __init__(self, model: TorchModel, features: torch.Tensor, n_group: int) -> None:
        self.model, self.features, self.n_group = model, features, n_group
        self.cache: dict[Any, torch.Tensor] = {}

    def logits(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """float32 [n_audio, n_group, n_rows, n_vocab]."""
        of_all = np.broadcast_to(
            tokens, (len(tokens), self.n_group, tokens.shape[-1])
        ).copy()  # one may stand for a whole group
        new = torch.from_numpy(of_all.reshape(len(self.features), -1))
        with self.model.watched():
            self.cache, hooks = self.model.model.install_kv_cache_hooks(self.cache)
            try:
                found = self.model.model.decoder(new, self.features, kv_cache=self.cache)
            finally:
                for hook in hooks:
                    hook.remove()
        wanted = range(new.shape[1]) if rows is None else rows
        logits: np.ndarray = found[:, list(wanted)].numpy()
        return logits.reshape(-1, self.n_group, *logits.shape[1:])

    def rearrange(self, sources: np.ndarray) -> None:
        """Let each sequence continue another one of its group; sources int [n_audio, n_group]."""
        rows = (np.arange(len(sources))[:, None] * self.n_group + sources).ravel().tolist()
        self.cache = {module: kept[rows] for module, kept in self.cache.items()}
