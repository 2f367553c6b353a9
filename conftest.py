"""Fixtures of all tests: the device, models compiled for it, the table of ops, and a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from maxwhisper.checkpoint import load_checkpoint
from reference.clips import packaged_clips
from reference.numerics.dtypes import DTYPES
from reference.ops import TABLE, rows_on
from reference.ops.suite import Suite, suite
from reference.parity.clip import ClipReport, Programs, compare_clip
from tests.support.implementations import Implementations

# Failed assertions there show their values, as in test files.
pytest.register_assert_rewrite("tests.support.decoding")

# A machine that is busy is no fault of an example.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

# Tests download nothing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `--device` and `--record`."""
    parser.addoption("--device", default="cpu", choices=["cpu", "gpu"], help="where MAX runs")
    parser.addoption(
        "--record",
        action="store_true",
        help="with -m bench: store these ratios as the baseline of later runs",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they need, and skip rows that the device does not support.

    On the CPU, ops in float16 differ from those in bfloat16 by how numbers are widened, and take a
    third of the table's compilation.
    """
    device = config.getoption("--device")
    missing = TABLE.keys() - rows_on(device).keys()
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("compiles")
            if parameter(item, "op") in missing:
                item.add_marker(pytest.mark.skip(reason=f"{parameter(item, 'op')} is not supported on the {device}"))
            if parameter(item, "dtype") == "float16" and device == "cpu":
                item.add_marker("thorough")


def parameter(item: pytest.Item, name: str) -> object:
    """Return a test's parameter of a name; None if it has none."""
    return item.callspec.params.get(name) if hasattr(item, "callspec") else None


class ByFolder(LoadScopeScheduling):
    """Gives a folder's tests to one process of pytest-xdist, as they share what they compile."""

    # Files that share nothing with the others of their folder, which is the largest.
    APART = ("tests/test_int8.py", "tests/test_processors.py")

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if path in self.APART else path.rpartition("/")[0]


@pytest.hookimpl(optionalhook=True)  # pytest runs without pytest-xdist, too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFolder:
    """Choose how pytest-xdist distributes tests."""
    return ByFolder(config, log)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Return the device that MAX compiles for: "cpu" or "gpu"."""
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def implementations(device: str) -> Callable[[str], Implementations]:
    """Return a function that loads "tiny.en" or "base", compiled once per run."""
    return cache(lambda name: Implementations(load_checkpoint(name), device))


@pytest.fixture(scope="session")
def tiny_en(implementations: Callable[[str], Implementations]) -> Implementations:
    """Return the English-only model, whose weights are always installed."""
    return implementations("tiny.en")


@pytest.fixture(scope="session")
def base(implementations: Callable[[str], Implementations]) -> Implementations:
    """Return the multilingual model, whose weights the extra `base` installs."""
    return implementations("base")


@pytest.fixture(scope="session")
def ops_suite(device: str, request: pytest.FixtureRequest) -> Suite:
    """Return the table of ops, compiled once per run, in the dtypes that tests want."""
    wanted = {"float32", *(parameter(item, "dtype") for item in request.session.items)}
    return suite(device, tuple(dtype for dtype in DTYPES if dtype in wanted))


@pytest.fixture(scope="session")
def parity(device: str) -> tuple[Programs, ClipReport]:
    """Run the comparisons of `nox -s parity` on ten seconds of speech."""
    programs = Programs(load_checkpoint("tiny.en"), device)
    return programs, compare_clip(packaged_clips()["beckett"], programs, lambda activations, n: activations)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a random generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a headless Chromium that displays reports. Skip the test if none is installed."""
    path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()
