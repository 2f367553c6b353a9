"""Activations of modules of `max.nn`, under the paths that PyTorch's hooks would have."""

import numpy as np
import pytest
import torch
from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops
from max.nn.layer import Module
from max.nn.layer import layer as layers
from max.nn.linear import Linear
from max.nn.norm import LayerNorm
from torch import nn

from reference.port import PortError, assert_parity, judge_port, trace
from reference.port.capture import Instrumented, Recorder

CPU = DeviceRef.CPU()


class Original(nn.Module):
    """An MLP around which there is a residual, twice with the same norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.mlp = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mlp(self.norm(x))
        return x + self.mlp(self.norm(x))


class Mlp(Module):
    """Has the names of the original's parts."""

    def __init__(self) -> None:
        super().__init__()
        for name, n_in, n_out in (("0", 24, 96), ("2", 96, 24)):
            setattr(self, name, Linear(n_in, n_out, DType.float32, CPU, has_bias=True))

    def __call__(self, x: TensorValue) -> TensorValue:
        return getattr(self, "2")(ops.gelu(getattr(self, "0")(x)))


class Port(Module):
    """The original, ported to MAX."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = LayerNorm(24, devices=[CPU], dtype=DType.float32, eps=1e-5)
        self.mlp = Mlp()

    def __call__(self, x: TensorValue) -> TensorValue:
        x = x + self.mlp(self.norm(x))
        return x + self.mlp(self.norm(x))


@pytest.mark.compiles
def test_a_port_to_max_is_captured_and_judged() -> None:
    torch.manual_seed(0)
    original, x = Original(), torch.randn(2, 5, 24)
    weights = {name: value.numpy() for name, value in original.state_dict().items()}
    port = Instrumented(Port(), [TensorType(DType.float32, x.shape, CPU)], weights)
    assert not layers._LAYER_HOOKS
    # Of a module that is called twice, the second call has its name.
    names = {"norm": "norm.layer_norm", "mlp.0": "mlp.0.linear", "mlp.2": "mlp.2.linear"}
    names |= {f"{name}(2)": name for name in ("norm", "mlp.0", "mlp.2")}

    def shown(inputs: torch.Tensor) -> dict[str, np.ndarray]:
        activations = port(inputs.numpy())
        assert activations.keys() == names.keys() | {"mlp", "mlp(2)", "output"}
        return {name: activations[name] for name in (*names, "output")}

    right, other = shown(x), shown(2 * x)
    assert len(assert_parity(original, right, x, names=names)) == 7
    with pytest.raises(PortError, match=r"'mlp\.0\.linear' is what it was in the call before"):
        list(judge_port(trace(original, x), {**right, "mlp.0": other["mlp.0"]}, names=names, before=other))
    assert all(one.passes for one in judge_port(trace(original, x), right, names=names, before=other))
    with torch.no_grad():
        original.mlp[0].get_parameter("bias").add_(0.1)
    with pytest.raises(AssertionError, match=r"the first activation that differs is mlp\.0\.linear"):
        assert_parity(original, right, x, names=names)


def test_weights_that_are_missing_are_named() -> None:
    with pytest.raises(PortError, match=r"^the port can't load these weights: .*norm\.weight"):
        Instrumented(Port(), [TensorType(DType.float32, [2, 5, 24], CPU)], {})


def test_a_name_that_is_recorded_twice_is_refused() -> None:
    record = Recorder()
    with Graph("recorded", input_types=[TensorType(DType.float32, [2], CPU)]) as graph:
        (x,) = graph.inputs
        assert record("x", x.tensor) is not None
        with pytest.raises(PortError, match="'x' is recorded twice; give each activation a name of its own"):
            record("x", x.tensor)
        graph.output(x.tensor)
