"""Two files compared: verdicts, exit status, JSON, the op alone, and input that can't be used."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import reference.port
from reference.compare import main
from reference.numerics.compare import compare
from reference.ops.tensors import from_torch, to_torch
from reference.port import (
    PortError,
    assert_parity,
    judge_port,
    load_activations,
    load_original,
    save_activations,
    save_original,
    trace,
)
from reference.port.document import SCHEMA
from reference.port.expected import expected
from tests.port.originals import ORIGINALS

Arrays = dict[str, np.ndarray]


@pytest.fixture
def original(tmp_path: Path) -> tuple[Path, Arrays]:
    """Return a stored original, and what its modules compute."""
    torch.manual_seed(0)
    made = ORIGINALS["llama"]()
    traced = trace(made.module, *made.inputs)
    save_original(tmp_path / "original.safetensors", traced)
    own = traced.run()
    return tmp_path / "original.safetensors", {name: from_torch(own[name]) for name in traced.shown_by_hooks}


def wrong(arrays: Arrays) -> Arrays:
    """Return a port whose activation function is off in one element of the second sequence."""
    changed = arrays["layers.1.act"].copy()
    changed[1, 3, 5] += 0.01
    return {**arrays, "layers.1.act": changed}


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_original_is_stored_and_loaded(name: str, tmp_path: Path) -> None:
    made = ORIGINALS[name]()
    traced = trace(made.module, *made.inputs)
    save_original(tmp_path / "x.safetensors", traced)
    loaded = load_original(tmp_path / "x.safetensors")
    assert (loaded.flow, loaded.inputs, loaded.outputs) == (traced.flow, traced.inputs, traced.outputs)
    for mine, theirs in zip(loaded.run().values(), traced.run().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_equal_port_exits_with_0(
    original: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, arrays = original
    save_activations(tmp_path / "port.safetensors", {**arrays, "mine": np.ones(3, np.float32)})
    assert main([str(path), str(tmp_path / "port.safetensors")]) == 0
    out = capsys.readouterr().out
    assert f"all {len(arrays)} activations are equal within rounding" in out
    assert "1 arrays mean nothing to the original (--names, --propose): mine" in out


def test_a_difference_is_named_stored_and_cut_out(
    original: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, arrays = original
    np.savez(tmp_path / "port.npz", **wrong(arrays))  # type: ignore[arg-type]
    options = ["--json", str(tmp_path / "out.json"), "--minimise", str(tmp_path / "alone.py")]
    assert main([str(path), str(tmp_path / "port.npz"), *options]) == 1
    assert "the first activation that differs is layers.1.act" in capsys.readouterr().out
    stored = json.loads((tmp_path / "out.json").read_text())
    jsonschema.validate(stored, SCHEMA)
    assert stored["first_divergence"] == "layers.1.act"
    # MAX, if a test before this one used it, has changed the environment behind Python's back.
    environment = dict(os.environ)
    alone = subprocess.run([sys.executable, tmp_path / "alone.py"], capture_output=True, text=True, env=environment)
    said = "layers.1.act: the port is off by up to 0.01; a correct result by up to "
    assert alone.stdout.startswith(said), alone.stderr
    assert load_activations(tmp_path / "alone.safetensors")["port"].shape == (1, 1, 64)  # one token of one sequence


def test_assert_parity_names_the_culprit_and_a_command_that_shows_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    made = ORIGINALS["llama"]()
    own = {name: from_torch(x) for name, x in trace(made.module, *made.inputs).run().items()}
    assert len(assert_parity(made.module, own, *made.inputs)) == len(own)
    with pytest.raises(
        AssertionError, match=r"the first activation that differs is layers\.1\.act, number \d+ of the "
    ) as caught:
        assert_parity(made.module, lambda tokens: wrong(own), *made.inputs, names={"embed": "embed"})
    command = str(caught.value).splitlines()[-1].partition("python -m reference.compare ")[2]
    assert main(command.split()) == 1
    assert "layers.1.act" in capsys.readouterr().out


def test_names_and_layouts_can_be_mapped(original: tuple[Path, Arrays], tmp_path: Path) -> None:
    path, arrays = original
    port = {"tok": arrays["embed"].swapaxes(1, 2).copy(), "out": arrays["head"]}
    (tmp_path / "names.json").write_text('{"tok": "embed:transposed", "out": "head"}')
    save_activations(tmp_path / "port.safetensors", port)
    assert main([str(path), str(tmp_path / "port.safetensors"), "--names", str(tmp_path / "names.json")]) == 0


def test_names_are_proposed_by_shape_and_values(
    original: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, arrays = original
    own = dict(zip((f"t{i}" for i in range(len(arrays))), arrays.values()))
    own["t0"] = own["t0"].swapaxes(1, 2)
    rng = np.random.default_rng(0)
    noisy = {name: a * (1 + rng.standard_normal(a.shape) / 100).astype(np.float32) for name, a in own.items()}
    save_activations(tmp_path / "port.safetensors", {**noisy, "mine": np.ones(3, np.float32)})
    names, port = tmp_path / "names.json", str(tmp_path / "port.safetensors")
    assert main([str(path), port, "--propose", str(names)]) == 0
    assert "mine is like nothing in the original" in capsys.readouterr().out
    proposed = json.loads(names.read_text())
    assert proposed == dict(zip(own, ["embed:transposed", *list(arrays)[1:]]))
    assert main([str(path), port, "--names", str(names)]) == 1  # it is off by one percent


def test_the_page_shows_the_culprit(original: tuple[Path, Arrays], tmp_path: Path) -> None:
    path, arrays = original
    save_activations(tmp_path / "port.safetensors", wrong(arrays))
    assert main([str(path), str(tmp_path / "port.safetensors"), "--html", str(tmp_path / "page.html")]) == 1
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Different from layers.1.act on" in text and text.count("data:image/svg+xml") == 4
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"x": a["embed"]}, r"none of the port's arrays has a name of the original's; the port has x, "),
        (
            lambda a: {"embed": a["embed"][:, :3]},
            r"'embed' has shape \[2, 3, 32\], .* \[2, 11, 32\]; give both the same",
        ),
        (lambda a: {"embed": a["embed"].swapaxes(1, 2)}, r"\[2, 32, 11\], .*; transpose it to the original's layout"),
        (lambda a: {"embed": a["embed"].reshape(22, 32)}, r"; reshape it to the original's"),
        (
            lambda a: {"embed": a["embed"].astype(np.float16)},
            "'embed' is float16, not float32; say that the port computes in float16",
        ),
        (
            lambda a: {"layers.1": a["layers.1"], "layers": 2 * a["layers.1"]},
            "and 'layers' are both 'layers.1', but differ",
        ),
        (lambda a: {"embed": a["embed"].astype(np.float64)}, "'embed' is float64, not float32; convert it to float32"),
        (lambda a: {"embed": a["embed"].tolist()}, "'embed' is a list; give NumPy arrays"),
        (lambda a: {0: a["embed"]}, "an array's name is 0, a int; give a string"),
        (lambda a: {}, "the port shows no arrays"),
        (
            lambda a: {"embed": a["embed"], "typo": a["head"]},
            "not show the original's result, 'head', .*; 1 of the port's arrays",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message: str, original: tuple[Path, Arrays]) -> None:  # type: ignore[no-untyped-def]
    path, arrays = original
    with pytest.raises(PortError, match=message):
        list(judge_port(load_original(path), change(arrays)))


def test_nan_is_a_difference(original: tuple[Path, Arrays]) -> None:
    path, arrays = original
    broken = arrays["layers.0.q"].copy()
    broken[0, 0, 0] = np.nan
    first = next(one for one in judge_port(load_original(path), {**arrays, "layers.0.q": broken}) if not one.passes)
    assert first.name == "layers.0.q" and "not finite where float64 is" in str(first)


def test_another_weight_is_blamed_before_anything_it_changes(original: tuple[Path, Arrays]) -> None:
    path, arrays = original
    traced = load_original(path)
    weight = from_torch(traced.given["layers.0.q.weight"]).copy()
    weight[0, 0] += 1
    first = next(iter(judge_port(traced, {**arrays, "layers.0.q.weight": weight})))
    assert (first.name, first.op) == ("layers.0.q.weight", "given") and not first.passes


def test_files_that_can_not_be_used_are_named(
    original: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, arrays = original
    save_activations(tmp_path / "port.safetensors", arrays)
    (tmp_path / "rubbish.npz").write_bytes(b"rubbish")
    (tmp_path / "rubbish.safetensors").write_bytes(b"rubbish")
    (tmp_path / "port.txt").write_text("")
    (tmp_path / "list.json").write_text("[]")
    torch.save([1, 2], tmp_path / "list.pt")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(subprocess.run, file)
    port, names = tmp_path / "port.safetensors", ["--names", str(tmp_path / "list.json")]
    for arguments, message in (
        ([path, tmp_path / "missing.npz"], "missing.npz can't be read"),
        ([path, tmp_path / "rubbish.npz"], "rubbish.npz can't be read"),
        ([path, tmp_path / "rubbish.safetensors"], "rubbish.safetensors can't be read"),
        ([path, tmp_path / "port.txt"], ".txt is unknown; give one of .npz, .safetensors, .pt"),
        ([path, tmp_path / "list.pt"], "holds a list, not arrays by name"),
        ([path, tmp_path / "objects.npz"], "objects.npz can't be read"),
        ([path, tmp_path / "evil.pt"], "without running what it contains; save tensors alone"),
        ([tmp_path / "other.safetensors", port], "is no original; write one by"),
        ([tmp_path / "missing", port], "missing can't be read as an original"),
        ([tmp_path, port], "it is a folder"),
        ([path, port, "--json", tmp_path], "is a folder; name a file"),
        ([path, port, "--html", tmp_path / "no" / "page.html"], "there is no folder"),
        ([path, port, *names], "list.json must be a JSON object"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize("name", ORIGINALS)
def test_each_op_counts(name: str) -> None:
    """A result that is off anywhere fails: of exact ops, too, whatever its sign."""
    torch.manual_seed(0)
    made = ORIGINALS[name]()
    traced = trace(made.module, *made.inputs)
    own = {op: from_torch(x) for op, x in traced.run().items()}
    known = dict(traced.given) | {op: to_torch(x) for op, x in own.items()}
    rng = np.random.default_rng(0)
    for op, right in own.items():
        if right.dtype.kind != "f" or not right.size:
            continue
        approx = expected(traced, op, known).approx
        for flat in rng.choice(right.size, min(right.size, 8), replace=False):
            changed = right.copy()
            changed.flat[flat] += 1 + abs(changed.flat[flat]) / 8
            verdict = compare(changed, approx, right.dtype)
            assert not verdict.passes, f"{op} at {flat}: {verdict}"


class Several(torch.nn.Module):
    """Ops with several results, or without a row."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = torch.nn.GRU(6, 6, batch_first=True, bidirectional=True), torch.nn.LSTM(12, 6)
        self.cell, self.attention = torch.nn.LSTMCell(6, 6), torch.nn.MultiheadAttention(6, 2, batch_first=True)
        self.conv, self.norm = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor, nothing: None) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.lstm(self.gru(x)[0])
        h, _ = self.cell(y[:, 0])
        z, _ = self.attention(y, y, y, attn_mask=torch.ones(y.shape[1], y.shape[1]).triu(1).bool())
        z = torch.zeros_like(z).scatter(-1, torch.zeros(2, 5, 1, dtype=torch.int64), z) + torch.ones(6).cumsum(0)
        return self.norm(self.conv(z[:, None])).flatten(1), h


def test_ops_with_several_results_are_judged() -> None:
    torch.manual_seed(0)
    traced = trace(Several(), torch.randn(2, 5, 6), None)
    own = {op: from_torch(x) for op, x in traced.run().items()}
    for port in (own, {op: own[op] for op in traced.outputs}):
        assert not [str(one) for one in judge_port(traced, port) if not one.passes]
    first = traced.outputs[0]
    assert not all(one.passes for one in judge_port(traced, {**own, first: own[first] * np.float32(1.001)}))


def test_a_module_of_pytorch_can_be_the_port() -> None:
    torch.manual_seed(0)
    original, port = (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()) for _ in range(2))
    port.load_state_dict(original.state_dict())
    assert len(assert_parity(original, port, torch.randn(3, 4))) == 2
    port[1] = torch.nn.GELU(approximate="tanh")
    with pytest.raises(AssertionError, match="differs is 1, number 2 of the 2 compared"):
        assert_parity(original, port, torch.randn(3, 4))


def test_what_is_nan_in_the_original_says_nothing() -> None:
    original = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    traced = trace(original, torch.full((3, 4), torch.nan))
    own = {op: from_torch(x) for op, x in traced.run().items()}
    with pytest.raises(PortError, match="'0' is NaN in the original, too; give inputs"):
        list(judge_port(traced, own))


def test_an_op_without_a_row_is_marked(original: tuple[Path, Arrays]) -> None:
    """Its bounds are said to be estimates, and a mistake in it is seen."""

    class Normalized(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.vector_norm(x, dim=-1)

    traced = trace(Normalized(), torch.randn(40, 64))
    (name,) = traced.outputs
    value = from_torch(traced.run()[name])
    (one,) = judge_port(traced, {name: value})
    assert one.passes and one.estimated and one.op == "linalg_vector_norm"
    (one,) = judge_port(traced, {name: value * np.float32(1 + 1e-5)})
    assert not one.passes


def test_the_example_of_the_page_fails_as_it_says() -> None:
    text = (Path(reference.port.__file__).parent / "README.md").read_text(encoding="utf-8")
    example, said = re.findall(r"```(?:python|text)\n(.*?)```", text, flags=re.DOTALL)[:2]
    torch.manual_seed(0)
    with pytest.raises(AssertionError) as caught:
        exec(compile(example, "README.md", "exec"), {})
    first_line = said.splitlines()[0].removeprefix("AssertionError: ")
    assert str(caught.value).splitlines()[0] == first_line
    said, message = (" ".join(x.split()) for x in (said, str(caught.value)))
    for words in ("2 (linear → gelu):", "elements exceed the worst-case bound", "its bounds are estimates"):
        assert words in said and words in message
