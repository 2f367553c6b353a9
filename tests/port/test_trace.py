"""The data flow of a module: names, constants, and Whisper's as it is written down by hand."""

import numpy as np
import pytest
import torch
import whisper
from torch import nn

from maxwhisper.checkpoint import load_checkpoint
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import Step, parse
from reference.models.openai import load_openai
from reference.ops.tensors import from_torch
from reference.parity.activations import truth
from reference.port import PortError, Traced, trace
from reference.port.rows import row_of
from tests.port.whisper_flow import given_names, pairs


@pytest.fixture(scope="module")
def openai() -> whisper.Whisper:
    return load_openai(load_checkpoint("tiny.en"))


@pytest.fixture(scope="module")
def encoder(openai: whisper.Whisper) -> Traced:
    return trace(openai.encoder, torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def decoder(openai: whisper.Whisper) -> Traced:
    tokens, features = torch.arange(7)[None] * 100, torch.randn(1, 1500, 384)
    return trace(openai.decoder, tokens, features)


def test_the_flow_of_whispers_encoder_is_that_written_by_hand(openai: whisper.Whisper, encoder: Traced) -> None:
    flow = whisper_flow.encoder(openai.dims, fused=True)
    found = pairs(flow, encoder, given_names(encoder, "encoder", {"log_mel": "x"}))
    assert list(found) == [parse(key).name for key in flow]
    assert len(set(found.values())) == len(found)
    rounding = [name for name, op in encoder.ops.items() if not row_of(op).is_exact]
    assert sorted(found.values()) == sorted(rounding)  # nothing else is computed
    # Both compute the same numbers.
    arrays = {f"encoder.{name}": from_torch(encoder.given[name]) for name in encoder.weights}
    exact = truth(flow, {"log_mel": from_torch(encoder.given["x"]), **arrays})
    ours = encoder.run(torch.float64)
    for name, own in found.items():
        value = ours[own].numpy()
        if value.ndim == 4:
            value = value.swapaxes(1, 2).reshape(exact[name].shape)
        if value.shape != exact[name].shape:
            value = value.swapaxes(1, 2)
        # Float64 in two orders of summation, through four layers; another op would be far off.
        np.testing.assert_allclose(value, exact[name], rtol=0, atol=1e-9 * np.abs(value).max(), err_msg=name)


def test_the_flow_of_whispers_decoder_is_that_written_by_hand(openai: whisper.Whisper, decoder: Traced) -> None:
    dims = openai.dims
    flow = whisper_flow.cross_kv(dims) | whisper_flow.decoder(dims, fused=True)
    inputs = {"tokens": "x", "encoder.ln_post": "xa", "positions": "positions"}
    found = pairs(flow, decoder, given_names(decoder, "decoder", inputs))
    assert list(found) == [parse(key).name for key in flow]
    rounding = [name for name, op in decoder.ops.items() if not row_of(op).is_exact]
    assert sorted(found.values()) == sorted(rounding)


def test_activations_have_the_names_of_modules() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)
            self.rest = nn.Sequential(nn.LayerNorm(3), nn.GELU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(self.drop(self.layer(self.layer(x))))

    traced = trace(Twice(), torch.ones(2, 3))
    assert list(traced.ops) == ["layer.linear", "layer", "rest.0", "rest.1"]
    assert traced.name_of("drop") == "layer"  # which changes nothing
    assert traced.name_of("rest") == "rest.1"
    assert traced.name_of("nothing") is None
    assert traced.outputs == ("rest.1",)
    assert traced.inputs == ("x",)
    assert sorted(traced.weights) == sorted(name for name, _ in Twice().named_parameters())
    assert traced.flow["rest.0"] == Step("layer_norm", ("layer", "rest.0.weight", "rest.0.bias"))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda x: x if x.sum() > 0 else -x,
            r"^Wrong can't be traced: .*; leave out what depends on the inputs' values",
        ),
        (lambda x: x @ x, r"^Wrong can't be traced: .*cannot be multiplied"),
    ],
)
def test_a_module_that_can_not_be_traced_is_named(forward, message: str) -> None:  # type: ignore[no-untyped-def]
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x)

    with pytest.raises(PortError, match=message) as caught:
        trace(Wrong(), torch.ones(2, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: torch.fft.rfft(x).abs(), "aten.fft_rfft.default gives complex numbers"),
        (lambda x: torch.nn.functional.dropout(x, 0.5, True), "it drops out at random"),
        (lambda x: x[x > 0], "(depends on the inputs' values|data-dependent)"),
        (lambda x: 3, "computes nothing"),
    ],
)
def test_what_can_not_be_judged_is_refused(forward, message: str) -> None:  # type: ignore[no-untyped-def]
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x)

    odd = Odd().train()
    with pytest.raises(PortError, match=f"^Odd .*{message}"):
        trace(odd, torch.ones(2, 3))
    assert odd.training
    with pytest.raises(PortError, match=r"the original is a function; give a torch\.nn\.Module"):
        trace(forward, torch.ones(2, 3))


def test_a_module_whose_last_op_is_not_its_output_has_the_right_name() -> None:
    class Early(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.exp()
            self.size = y.sum()  # computed last, and not returned
            return y

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.sin(), x.cos()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.pair = Early(), Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.early(x)
            return sum(self.pair(y)) + self.early.size

    traced = trace(Whole(), torch.randn(3, 4))
    assert traced.ops["early"].kind == "aten.exp"
    assert traced.ops["pair"].kind == "aten.sin"  # the first of two
    assert {"pair.cos", "early.sum"} <= traced.ops.keys()


def test_a_module_that_writes_in_place_is_traced() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y += 1
            y[:, 0] = 0
            return y.exp()

    x = torch.randn(3, 4)
    traced = trace(InPlace(), x)
    assert torch.equal(traced.run()[traced.outputs[0]], InPlace()(x))


def test_the_numbers_are_the_modules_own(encoder: Traced, openai: whisper.Whisper) -> None:
    with torch.no_grad():
        expected = openai.encoder(encoder.given["x"])
    assert torch.equal(encoder.run()[encoder.outputs[0]], expected)
