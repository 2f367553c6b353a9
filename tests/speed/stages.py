"""Whisper's stages, each beside OpenAI Whisper's: what is timed, and what it must do at least."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import whisper

import maxwhisper
from maxwhisper.audio import N_FRAMES
from maxwhisper.engine.decoder import TokenRules
from tests.speed.ceilings import Ceilings
from tests.speed.twins import wait_for
from tests.speed.work import Work, cross_kv, decoder, encoder

N_PROMPT = 223  # tokens of text before a window, the most that Whisper is given
N_STEPS = 32  # timed together, behind as many others
NEVER = -1  # in place of the token that ends a text
LANGUAGE = "en"
Cache = dict[torch.nn.Module, torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """A stage by MAX and by PyTorch. works: what one needs to have done, and how often; n: how many a call does."""

    name: str
    ours: Callable[[], object]
    twin: Callable[[], object]
    works: Sequence[tuple[int, Work]]
    n: int = 1

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds that one takes at least."""
        return sum(n * ceilings.floor(work.operations, work.n_bytes) for n, work in self.works)


def stages(model: maxwhisper.Whisper, judge: whisper.Whisper, samples: np.ndarray) -> list[Stage]:
    """Encoder (with cross-attention's keys and values), prefill, step; a window's transcript; and that of all samples [n_samples].

    model and judge are on one device.
    """
    dims, dtypes = model.dims, model.dtypes
    mel = maxwhisper.pad_or_trim(maxwhisper.log_mel_spectrogram(samples, dims.n_mels), N_FRAMES)
    tokens = np.random.default_rng(0).integers(0, 50000, N_PROMPT)
    begin, next_ones = tokens[:N_STEPS], tokens[N_STEPS : 2 * N_STEPS]
    audio, openai = model.embed_audio(mel), OpenAI(judge, mel)
    begun = model.decoder(audio)
    begun.logits(begin[None, None])

    def encode() -> None:
        model.embed_audio(mel)
        model.device.synchronize()

    rules = TokenRules(np.zeros(dims.n_vocab, np.float32), N_STEPS, NEVER, dims.n_vocab)

    def steps() -> None:
        """As greedy decoding takes them, whatever is said; on a device where that is not one call, as sampling does."""
        begun.n_past = len(begin)
        if model.decodes_in_graph:
            begun.greedy(tokens[None, None, : N_STEPS + 1], np.zeros((1, 1)), rules, 2 * N_STEPS + 1)
        else:
            for token in next_ones:
                begun.logits(token[None, None, None])

    options: dict[str, Any] = {"language": LANGUAGE, "temperature": 0.0}
    whole: dict[str, Any] = {**options, "condition_on_previous_text": False}
    openai_options = whisper.DecodingOptions(**options, fp16=False)
    window = maxwhisper.decode(model, mel, **options)
    assert isinstance(window, maxwhisper.DecodingResult)
    segments = maxwhisper.transcribe(model, samples, **whole)["segments"]
    n_windows, n_tokens = (
        len({segment["seek"] for segment in segments}),
        sum(len(segment["tokens"]) for segment in segments),
    )

    features = [(1, encoder(dims, dtypes)), (1, cross_kv(dims, dtypes))]
    step = decoder(dims, dtypes, 1, len(begin) + N_STEPS // 2)
    return [
        Stage("encoder", encode, openai.embed_audio, features),
        Stage(
            "prefill",
            lambda: model.decoder(audio).logits(tokens[None, None], rows=[0]),
            openai.after(
                tokens[:1], [tokens[1:]]
            ),  # its decoder tells from its cache where it is, so one token goes before
            [(1, decoder(dims, dtypes, N_PROMPT, 0))],
        ),
        Stage("step", steps, openai.after(begin, next_ones[:, None]), [(1, step)], n=N_STEPS),
        Stage(
            "window",
            lambda: maxwhisper.decode(model, mel, **options),
            lambda: whisper.decode(judge, torch.from_numpy(mel).to(judge.device), openai_options),
            [*features, (len(window.tokens) + 1, step)],
        ),
        Stage(
            "file",
            lambda: maxwhisper.transcribe(model, samples, **whole),
            lambda: whisper.transcribe(judge, samples, fp16=False, **whole),
            [*((n_windows * n, work) for n, work in features), (n_tokens + n_windows, step)],
        ),
    ]


class OpenAI:
    """OpenAI Whisper's stages, on a log-mel window [n_mels, n_frames]."""

    def __init__(self, judge: whisper.Whisper, mel: np.ndarray) -> None:
        self._judge = judge
        self._mel = torch.from_numpy(mel)[None].to(judge.device)
        self._features = self.embed_audio()

    @torch.no_grad()
    def embed_audio(self) -> torch.Tensor:
        """Features; and the keys and values that every decoder layer attends to, as the decoder's first call computes them."""
        features = self._judge.encoder(self._mel)
        for block in self._judge.decoder.blocks:
            block.cross_attn.key(features), block.cross_attn.value(features)
        wait_for(self._judge.device)
        return features

    def after(self, begin: np.ndarray, calls: Sequence[np.ndarray] | np.ndarray) -> Callable[[], object]:
        """A function that feeds the decoder one array of tokens after the other, behind those of `begin`, each time anew."""

        @torch.no_grad()
        def feed(calls: Sequence[np.ndarray] | np.ndarray, cache: Cache) -> Cache:
            cache, hooks = self._judge.install_kv_cache_hooks(cache)
            for tokens in calls:
                self._judge.decoder(
                    torch.from_numpy(tokens)[None].to(self._judge.device), self._features, kv_cache=cache
                )
            for hook in hooks:
                hook.remove()
            wait_for(self._judge.device)
            return cache

        kept = feed([begin], {})
        return lambda: feed(calls, kept)
