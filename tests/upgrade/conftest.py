"""Fixtures that make environments from this Python, without installing anything."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.upgrade.environment import Environment


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[..., Environment]:
    """Provide `make_environment(name, script)`: this Python, which runs the script at its start."""

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
    """Provide an environment that is this Python."""
    return make_environment("own")
