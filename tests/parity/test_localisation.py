"""Judge a small Whisper in PyTorch instead of MAX.

Without a mistake it is equal everywhere. With one, the wrong activation is blamed first.
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
import whisper
from torch import nn
from whisper.model import MultiHeadAttention, disable_sdpa

from maxwhisper import ModelDimensions
from reference.flow import whisper as whisper_flow
from reference.flow.dataflow import names
from reference.models.capture import Activations, capture_openai
from reference.models.float64 import decoder_inputs
from reference.models.openai import in_float64
from reference.ops.float64_error import apart_in_situ
from reference.parity.activations import Compared, Error, compare_activations, first_divergence, truth
from reference.parity.window import Output, Question

DIMS = ModelDimensions(80, 20, 32, 4, 2, 51864, 40, 32, 4, 2)
PROMPT, FORCED = [50360, 11, 50257, 50362], [7, 300, 13, 50256, 4000, 1]


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    """Make a model with random weights, large enough that every op matters."""
    torch.manual_seed(0)
    random_model = whisper.model.Whisper(whisper.model.ModelDimensions(**vars(DIMS))).eval()
    with torch.no_grad():
        for name, parameter in random_model.named_parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.5)
                + (1.0 if "ln.weight" in name else 0.0)
            )
    return random_model


@pytest.fixture(scope="module")
def inputs(model: whisper.Whisper) -> dict[str, np.ndarray]:
    mel = np.random.default_rng(1).standard_normal((1, 80, 40)).astype(np.float32)
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return {**weights, "log_mel": mel, **decoder_inputs(np.array([[*PROMPT, *FORCED]]))}


@pytest.fixture(scope="module")
def exact(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return truth(whisper_flow.whole(DIMS), inputs)


def run(model: whisper.Whisper, inputs: dict[str, np.ndarray]) -> Activations:
    with disable_sdpa():
        return capture_openai(model, inputs["log_mel"][0], PROMPT, FORCED)


def test_pytorch_without_a_mistake_is_equal(
    model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    compared = list(compare_activations(whisper_flow.whole(DIMS), run(model, inputs), inputs, exact))
    assert [c.name for c in compared] == names(whisper_flow.whole(DIMS))
    assert first_divergence(compared) is None, str(first_divergence(compared))


def test_openai_whisper_in_float64_is_the_definitions(model: whisper.Whisper, inputs: dict[str, np.ndarray]) -> None:
    """Compared at every activation, in prefill and in steps with the KV cache."""
    with in_float64(model) as judge, disable_sdpa():
        activations = capture_openai(judge, inputs["log_mel"][0], PROMPT, FORCED)
    assert {array.dtype for array in activations.values()} == {np.dtype(np.float64)}
    ratios = dict(apart_in_situ(whisper_flow.whole(DIMS), {**inputs, **activations}))
    assert ratios.keys() == activations.keys()
    assert max(ratios.values()) <= 1, max(ratios, key=ratios.__getitem__)


def test_fused_attention_is_equal(
    model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    """PyTorch's fused attention (SDPA) does not expose scores and weights."""
    activations = capture_openai(model, inputs["log_mel"][0], PROMPT, FORCED)
    assert not any(name.endswith((".scores", ".weights")) for name in activations)
    culprit = first_divergence(compare_activations(whisper_flow.whole(DIMS, fused=True), activations, inputs, exact))
    assert culprit is None, str(culprit)


def biased_keys(model: whisper.Whisper) -> None:
    key = model.encoder.blocks[1].attn.key
    key.bias = nn.Parameter(torch.linspace(-1, 1, 32))


@pytest.mark.parametrize("fused", [False, True])
def test_an_added_key_bias_is_reported_as_a_rewrite(
    fused: bool, model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    """Activations are equal from the context on, and the report says so."""
    rewritten = deepcopy(model)
    biased_keys(rewritten)
    activations = capture_openai(rewritten, inputs["log_mel"][0], PROMPT, FORCED) if fused else run(rewritten, inputs)
    compared = list(compare_activations(whisper_flow.whole(DIMS, fused), activations, inputs, exact))
    assert first_divergence(compared) is None, str(first_divergence(compared))
    (key,) = [c for c in compared if c.rewritten]
    assert not key.in_situ.passes
    assert str(key) == (
        "encoder.blocks.1.attn.key (linear): keys carry a bias, which softmax ignores; "
        "equal from encoder.blocks.1.attn.context on"
    )


def replace_gelu(model: whisper.Whisper, by: nn.Module) -> None:
    model.encoder.blocks[1].mlp[1] = by


def set_weight(path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[whisper.Whisper], None]:
    def plant(model: whisper.Whisper) -> None:
        parameter = model.get_parameter(path)
        with torch.no_grad():
            parameter.copy_(change(parameter.clone()))

    return plant


def one_element(weight: torch.Tensor) -> torch.Tensor:
    weight[3, 5] *= 1.01
    return weight


def drop_output(model: whisper.Whisper) -> None:
    model.decoder.blocks[1].cross_attn.register_forward_hook(lambda _, inputs, output: (output[0] * 0, output[1]))


def set_epsilon(module: nn.LayerNorm, epsilon: float) -> None:
    module.eps = epsilon


def swap(model: whisper.Whisper) -> None:
    model.encoder.blocks = nn.ModuleList([model.encoder.blocks[1], model.encoder.blocks[0]])


def loose_mask(model: whisper.Whisper) -> None:
    model.decoder.mask = torch.full((40, 40), -torch.inf).triu_(2)


def two_heads(model: whisper.Whisper) -> None:
    attn = model.encoder.blocks[1].attn
    assert isinstance(attn, MultiHeadAttention)
    attn.n_head = 2


def roll_logits(model: whisper.Whisper) -> None:
    model.decoder.register_forward_hook(lambda _, inputs, output: output.roll(1, dims=-1))


# Name: (function that plants the fault, expected culprit, resemblance that must be reported).
FAULTS: dict[str, tuple[Callable[[whisper.Whisper], None], str, str]] = {
    "tanh GELU": (lambda m: replace_gelu(m, nn.GELU("tanh")), "encoder.blocks.1.mlp.gelu", ""),
    "ReLU for GELU": (lambda m: replace_gelu(m, nn.ReLU()), "encoder.blocks.1.mlp.gelu", ""),
    "no GELU": (
        lambda m: replace_gelu(m, nn.Identity()),
        "encoder.blocks.1.mlp.gelu",
        "its input encoder.blocks.1.mlp.0, unchanged",
    ),
    "epsilon 1e-6": (lambda m: set_epsilon(m.decoder.blocks[0].attn_ln, 1e-6), "decoder.blocks.0.attn_ln", ""),
    "epsilon 1e-3": (lambda m: set_epsilon(m.encoder.ln_post, 1e-3), "encoder.ln_post", ""),
    "kernel flipped": (set_weight("encoder.conv1.weight", lambda w: w.flip(-1)), "encoder.conv1", ""),
    "square weight transposed": (
        set_weight("encoder.blocks.0.attn.out.weight", lambda w: w.T),
        "encoder.blocks.0.attn.out",
        "",
    ),
    "value bias dropped": (
        set_weight("decoder.blocks.1.attn.value.bias", torch.zeros_like),
        "decoder.blocks.1.attn.value",
        "a term that is the same at every position is missing, or one too many (a bias?)",
    ),
    "one element changed by 1 %": (
        set_weight("encoder.blocks.0.mlp.0.weight", one_element),
        "encoder.blocks.0.mlp.0",
        "wrong only at index 3 of axis 2",
    ),
    "a dead channel": (
        set_weight("decoder.blocks.0.cross_attn.query.weight", lambda w: w * (torch.arange(32) != 7)[:, None]),
        "decoder.blocks.0.cross_attn.query",
        "wrong only at index 7 of axis 2",
    ),
    "weights twice as large": (
        set_weight("decoder.blocks.0.attn.key.weight", lambda w: 2 * w),
        "decoder.blocks.0.attn.key",
        "a constant factor of 2",
    ),
    "positions shifted by one": (
        set_weight("decoder.positional_embedding", lambda w: w.roll(1, 0)),
        "decoder.positions",
        "",
    ),
    "cross-attention missing from the residual": (
        drop_output,
        "decoder.blocks.1.cross_attn.residual",
        "its input decoder.blocks.1.attn.residual, unchanged",
    ),
    "two layers swapped": (swap, "encoder.blocks.0.attn_ln", ""),
    "mask off by one": (loose_mask, "decoder.blocks.0.attn.scores", ""),
    "heads and head_dim swapped": (
        two_heads,
        "encoder.blocks.1.attn.scores",
        "shape [1, 2, 20, 20] instead of [1, 4, 20, 20]",
    ),
    "LM head rows shifted by one": (roll_logits, "decoder.logits", "shifted by one along axis 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_wrong_activation_is_named(
    fault: str, model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    plant, blamed, looks_like = FAULTS[fault]
    wrong = deepcopy(model)
    plant(wrong)
    culprit = first_divergence(compare_activations(whisper_flow.whole(DIMS), run(wrong, inputs), inputs, exact))
    assert isinstance(culprit, Compared)
    assert culprit.name == blamed, str(culprit)
    assert looks_like in culprit.resembles, culprit.resembles


def test_a_wrong_shape_is_named_and_later_activations_are_still_judged(
    model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    activations = run(model, inputs)
    for name in ("encoder.blocks.0.attn.key", "encoder.blocks.1.attn.scores"):
        wrong = {**activations, name: activations[name][:, :-1]}
        compared = list(compare_activations(whisper_flow.whole(DIMS), wrong, inputs, exact))
        culprit = first_divergence(compared)
        assert culprit is not None
        assert culprit.name == name
        assert len(compared) == len(whisper_flow.whole(DIMS))


def test_missing_heads_are_noticed_even_if_the_scores_are_judged_head_by_head(
    model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = run(model, inputs)
    monkeypatch.setattr("reference.ops.judge.LARGE", 10)
    assert first_divergence(compare_activations(whisper_flow.whole(DIMS), activations, inputs, exact)) is None
    name = "encoder.blocks.1.attn.scores"
    wrong = {**activations, name: activations[name][:, :3]}
    culprit = first_divergence(compare_activations(whisper_flow.whole(DIMS), wrong, inputs, exact))
    assert culprit is not None
    assert culprit.name == name
    assert "shape" in str(culprit)


def test_noise_on_keys_is_not_taken_for_a_bias(
    model: whisper.Whisper, inputs: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    activations = run(model, inputs)
    name = "encoder.blocks.0.attn.key"
    noise = 1e-5 * np.random.default_rng(0).standard_normal(activations[name].shape)
    wrong = {**activations, name: (activations[name] + noise).astype(np.float32)}
    culprit = first_divergence(compare_activations(whisper_flow.whole(DIMS), wrong, inputs, exact))
    assert culprit is not None
    assert culprit.name == name


def test_a_result_that_is_not_finite_has_an_infinite_error() -> None:
    assert Error.of(np.full(3, np.nan), np.ones(3)) == Error(np.inf, np.inf)
    assert Error.of(np.array([-np.inf, 1.5]), np.array([-np.inf, 1.0])) == Error(0.5, 0.5)
    assert not Output("logits", Error(np.inf, np.inf), Error(1e-6, 1e-5)).passes


def test_a_question_fits_the_context() -> None:
    tokenizer = whisper.tokenizer.get_tokenizer(multilingual=False)
    question = Question.about(
        np.zeros((80, 3000)), [tokenizer.sot_prev, *range(223), tokenizer.sot], list(range(300)), tokenizer, 448
    )
    assert question.tokens.shape == (1, 448)
