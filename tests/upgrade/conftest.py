"""An environment that is the tests' own."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.upgrade.environment import Environment


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[..., Environment]:
    """`make_environment("new", "print(1)")`: this very Python and its packages, which runs that script when it starts."""

    def make(name: str, at_start: str = "") -> Environment:
        environment = Environment(tmp_path / name)
        environment.python.parent.mkdir(parents=True)
        (environment.folder / "sitecustomize.py").write_text(at_start, encoding="utf-8")
        environment.python.write_text(
            f'#!/bin/sh\nPYTHONPATH={environment.folder} exec {sys.executable} "$@"\n', encoding="utf-8"
        )
        environment.python.chmod(0o755)
        return environment

    return make


@pytest.fixture
def own_python(make_environment: Callable[..., Environment]) -> Environment:
    """This very Python."""
    return make_environment("own")
