"""The report of a comparison: JSON, terminal and page."""

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from rich.console import Console

from tests.upgrade.defects import read_states
from tests.upgrade.document import document
from tests.upgrade.findings import GONE, THERE, Activation, Findings, Op, Pair, Transcript
from tests.upgrade.noise import N_AGREEING, Speed
from tests.upgrade.page import page
from tests.upgrade.terminal import show

NORM = Activation("layer_norm", 1e-6, "", "a")
FOUND = Findings(
    Pair({"python": "3.11", "max": "26.6.0"}, {"python": "3.11", "max": "26.7.0"}),
    ops={
        "softmax float32": Pair(
            Op(0.1, 0.2, "", "a"),
            Op(
                float("inf"),
                float("inf"),
                "<not> finite\nprint(" + "Example(op='softmax', dtype='float32'), " * 10 + ")",
                "b",
            ),
        ),
        "gelu float32": Pair(Op(0.1, 0.2, "", "a"), "RuntimeError: does not compile"),
    },
    activations={
        "encoder.blocks.0.attn_ln": Pair(NORM, Activation("layer_norm", 2e-6, "", "b")),
        "encoder.ln_post": Pair(NORM, NORM),
    },
    transcripts={"joined": Pair(Transcript([[1, 2]], ""), Transcript([[1, 3]], "token 1 is 3 and not 2"))},
    timing={"softmax": Pair(None, None), "tiny.en step": Pair(None, None)},
    speed={
        "softmax": [Speed(1e-3, 1.3e-3, 1.3, 1.2, 1.4)] * N_AGREEING,
        "tiny.en step": [Speed(1e-3, 1e-3, 1, 0.9, 1.1)],
    },
    cost={"CPU seconds to load, cold": Pair(50.0, 90.0), "MB compiled": Pair(50.0, "no such model")},
    defects={"test_tanh_of_nan": Pair(THERE, GONE), "test_sum_of_halves": Pair(THERE, THERE)},
)
NOTHING = Findings(Pair({"max": "26.7.0"}, "ImportError: cannot import name 'Graph'"))


@pytest.mark.parametrize("findings", [FOUND, NOTHING])
def test_findings_are_valid_json(findings: Findings) -> None:
    data = json.loads(json.dumps(document(findings, "26.6.0", "26.7.0"), allow_nan=False))
    assert data["verdict"] == findings.verdict
    assert data["machine"]["cores"] > 0
    assert data["ops"].keys() == findings.ops.keys()


def test_the_json_names_results_that_are_worse() -> None:
    data: dict[str, Any] = document(FOUND, "26.6.0", "26.7.0")
    assert list(data["wrong"]) == ["op softmax float32", "op gelu float32", "transcript joined", "cost MB compiled"]
    assert data["slower"] == {"softmax": "1.30 times as long", "CPU seconds to load, cold": "1.80 times as much"}
    assert data["different"] == [
        *list(data["wrong"])[:1],
        "activation encoder.blocks.0.attn_ln",
        "transcript joined",
        "defect test_tanh_of_nan",
    ]
    assert data["ops"]["softmax float32"]["new"]["share"] is None


def printed(findings: Findings) -> str:
    terminal = io.StringIO()
    show(findings, Console(width=150, file=terminal), "26.6.0", "latest")
    return terminal.getvalue()


def test_a_terminal_shows_the_verdict_last() -> None:
    *_, last = printed(FOUND).splitlines()
    assert last == "WRONG: MAX 26.6.0 → 26.7.0 (latest)"


def test_a_terminal_names_all_results_that_are_worse() -> None:
    text = printed(FOUND)
    assert "WRONG  op softmax float32: <not> finite" in text
    assert "SLOWER softmax: 1.30 times as long" in text
    assert "SLOWER CPU seconds to load, cold: 1.80 times as much" in text
    assert "defect test_tanh_of_nan: there, now gone" in text
    assert "grew at most 2.00 times, that of encoder.blocks.0.attn_ln" in text


def test_a_version_that_does_not_import_can_be_shown() -> None:
    assert "WRONG: MAX 26.7.0 (26.6.0) → ? (latest)" in printed(NOTHING)
    assert "cannot import name" in page(NOTHING, document(NOTHING, "26.6.0", "26.7.0"))


def test_the_page_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """The page loads nothing, fits a phone, and shows what is worse."""
    path = tmp_path / "upgrade.html"
    path.write_text(page(FOUND, document(FOUND, "26.6.0", "26.7.0")), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    loaded, problems = list[str](), list[str]()
    tab.on("request", lambda request: loaded.append(request.url))
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto(path.as_uri())
    assert [url for url in loaded if not url.startswith(("file:", "data:"))] == []
    assert problems == []
    assert tab.locator("#verdict").inner_text() == "Wrong: Whisper on MAX 26.7.0, compared with 26.6.0"
    assert "<not> finite" in tab.locator("body").inner_text()
    assert tab.locator("img").count() == 2
    assert all(tab.locator("img").evaluate_all("images => images.map(image => image.naturalWidth > 0)"))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_states_of_reproducers_are_read_from_pytests_xml(tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    suite = ET.Element("testsuite")
    for name, outcome in {
        "test_there": ("skipped", {"type": "pytest.xfail", "message": "MAX 26.7.0: it is"}),
        "test_gone": ("failure", {"message": "[XPASS(strict)] MAX 26.7.0: it was"}),
        "test_other": ("failure", {"message": "ValueError: something else"}),
        "test_fixed": None,
    }.items():
        case = ET.SubElement(suite, "testcase", name=name)
        if outcome:
            ET.SubElement(case, outcome[0], outcome[1])
    ET.ElementTree(suite).write(results)
    assert read_states(results) == {
        "test_there": THERE,
        "test_gone": GONE,
        "test_other": "ValueError: something else",
        "test_fixed": GONE,
    }
