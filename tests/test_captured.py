"""Captured graphs, on a stand-in for a GPU: replays read and write the same buffers each time."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from max.driver import Buffer

from maxwhisper import WhisperWarning
from maxwhisper.engine.captured import Captures
from maxwhisper.engine.decoder_state import DecoderStates
from tests.support.implementations import Implementations


class Doubling:
    """A graph that doubles its input, and can be captured as MAX's graphs can on a GPU."""

    def __init__(self) -> None:
        self.captured = dict[int, tuple[Sequence[Buffer], Buffer]]()

    def capture(self, key: int, *inputs: Buffer) -> list[Buffer]:
        assert key not in self.captured
        self.captured[key] = inputs, Buffer.from_numpy(np.zeros_like(inputs[0].to_numpy()))
        return [self.captured[key][1]]

    def replay(self, key: int, *inputs: Buffer) -> None:
        expected, output = self.captured[key]
        assert all(a is b for a, b in zip(inputs, expected, strict=True))
        output.to_numpy()[:] = 2 * inputs[0].to_numpy()

    def release_captured_graph(self, key: int) -> None:
        del self.captured[key]


def run(captures: Captures, graph: Any, n: int, value: float) -> list[float] | None:
    outputs = captures.again("doubling", graph, [Buffer.from_numpy(np.full(n, value, np.float32))])
    return outputs and outputs[0].to_numpy().tolist()


def test_a_graph_is_captured_when_shapes_occur_again() -> None:
    captures, graph = Captures(enabled=True), Doubling()
    assert run(captures, graph, 2, 1.0) is None
    assert run(captures, graph, 2, 3.0) == [6.0, 6.0]
    assert run(captures, graph, 3, 1.0) is None
    assert run(captures, graph, 2, 4.0) == [8.0, 8.0]
    assert len(graph.captured) == 1


def test_results_are_not_overwritten_by_the_next_replay() -> None:
    captures, graph = Captures(enabled=True), Doubling()
    run(captures, graph, 1, 0.0)
    first, second = (
        captures.again("doubling", graph, [Buffer.from_numpy(np.full(1, x, np.float32))]) for x in (1.0, 5.0)
    )
    assert first is not None and second is not None
    assert [first[0].to_numpy()[0], second[0].to_numpy()[0]] == [2.0, 10.0]


def test_few_graphs_are_kept() -> None:
    captures, graph = Captures(enabled=True), Doubling()
    for n in range(1, 10):
        for value in (1.0, 2.0):
            run(captures, graph, n, value)
    assert len(graph.captured) == Captures.MOST
    del captures
    assert not graph.captured


def test_a_refused_capture_is_said_once() -> None:
    class Refusing(Doubling):
        def capture(self, key: int, *inputs: Buffer) -> list[Buffer]:
            raise RuntimeError("operation not permitted when stream is capturing")

    captures = Captures(enabled=True)
    run(captures, Refusing(), 1, 1.0)
    with pytest.warns(WhisperWarning, match=r"launched one by one.*slower: operation not permitted"):
        assert run(captures, Refusing(), 1, 1.0) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(captures, Refusing(), 1, 1.0) is None


def test_the_cpu_captures_nothing(tiny_en: Implementations) -> None:
    assert not tiny_en.model.runtime.captures.enabled


def test_decoders_share_buffers_only_one_after_the_other(tiny_en: Implementations) -> None:
    runtime, states = tiny_en.model.runtime, DecoderStates()
    first, second = states.take(runtime, 1, 1), states.take(runtime, 1, 1)
    assert first is not second and first.self_kv[0] is not second.self_kv[0]
    states.give_back(first)
    assert states.take(runtime, 1, 2) is not first
    assert states.take(runtime, 1, 1) is first


def test_a_decoder_gives_its_buffers_back(tiny_en: Implementations) -> None:
    audio = tiny_en.model.features(np.zeros((1, 1500, 384), np.float32))
    decoder = tiny_en.model.decoder(audio)
    buffers = decoder._state
    assert tiny_en.model.decoder(audio)._state is not buffers
    del decoder
    assert tiny_en.model.decoder(audio)._state is buffers


def test_few_idle_buffers_are_kept(tiny_en: Implementations) -> None:
    states = DecoderStates()
    taken = [states.take(tiny_en.model.runtime, 1, n) for n in range(1, 5)]
    for state in taken:
        states.give_back(state)
    assert states._idle == taken[-DecoderStates.MOST :]
