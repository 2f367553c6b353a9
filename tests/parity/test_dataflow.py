"""Mistakes in a user's own data flow. Each gives a one-line error that names the step.

The error is raised before anything is computed.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch

from reference.flow.dataflow import DataflowError, Step, evaluate
from reference.numerics.bounds import Approx
from reference.ops import TABLE, Input, Op
from reference.ops.torch_counterparts import run_torch
from reference.parity.activations import compare_activations, first_divergence, truth

FLOW = {
    "ln": Step("layer_norm", ("x", "ln.weight", "ln.bias")),
    "q": Step("linear", ("ln", "q.weight")),
    "context:2 heads": Step("attention", ("q:2 heads", "q:2 heads", "q:2 heads")),
    "fc": Step("linear", ("context", "fc.weight", "fc.bias")),
    "out": Step("residual", ("x", "fc")),
    "side": Step("gelu", ("x",)),
}
SHAPES = {"x": (1, 5, 6), "ln.weight": (6,), "ln.bias": (6,), "q.weight": (6, 6), "fc.weight": (6, 6), "fc.bias": (6,)}
_rng = np.random.default_rng(0)
INPUTS: Mapping[str, Any] = {name: _rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def without(name: str, arrays: Mapping[str, Any] = INPUTS) -> dict[str, Any]:
    return {key: array for key, array in arrays.items() if key != name}


def activations(inputs: Mapping[str, Any] = INPUTS) -> dict[str, Any]:
    """Compute the activations with PyTorch, step by step."""
    return evaluate(FLOW, inputs, lambda op, inputs: run_torch(TABLE[op], inputs))


# Name: (the key of the step, the step as written, the beginning of the message).
MISTAKES: dict[str, tuple[str, Any, str]] = {
    "unknown op": ("q", Step("liner", ("ln", "q.weight")), "there is no op 'liner'; nearest: 'linear'"),
    "op of several": ("q", Step("mlp", ("ln", "q.weight")), "there is no op 'mlp'"),
    "misspelt input": (
        "out",
        Step("residual", ("x", "fcc")),
        "'fcc' is neither given nor computed before; nearest: 'fc'",
    ),
    "own result": ("q", Step("linear", ("q", "q.weight")), "a cycle, q ← q"),
    "cycle": ("q", Step("linear", ("fc", "q.weight")), "a cycle, q ← fc ← context ← q"),
    "later step": (
        "q",
        Step("linear", ("side", "q.weight")),
        "'side' is computed by a later step, 'side'; write steps in",
    ),
    "unknown view": (
        "out",
        Step("residual", ("x", "fc:transpose")),
        "'fc:transpose' is no view; there are ':transposed', ",
    ),
    "heads without a number": ("out", Step("residual", ("x", "fc:n heads")), "'fc:n heads' is no view; there are"),
    "no heads": ("out", Step("residual", ("x", "fc:0 heads")), "'fc:0 heads' is no view; there are"),
    "heads that don't divide": (
        "out",
        Step("residual", ("x:4 heads", "fc")),
        "'x:4 heads' can't be taken of shape [1, 5, 6]: ",
    ),
    "heads of a vector": (
        "out",
        Step("residual", ("x", "fc.bias:2 heads")),
        "'fc.bias:2 heads' can't be taken of shape [6]: ",
    ),
    "a vector transposed": (
        "out",
        Step("residual", ("x", "fc.bias:transposed")),
        "'fc.bias:transposed' can't be taken of shape [6]: ",
    ),
    "positions not given": (
        "out",
        Step("residual", ("x", "x:at positions")),
        "'x:at positions' needs 'positions', which is not given",
    ),
    "a result that is transposed": (
        "out:transposed",
        Step("residual", ("x", "fc")),
        "'transposed' is no view of a result",
    ),
    "computed twice": ("q:2 heads", Step("gelu", ("x",)), "'q' is computed by step 'q' already"),
    "too few inputs": (
        "ln",
        Step("layer_norm", ("x", "ln.weight")),
        "'layer_norm' takes 3 inputs (x, weight, bias), not 2",
    ),
    "too many inputs": ("out", Step("residual", ("x", "fc", "x")), "'residual' takes 2 inputs (x, y), not 3"),
    "too few for some": ("q", Step("linear", ("x",)), "'linear' takes 2 or 3 inputs (x, weight, bias), not 1"),
    "a name for names": ("out", ("gelu", "fc"), "sources are 'fc', not a tuple of names; write ('fc',)"),
    "arrays for names": ("out", ("gelu", (INPUTS["x"],)), "an ndarray stands where a name belongs"),
    "no step": ("out", "gelu", "'gelu' is no Step(op, (names of inputs))"),
}
# Name: (the inputs, the beginning of the message).
MISTAKES_IN_INPUTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "missing weight": (
        without("q.weight"),
        "step 'q': 'q.weight' is neither given nor computed before; nearest: 'ln.weight'",
    ),
    "missing input": (without("x"), "step 'ln': 'x' is neither given nor computed before"),
    "tensors": ({**INPUTS, "x": torch.zeros(1, 5, 6)}, "'x' is given as a Tensor; give a NumPy array"),
}


def error_messages(flow: Any, inputs: Mapping[str, Any]) -> set[str]:
    """Return the messages from evaluating a flow and from comparing activations with it."""
    messages = set()
    for call in (lambda: truth(flow, inputs), lambda: list(compare_activations(flow, activations(), inputs, {}))):
        with pytest.raises(DataflowError) as raised:
            call()
        messages.add(str(raised.value))
    return messages


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_step_is_one_line_that_names_it(name: str) -> None:
    key, step, beginning = MISTAKES[name]
    (message,) = error_messages({**FLOW, key: step}, INPUTS)
    assert message.startswith(f"step {key!r}: {beginning}")
    assert "\n" not in message


@pytest.mark.parametrize("name", MISTAKES_IN_INPUTS)
def test_a_mistake_in_the_inputs_is_one_line(name: str) -> None:
    inputs, beginning = MISTAKES_IN_INPUTS[name]
    (message,) = error_messages(FLOW, inputs)
    assert message.startswith(beginning)
    assert "\n" not in message


def test_positions_out_of_bounds_are_named() -> None:
    (message,) = error_messages(
        {**FLOW, "out": Step("residual", ("x", "x:at positions"))}, {**INPUTS, "positions": np.array([7])}
    )
    assert message.startswith(
        "step 'out': 'x:at positions' can't be taken of shape [1, 5, 6]: index 7 is out of bounds"
    )


def test_a_row_of_ones_own_is_an_op() -> None:
    """Made after everything was imported, without a line in this project's files."""
    with mock.patch.dict(TABLE):

        class Twice(Op, row="twice"):
            inputs: ClassVar = {"x": Input("batch n")}
            build = staticmethod(lambda ops, x: x + x)
            define = staticmethod(lambda x: 2 * x)
            torch = staticmethod(lambda x: 2 * x)
            bound = staticmethod(lambda roundings, x: Approx.from_input(2 * x))
            sensitivity_case = ("x", {"batch": 1, "n": 3}, {})

        flow, given = {"y": Step("twice", ("x",))}, {"x": INPUTS["x"]}
        exact = truth(flow, given)
        assert np.array_equal(exact["y"], 2 * INPUTS["x"].astype(np.float64))
        assert first_divergence(compare_activations(flow, {"y": 2 * INPUTS["x"]}, given, exact)) is None
        culprit = first_divergence(compare_activations(flow, {"y": 3 * INPUTS["x"]}, given, exact))
        assert culprit is not None
        assert culprit.resembles == "a constant factor of 1.5"
    with pytest.raises(DataflowError, match="there is no op 'twice'"):
        truth(flow, given)


def test_nothing_is_computed_before_the_whole_flow_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TABLE["layer_norm"], "define", lambda *arrays: pytest.fail("computed"))
    with pytest.raises(DataflowError, match="step 'out'"):
        truth({**FLOW, "out": Step("residual", ("x", "nothing"))}, INPUTS)


@pytest.mark.parametrize(
    ("weight", "shape", "message"),
    [
        ("fc.weight", (6, 7), "step 'fc': linear of shapes [1, 5, 6], [6, 7], [6]: "),
        ("q.weight", (5, 6), "step 'context:2 heads': 'q:2 heads' can't be taken of shape [1, 5, 5]: "),
    ],
)
def test_shapes_that_do_not_fit_name_the_step(weight: str, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(DataflowError, match="^" + re.escape(message)) as raised:
        truth(FLOW, {**INPUTS, weight: np.zeros(shape, np.float32)})
    assert "\n" not in str(raised.value)


def test_an_index_that_is_too_high_names_the_step() -> None:
    flow = {"embed": Step("token_embedding", ("tokens", "weight"))}
    with pytest.raises(DataflowError, match=r"^step 'embed': token_embedding of shapes \[1, 2\], \[3, 4\]: "):
        truth(flow, {"tokens": np.array([[1, 3]]), "weight": np.zeros((3, 4))})


def test_a_missing_activation_is_named_with_the_nearest() -> None:
    renamed = activations()
    renamed["fc1"] = renamed.pop("fc")
    with pytest.raises(DataflowError, match=r"^step 'fc': the activations lack 'fc'; nearest: 'fc1'$"):
        list(compare_activations(FLOW, renamed, INPUTS, truth(FLOW, INPUTS)))
    with pytest.raises(DataflowError, match=r"^step 'fc': the activations lack 'fc'"):  # `out` is computed from it
        list(compare_activations(FLOW, renamed, INPUTS, truth(FLOW, INPUTS), only=["out"]))
    incomplete = without("fc1", renamed)
    assert [c.name for c in compare_activations(FLOW, incomplete, INPUTS, truth(FLOW, INPUTS), only=["q"])] == ["q"]


def test_a_missing_truth_and_an_unknown_step_are_named() -> None:
    exact = truth(FLOW, INPUTS)
    with pytest.raises(DataflowError, match=r"^step 'fc': the truth lacks 'fc'"):
        list(compare_activations(FLOW, activations(), INPUTS, without("fc", exact)))
    with pytest.raises(DataflowError, match=r"^the flow has no step 'fcc'; nearest: 'fc'"):
        list(compare_activations(FLOW, activations(), INPUTS, exact, only=["fcc"]))


def test_a_shape_that_does_not_fit_a_view_is_blamed_on_the_activation() -> None:
    wrong = activations()
    wrong["q"] = wrong["q"][..., :-1]
    compared = list(compare_activations(FLOW, wrong, INPUTS, truth(FLOW, INPUTS)))
    culprit = first_divergence(compared)
    assert culprit is not None
    assert culprit.name == "q"
    assert "shape" in str(culprit)
    (context,) = [c for c in compared if c.name == "context"]
    assert "'q:2 heads' can't be taken of shape [1, 5, 5]" in str(context)
    assert compared[-1].passes


def test_activations_that_are_tensors_are_named() -> None:
    tensors = {**activations(), "fc": torch.zeros(1, 5, 6)}
    with pytest.raises(DataflowError, match=r"^'fc' is given as a Tensor; give a NumPy array"):
        list(compare_activations(FLOW, tensors, INPUTS, truth(FLOW, INPUTS)))


def in_half_precision(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("name", ["x", "fc.weight"])
def test_a_wrong_input_is_blamed_instead_of_its_op(name: str) -> None:
    """This needs an implementation that exposes its inputs among its activations."""
    wrong = {**INPUTS, name: in_half_precision(INPUTS[name])}
    exposed = {**activations(wrong), name: wrong[name]}
    compared = list(compare_activations(FLOW, exposed, INPUTS, truth(FLOW, INPUTS)))
    assert [(c.name, c.op) for c in compared if not c.passes] == [(name, "given")]
    message = str(first_divergence(compared))
    assert message.startswith(f"{name} (given): not what was given: ")
    assert message.endswith("; it looks like the right one, rounded to float16")
    correct = {**activations(), **INPUTS}
    assert [c.name for c in compare_activations(FLOW, correct, INPUTS, truth(FLOW, INPUTS))] == [
        "ln",
        "q",
        "context",
        "fc",
        "out",
        "side",
    ]
    (only,) = compare_activations(FLOW, exposed, INPUTS, truth(FLOW, INPUTS), only=[name])
    assert only.name == name
    cut = {**exposed, name: wrong[name][..., :-1]}
    culprit = first_divergence(compare_activations(FLOW, cut, INPUTS, truth(FLOW, INPUTS), only=[name]))
    assert culprit is not None
    assert "shape" in str(culprit)
