"""Whisper's parity by the flow of OpenAI's modules: the verdicts of the flow written by hand."""

import numpy as np
import pytest
import torch

from reference.flow import whisper as whisper_flow
from reference.models.capture import capture_max_and_input
from reference.parity.activations import Compared
from reference.parity.clip import ClipReport, Programs
from reference.port import Traced, judge_port, trace
from reference.port.rows import row_of
from tests.port.whisper_flow import given_names, pairs

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays(parity: tuple[Programs, ClipReport]) -> Arrays:
    """Return what MAX computes for the first window, and its inputs."""
    programs, report = parity
    question = report.windows[0].question
    computed = capture_max_and_input(programs.instrumented, question.mel, question.prompt, question.forced)
    return computed | {"tokens": np.array([[*question.prompt, *question.forced]])}


def derived(programs: Programs, arrays: Arrays) -> dict[str, Compared]:
    """Judge MAX's activations by the flow of OpenAI's modules, under MAX's names."""
    dims, judged = programs.model.dims, dict[str, Compared]()
    mel, tokens, features = (torch.from_numpy(arrays[name]) for name in ("log_mel", "tokens", "encoder.ln_post"))
    encoder = trace(programs.judge.encoder, mel)
    decoder = trace(programs.judge.decoder, tokens, features)
    inputs = {"tokens": "x", "encoder.ln_post": "xa", "positions": "positions", "log_mel": "x"}
    for traced, prefix, flow in (
        (encoder, "encoder", whisper_flow.encoder(dims, fused=True)),
        (decoder, "decoder", whisper_flow.cross_kv(dims) | whisper_flow.decoder(dims, fused=True)),
    ):
        found = pairs(flow, traced, given_names(traced, prefix, inputs))
        shapes = {name: tuple(x.shape) for name, x in traced.run().items()}
        names = {name: as_shown(traced, shapes, own, arrays[name]) for name, own in found.items()}
        back = {own.partition(":")[0]: name for name, own in names.items()}
        port = {name: arrays[name] for name in names}
        judged |= {back[one.name]: one for one in judge_port(traced, port, names=names)}
    return judged


def as_shown(traced: Traced, shapes: dict[str, tuple[int, ...]], name: str, array: np.ndarray) -> str:
    """Return the activation that has the layout in which MAX shows an op's result."""
    own = shapes[name]
    while len(own) == 4:  # heads, which the module puts side by side next
        name = next(n for n, op in traced.ops.items() if name in op.sources and row_of(op).is_exact)
        own = shapes[name]
    return name if own == array.shape else f"{name}:transposed"


def test_each_activation_has_the_verdict_of_the_flow_by_hand(
    parity: tuple[Programs, ClipReport], arrays: Arrays
) -> None:
    programs, report = parity
    by_hand = {one.name: one for one in report.windows[0].activations}
    judged = derived(programs, arrays)
    assert judged.keys() == by_hand.keys()
    for name, one in judged.items():
        assert one.passes and not one.estimated, str(one)
        # The bounds' own arithmetic differs: a mask of zeros is added, taps are summed elsewhere.
        ours, theirs = one.in_situ, by_hand[name].in_situ
        assert ours.worst_case_ratio == pytest.approx(theirs.worst_case_ratio, rel=0.02), name
        # Else the channels are others: of all heads side by side, or time.
        if one.shape == by_hand[name].shape and not name.endswith("context"):
            assert ours.rms_ratio == pytest.approx(theirs.rms_ratio, rel=0.02), name


@pytest.mark.parametrize(
    "name",
    [
        "decoder.blocks.1.mlp.0",
        *(pytest.param(n, marks=pytest.mark.thorough) for n in ("encoder.conv2.gelu", "encoder.blocks.2.attn.context")),
    ],
)
def test_a_mistake_is_blamed_alike(parity: tuple[Programs, ClipReport], arrays: Arrays, name: str) -> None:
    wrong = {**arrays, name: arrays[name] * np.float32(1.0001)}
    failed = [own for own, one in derived(parity[0], wrong).items() if not one.passes]
    assert failed[0] == name
