"""Decoding of real speech by the kernels for NVIDIA GPUs, interpreted, beside the CPU's decoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from maxwhisper import log_mel_spectrogram
from maxwhisper.audio import N_FRAMES, pad_or_trim
from maxwhisper.engine import graphs
from maxwhisper.engine.decoder import AudioFeatures, TokenRules
from maxwhisper.engine.dtypes import DTypes
from maxwhisper.engine.ops import nvidia
from maxwhisper.engine.quantization import convert_weights
from reference.clips import packaged_clips
from tests.gpu.emulated import Gpu, emulated_gpu
from tests.support.implementations import Implementations

PROMPT = [50257, 50362]
N_STEPS = 2
N_KERNELS = 36  # of a step
# Of logits and of sums of log-probabilities: a tenth of what two programs may differ by
# (`reference.parity.transcripts.CLOSE_FIELDS`). Their bounds are judged block by block in
# `test_nvidia_kernels.py`; this test is about the wiring.
TOLERANCE = 1e-4


class Decoder:
    """A decoder of one window on an emulated GPU, by the functions that build the graphs."""

    def __init__(self, tiny_en: Implementations, audio: AudioFeatures, gpu: Gpu) -> None:
        self.dims, self.gpu = tiny_en.checkpoint.dims, gpu
        dtypes = DTypes.of(tiny_en.checkpoint, "float32", nvidia.multiplies_float16).weights
        weights = convert_weights(tiny_en.checkpoint.stored, dtypes)
        arrays: Any = _read_only(weights)
        self.at = graphs.Scope(arrays, nvidia, path="decoder")
        shape = (1, self.dims.n_text_head, self.dims.n_text_ctx, 64)
        cross_kv: Any = [_read_only({"": kv.to_numpy()})[""] for kv in audio.cross_kv]
        table: Any = np.zeros((1, 1, self.dims.n_text_ctx), np.int64)
        caches: Any = [np.zeros(shape, np.float32) for _ in range(2 * self.dims.n_text_layer)]
        self.cache = graphs.KVCache(table, caches, cross_kv)

    def prefill(self, tokens: list[int]) -> np.ndarray:
        """Return the logits after the last token."""
        inputs: list[Any] = [np.array([[tokens]]), np.arange(len(tokens)), np.array([len(tokens) - 1])]
        logits: Any = graphs.decoder(self.at, self.dims, inputs[0], inputs[1], inputs[2], self.cache)
        return logits

    def steps(self, tokens: np.ndarray, sums: np.ndarray, n: int, rules: TokenRules, n_steps: int) -> list[int]:
        """Take steps; return how many kernels each took."""
        n_kernels = list[int]()
        values: list[Any] = [tokens, sums, np.array([n]), rules.mask, rules.numbers]
        for _ in range(n_steps):
            before = len(self.gpu.launched)
            graphs.step(self.at, self.dims, values[0], values[1], values[2], values[3], values[4], self.cache)
            n_kernels.append(len(self.gpu.launched) - before)
        return n_kernels


def _read_only(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    copies = {name: array.copy() for name, array in arrays.items()}
    for array in copies.values():
        array.flags.writeable = False
    return copies


def test_steps_on_real_weights_and_speech_equal_the_cpus(tiny_en: Implementations) -> None:
    """In order, with programmatic dependent launch: the stream refuses what is used too early."""
    dims, gpu = tiny_en.checkpoint.dims, Gpu()
    rules = TokenRules(np.zeros(dims.n_vocab, np.float32), len(PROMPT), 50256, dims.n_vocab)
    n = len(PROMPT)
    mel = pad_or_trim(log_mel_spectrogram(packaged_clips()["beckett"].samples), N_FRAMES)
    audio = tiny_en.model.embed_audio(mel)

    def run() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        decoder = Decoder(tiny_en, audio, gpu)
        logits = decoder.prefill(PROMPT)
        tokens, sums = np.zeros((1, 1, dims.n_text_ctx + 1), np.int64), np.zeros((1, 1))
        tokens[0, 0, : n + 1] = [*PROMPT, int(logits.argmax())]
        return logits, tokens, sums, decoder.steps(tokens, sums, n + 1, rules, N_STEPS)

    with emulated_gpu(gpu):
        with gpu.noting():
            run()
        logits, tokens, sums, n_kernels = run()
    cpu = tiny_en.model.decoder(audio)
    expected = cpu.logits(np.array([[PROMPT]]), rows=[n - 1])
    assert np.abs(logits - expected).max() <= TOLERANCE
    expected_sums = np.zeros((1, 1))
    first = np.array([[[*PROMPT, expected.argmax()]]])
    assert (
        tokens[0, 0, : n + 1 + N_STEPS].tolist()
        == cpu.greedy(first, expected_sums, rules, n + 1 + N_STEPS)[0, 0].tolist()
    )
    assert sums == pytest.approx(expected_sums, abs=TOLERANCE)
    assert n_kernels == [N_KERNELS] * N_STEPS
