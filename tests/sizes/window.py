"""A window and a dozen steps of a large model, judged without holding all of it in memory.

Each implementation writes its activations to files. The float64 truth is computed along the data
flow, and each activation is forgotten after its last use.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import maxwhisper
from maxwhisper import Whisper
from maxwhisper.audio import N_FRAMES
from maxwhisper.checkpoint import Checkpoint
from maxwhisper.system import n_cores
from reference.clips import packaged_clips
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import Arrays, Dataflow, look_up, parse, store
from reference.models.capture import activation_names, capture_max, capture_openai
from reference.models.float64 import decoder_inputs
from reference.models.openai import load_openai
from reference.numerics.compare import Verdict
from reference.ops import find_row
from reference.ops.judge import judge_alone, judge_each
from reference.parity.activations import Error
from reference.parity.window import Output, Question, answers

N_STEPS = 12


def question(checkpoint: Checkpoint) -> Question:
    """Return ten seconds of speech, a prompt, and random tokens for a dozen steps."""
    samples = packaged_clips()["beckett"].samples
    mel = maxwhisper.pad_or_trim(maxwhisper.log_mel_spectrogram(samples, checkpoint.dims.n_mels), N_FRAMES)
    tokens = np.random.default_rng(0).integers(0, checkpoint.dims.n_vocab, 4 + N_STEPS).tolist()
    return Question(mel, tokens[:4], tokens[4:])


@dataclass(frozen=True)
class Judged:
    """An activation, judged in situ, and its cumulative error beside OpenAI Whisper's."""

    name: str
    verdict: Verdict
    output: Output

    @property
    def passes(self) -> bool:
        return self.verdict.passes and self.output.passes


class ArrayFiles(Mapping[str, np.ndarray]):
    """Arrays in a folder, each read when it is looked up."""

    def __init__(self, folder: Path, arrays: Arrays) -> None:
        self._folder, self._names = folder, list(arrays)
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return np.load(self._folder / f"{name}.npy")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def judge_window(
    checkpoint: Checkpoint, asked: Question, folder: Path, without: tuple[str, ...] = ()
) -> Iterator[Judged]:
    """Judge activations, and the outputs of the production graphs, in data-flow order.

    Args:
        checkpoint: The model.
        asked: What it is asked.
        folder: A place for the activations, which does not exist yet.
        without: Prefixes of the names that are left out.
    """
    flow = whisper_flow.for_weights(whisper_flow.of_max(checkpoint.dims), checkpoint.weights)
    judged = {key: flow[key] for key in flow if not key.startswith(without)}
    openai, captured, production = observe(checkpoint, asked, folder, judged)
    given = {"log_mel": asked.mel[None], **decoder_inputs(asked.tokens)}
    inputs = together(captured, given, checkpoint.weights)

    def judge(key: str) -> Verdict:
        ((_, alone),) = judge_each({key: flow[key]}, inputs, "float32", judge_alone)
        return alone.actual

    with ThreadPoolExecutor(n_cores()) as pool:  # NumPy releases the GIL while it computes
        verdicts = pool.map(judge, judged)
        for key, exact in truth(flow, given, checkpoint.weights):
            if key in judged:
                name, verdict = parse(key).name, next(verdicts)
                peer = Error.of(openai[name], exact)
                yield Judged(name, verdict, Output(name, Error.of(captured[name], exact), peer))
                if name in production:
                    output = Output(f"{name}, production", Error.of(production[name], exact), peer)
                    yield Judged(name, verdict, output)


def observe(checkpoint: Checkpoint, asked: Question, folder: Path, judged: Dataflow) -> tuple[Arrays, Arrays, Arrays]:
    """Let OpenAI Whisper, MAX's instrumented graphs and its production graphs answer.

    Returns:
        The activations of each that are needed to judge a part of the data flow, from files in the
        folder.
    """
    folder.mkdir()
    names = {parse(key).name for key in judged}
    needed = names | {parse(source).name for _, sources in judged.values() for source in sources}
    original = capture_openai(load_openai(checkpoint), asked.mel, asked.prompt, asked.forced)
    openai = ArrayFiles(folder / "openai", {name: original[name] for name in names})
    del original
    production = ArrayFiles(folder / "production", answers(asked, Whisper(checkpoint)))
    capture = [name for name in activation_names(checkpoint.dims) if name in needed]
    instrumented = Whisper(checkpoint, capture=capture)
    captured = ArrayFiles(folder / "max", capture_max(instrumented, asked.mel, asked.prompt, asked.forced))
    return openai, captured, production


def together(*mappings: Any) -> ChainMap[str, np.ndarray]:
    """Look names up in several mappings. `ChainMap` asks for mutable ones, but only reads them."""
    return ChainMap(*mappings)


def truth(flow: Dataflow, given: Arrays, weights: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each step's key, and its activation in float64, in order."""
    last_use = {parse(source).name: key for key, step in flow.items() for source in step.sources}
    computed = dict[str, np.ndarray]()
    arrays = together(computed, given, weights)
    for key, (op, sources) in flow.items():
        values = [look_up(arrays, source) for source in sources]
        wide = (value if value.dtype.kind == "i" else value.astype(np.float64) for value in values)
        store(computed, key, find_row(op).define(*wide))
        yield key, computed[parse(key).name]
        for name in [name for name in computed if last_use.get(name, key) == key]:
            del computed[name]
