"""Whisper's stages on MAX and in OpenAI Whisper, with the work that each needs at least."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import whisper

import maxwhisper
from maxwhisper.audio import N_FRAMES
from maxwhisper.engine.decoder import AudioFeatures, TokenRules
from tests.speed.ceilings import Ceilings
from tests.speed.counterparts import synchronize
from tests.speed.work import Work, cross_kv, decoder, encoder

N_PROMPT = 223  # the longest prompt that Whisper takes from previous text, in tokens
N_STEPS = 32  # decoder steps timed together, after the same number of tokens
NEVER = -1  # as end-of-text token, so that decoding never ends early
LANGUAGE = "en"
Cache = dict[torch.nn.Module, torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """A stage on MAX and in OpenAI Whisper."""

    name: str
    run_max: Callable[[], object]
    run_openai: Callable[[], object]
    works: Sequence[tuple[int, Work]]  # the work of one execution: count and amount
    n: int = 1  # executions per call

    def roofline_seconds(self, ceilings: Ceilings) -> float:
        """Return the shortest possible time of one execution."""
        return sum(n * ceilings.roofline_seconds(work.operations, work.n_bytes) for n, work in self.works)


def stages(model: maxwhisper.Whisper, judge: whisper.Whisper, samples: np.ndarray) -> list[Stage]:
    """Return the stages encoder, prefill, step, window and file, for the given samples.

    The encoder includes cross-attention's keys and values. `window` transcribes the first 30 s, and
    `file` all samples.

    Args:
        model: the model on MAX.
        judge: the same model in OpenAI Whisper, on the same device.
        samples: float32 [n_samples] at 16 kHz.
    """
    dims, dtypes = model.dims, model.dtypes
    mel = maxwhisper.pad_or_trim(maxwhisper.log_mel_spectrogram(samples, dims.n_mels), N_FRAMES)
    tokens = np.random.default_rng(0).integers(0, 50000, N_PROMPT)
    prefix, next_tokens = tokens[:N_STEPS], tokens[N_STEPS : 2 * N_STEPS]
    audio, openai = model.embed_audio(mel), OpenAI(judge, mel)

    def encode() -> None:
        model.embed_audio(mel)
        model.device.synchronize()

    options: dict[str, Any] = {"language": LANGUAGE, "temperature": 0.0}
    file_options: dict[str, Any] = {**options, "condition_on_previous_text": False}
    openai_options = whisper.DecodingOptions(**options, fp16=False)
    window = maxwhisper.decode(model, mel, **options)
    assert isinstance(window, maxwhisper.DecodingResult)
    segments = maxwhisper.transcribe(model, samples, **file_options)["segments"]
    n_windows, n_tokens = (
        len({segment["seek"] for segment in segments}),
        sum(len(segment["tokens"]) for segment in segments),
    )

    features = [(1, encoder(dims, dtypes)), (1, cross_kv(dims, dtypes))]
    step = decoder(dims, dtypes, 1, len(prefix) + N_STEPS // 2)
    return [
        Stage("encoder", encode, openai.embed_audio, features),
        Stage(
            "prefill",
            lambda: model.decoder(audio).logits(tokens[None, None], rows=[0]),
            # OpenAI's decoder takes the position from its cache, so one token must be in there.
            openai.after(tokens[:1], [tokens[1:]]),
            [(1, decoder(dims, dtypes, N_PROMPT, 0))],
        ),
        Stage(
            "step",
            steps_of_max(model, audio, tokens),
            openai.after(prefix, next_tokens[:, None]),
            [(1, step)],
            n=N_STEPS,
        ),
        Stage(
            "window",
            lambda: maxwhisper.decode(model, mel, **options),
            lambda: whisper.decode(judge, torch.from_numpy(mel).to(judge.device), openai_options),
            [*features, (len(window.tokens) + 1, step)],
        ),
        Stage(
            "file",
            lambda: maxwhisper.transcribe(model, samples, **file_options),
            lambda: whisper.transcribe(judge, samples, fp16=False, **file_options),
            [*((n_windows * n, work) for n, work in features), (n_tokens + n_windows, step)],
        ),
    ]


def steps_of_max(model: maxwhisper.Whisper, audio: AudioFeatures, tokens: np.ndarray) -> Callable[[], None]:
    """Return a function that takes N_STEPS steps after the first N_STEPS tokens.

    It takes them in one call if decoding runs in the graph, else one by one.
    """
    prefilled = model.decoder(audio)
    prefilled.logits(tokens[None, None, :N_STEPS])
    n_vocab = model.dims.n_vocab
    rules = TokenRules(np.zeros(n_vocab, np.float32), N_STEPS, NEVER, n_vocab)

    def steps() -> None:
        prefilled.n_past = N_STEPS
        if model.decodes_in_graph:
            prefilled.greedy(tokens[None, None, : N_STEPS + 1], np.zeros((1, 1)), rules, 2 * N_STEPS + 1)
        else:
            for token in tokens[N_STEPS : 2 * N_STEPS]:
                prefilled.logits(token[None, None, None])

    return steps


class OpenAI:
    """OpenAI Whisper's stages on a log-mel window, float32 [n_mels, n_frames]."""

    def __init__(self, judge: whisper.Whisper, mel: np.ndarray) -> None:
        self._judge = judge
        self._mel = torch.from_numpy(mel)[None].to(judge.device)
        self._features = self.embed_audio()

    @torch.no_grad()
    def embed_audio(self) -> torch.Tensor:
        """Compute features, and the cross-attention keys and values of every decoder layer.

        OpenAI Whisper computes the keys and values in the decoder's first call.
        """
        features = self._judge.encoder(self._mel)
        for block in self._judge.decoder.blocks:
            block.cross_attn.key(features), block.cross_attn.value(features)
        synchronize(self._judge.device)
        return features

    def after(self, prefix: np.ndarray, calls: Sequence[np.ndarray] | np.ndarray) -> Callable[[], object]:
        """Return a function that decodes after a prefix.

        Args:
            prefix: tokens [n] that are prefilled once.
            calls: arrays of tokens that each call of the function gives to the decoder one by one,
                beginning after the prefix.
        """

        @torch.no_grad()
        def feed(calls: Sequence[np.ndarray] | np.ndarray, cache: Cache) -> Cache:
            cache, hooks = self._judge.install_kv_cache_hooks(cache)
            for tokens in calls:
                self._judge.decoder(
                    torch.from_numpy(tokens)[None].to(self._judge.device), self._features, kv_cache=cache
                )
            for hook in hooks:
                hook.remove()
            synchronize(self._judge.device)
            return cache

        prefilled = feed([prefix], {})
        return lambda: feed(calls, prefilled)
