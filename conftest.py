"""What tests share: the device, the models compiled for it, their judges, and recorded speech."""

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeVar

import numpy as np
import pytest
import torch
import whisper
from playwright.sync_api import Browser, sync_playwright

from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint, load_checkpoint
from reference.clips import packaged_clips
from reference.models.float64 import NumpyWhisper
from reference.models.openai import load_openai
from reference.ops import TABLE, rows_on
from reference.ops.suite import Suite, suite
from reference.parity.clip import ClipReport, Programs, compare_clip

# Nothing is downloaded by a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device gpu` runs everything that is compiled on the accelerator."""
    parser.addoption("--device", default="cpu", choices=["cpu", "gpu"], help="where MAX runs")
    parser.addoption(
        "--record", action="store_true", help="with -m bench: keep these ratios, to be held against from now on"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs compiled graphs, and skip rows that the device lacks."""
    device = config.getoption("--device")
    missing = TABLE.keys() - rows_on(device).keys()
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("compiles")
            op = (
                item.callspec.params.get("op")
                if isinstance(item, pytest.Function) and hasattr(item, "callspec")
                else None
            )
            if op in missing:
                item.add_marker(pytest.mark.skip(reason=f"{op} is not there on the {device}"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device that MAX compiles for."""
    return request.config.getoption("--device")


T = TypeVar("T", np.ndarray, torch.Tensor)
Features = TypeVar("Features")


def remembering(encode: Callable[[T], Features]) -> Callable[[T], Features]:
    """An encoder is the slowest part of the suite, and many tests show it the same windows."""
    known: OrderedDict[bytes, Features] = OrderedDict()

    def encode_once(mel: T) -> Features:
        key = hashlib.sha256(np.asarray(mel).tobytes()).digest()
        if key not in known:
            known[key] = encode(mel)
        if len(known) > 100:
            known.popitem(last=False)
        return known[key]

    return encode_once


class Trio:
    """One checkpoint three times over: on MAX, in OpenAI Whisper, and in NumPy float64."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.checkpoint = checkpoint
        self.model = Whisper(checkpoint, device)
        self.judge: whisper.Whisper = load_openai(checkpoint)
        self.judge.encoder.forward = remembering(self.judge.encoder.forward)
        self.truth = NumpyWhisper(checkpoint)


@pytest.fixture(scope="session")
def trio(device: str) -> Callable[[str], Trio]:
    """`trio("tiny.en")` or `trio("base")`: compiled once per run."""
    return cache(lambda name: Trio(load_checkpoint(name), device))


@pytest.fixture(scope="session")
def tiny_en(trio: Callable[[str], Trio]) -> Trio:
    """The English-only model, whose weights always come along."""
    return trio("tiny.en")


@pytest.fixture(scope="session")
def base(trio: Callable[[str], Trio]) -> Trio:
    """The multilingual model of the extra `base`."""
    return trio("base")


@pytest.fixture(scope="session")
def ops_suite(device: str) -> Suite:
    """The table of ops, compiled once per run."""
    return suite(device)


@pytest.fixture(scope="session")
def parity(device: str) -> tuple[Programs, ClipReport]:
    """Everything that `nox -s parity` compares, on ten seconds of a person speaking."""
    programs = Programs(load_checkpoint("tiny.en"), device)
    return programs, compare_clip(packaged_clips()["beckett"], programs, lambda activations, n: activations)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in each run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser, in which reports are looked at."""
    path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()
