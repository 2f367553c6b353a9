"""`nox -s parity` on ten seconds of speech: all activations pass, and the reports are valid."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from playwright.sync_api import Browser

from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint, load_checkpoint
from reference.flow import whisper as whisper_flow
from reference.golden import activations as golden_activations
from reference.models.capture import activation_names, capture_max
from reference.numerics.compare import Verdict, Worst
from reference.parity import __main__ as parity_command
from reference.parity.activations import Compared, Error, first_divergence
from reference.parity.clip import ClipReport, Programs
from reference.parity.document import SCHEMA, document
from reference.parity.page import page
from reference.parity.window import Window

Parity = tuple[Programs, ClipReport]


@pytest.fixture(scope="module")
def report(parity: Parity, device: str) -> dict[str, Any]:
    data = document([parity[1]], {}, "tiny.en", load_checkpoint("tiny.en"), device)
    return json.loads(json.dumps(data, allow_nan=False))


def test_real_speech_is_equal_at_every_activation(parity: Parity) -> None:
    programs, clip = parity
    assert clip.first_divergence is None, str(clip.first_divergence)
    (window,) = clip.windows
    assert [a.name for a in window.activations] == activation_names(programs.model.dims)
    assert all(a.in_situ.passes and a.pytorch.passes for a in window.activations)
    assert [a.op for a in window.activations] == [step.op for step in whisper_flow.of_max(programs.model.dims).values()]
    assert len(window.question.forced) >= 64
    assert {stage.name for stage in clip.before} == {"audio.samples", "log_mel"}
    assert len(window.outputs) == 2
    steps = ("scores", "weights", "standardized", "filtered", "matrix", "path", "probabilities", "times", "segments")
    assert [stage.name for stage in clip.after] == [f"words.{step}" for step in steps]


def test_max_has_not_drifted_from_the_stored_fingerprints(parity: Parity) -> None:
    stored = golden_activations.recall("tiny.en")
    question = golden_activations.Case("tiny.en").question(stored)
    activations = capture_max(parity[0].instrumented, question.mel.astype("float32"), question.prompt, question.forced)
    # Activations inside the decoder's fused attention are stored only for the references.
    stored["activations"] = {name: stored["activations"][name] for name in activation_names(parity[0].model.dims)}
    assert list(golden_activations.drift(stored, activations, golden_activations.MAX_DRIFT)) == []
    assert stored["tokens"] == parity[1].max.windows[0].tokens
    assert stored["text"] == parity[1].max.result["text"]


def test_a_change_in_the_third_digit_of_one_stored_element_is_drift() -> None:
    stored = golden_activations.recall("tiny.en")
    case = golden_activations.Case("tiny.en")
    exact = case.by_numpy(case.question(stored))
    assert list(golden_activations.drift(stored, exact, golden_activations.REFERENCE_DRIFT)) == []
    stored["activations"]["encoder.blocks.2.mlp.0"]["values"][5] *= 1.001
    (message,) = golden_activations.drift(stored, exact, golden_activations.REFERENCE_DRIFT)
    assert message.startswith("encoder.blocks.2.mlp.0: element")


def test_the_json_report_conforms_to_its_schema(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)
    assert report["equal"] is True
    (clip,) = report["clips"]
    assert clip["first_divergence"] is None
    assert clip["tokens_equal"] and clip["text_equal"]
    broken = json.loads(json.dumps(report))
    del broken["clips"][0]["activations"][3]["worst"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def compared(name: str, shape: tuple[int, ...], ratios: tuple[float, float, float], worst: Worst | None) -> Compared:
    """Return the comparison of an activation that passes."""
    worst_case_ratio, rms_ratio, pytorch = ratios
    verdict = Verdict(1, worst_case_ratio=worst_case_ratio, rms_ratio=rms_ratio, worst=worst)
    return Compared(name, "linear", shape, verdict, Verdict(1, rms_ratio=pytorch), Error(0.0, 0.0), None, 1.0)


def test_a_header_stands_above_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    activations = [
        compared("encoder.conv1", (1, 3000, 384), (0.0134, 0.2411, 0.2394), Worst((0, 7, 12), -0.01189, -0.0118, 1e-3)),
        compared("decoder.blocks.3.cross_attn.residual", (1, 91, 384), (0.5, 12.25, 123.5), None),
    ]
    assert list(parity_command._progress(iter(activations), len(activations))) == activations
    header, first, second = capsys.readouterr().out.splitlines()
    titles = ("activation", "shape", "worst-case ratio", "RMS ratio", "(PyTorch)", "worst element")
    assert header.split() == " ".join(titles).split()
    values = (
        ("encoder.conv1", "1×3000×384", "0.013", "0.241", "(0.239)", "worst [0, 7, 12] -0.01189"),
        ("decoder.blocks.3.cross_attn.residual", "1×91×384", "0.500", "12.250", "(123.500)", ""),
    )
    for line, texts in zip((first, second), values, strict=True):
        assert line.startswith("ok ")
        for title, text in zip(titles, texts, strict=True):
            begin = header.index(title)
            column = line[begin:] if title == titles[-1] else line[begin : begin + max(len(title), len(text))]
            assert column.strip() == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_chromium(
    scheme: str, width: int, browser: Browser, parity: Parity, report: dict[str, Any], tmp_path: Path
) -> None:
    """It works offline without errors, fits the screen, and its pictures have its color scheme."""
    path = tmp_path / "parity.html"
    path.write_text(page([parity[1]], report, parity[0].tokenizer), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
    shown = context.new_page()
    problems: list[str] = []
    shown.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on(
        "request",
        lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    shown.goto(path.as_uri())
    assert shown.locator("#verdict").inner_text().startswith("Equal within rounding")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    pictures = shown.evaluate(
        "[...document.images].map(image => [image.naturalWidth, image.currentSrc.length, image.src.length])"
    )
    assert len(pictures) == 4
    assert all(natural > 500 for natural, _, _ in pictures)
    assert all((current != light) == (scheme == "dark") for _, current, light in pictures)
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    shown.locator("summary").click()
    assert shown.locator("tbody tr").count() == len(report["clips"][0]["activations"])
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []


def test_words_that_differ_are_marked(parity: Parity, report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    changed["clips"][0]["text"]["max"] = "Ever tried, <b>never</b> failed."
    html = page([parity[1]], changed, parity[0].tokenizer)
    assert "<mark>&lt;b&gt;never&lt;/b&gt;</mark>" in html


@pytest.mark.parametrize(
    ("arguments", "message"), [(["missing.wav"], "missing.wav"), (["--model", "enormous"], "enormous")]
)
def test_bad_input_is_reported_and_writes_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reference.parity", *arguments, "--report", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("parity: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "compiling" not in done.stderr  # it is reported at once
    assert not (tmp_path / "report").exists()


def test_a_mistake_in_the_weights_of_max_is_named(parity: Parity, device: str) -> None:
    """Only MAX's copy of the weights lacks a bias."""
    programs, clip = parity
    checkpoint = load_checkpoint("tiny.en")
    name = "encoder.blocks.0.mlp.0"
    wrong = Checkpoint(
        checkpoint.dims,
        {**checkpoint.weights, f"{name}.bias": 0 * checkpoint.weights[f"{name}.bias"]},
        "a mistaken copy",
    )
    model = Whisper(wrong, device, capture=activation_names(checkpoint.dims))
    culprit = first_divergence(Window(clip.windows[0].question, model, programs.judge, programs.truth).compare())
    assert culprit is not None
    assert culprit.name == name
    assert culprit.resembles == "a term that is the same at every position is missing, or one too many (a bias?)"
