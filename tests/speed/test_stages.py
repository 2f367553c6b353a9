"""Whisper's stages beside OpenAI Whisper's, on real speech."""

import pytest

from conftest import Trio
from reference.clips import packaged_clips
from reference.models.openai import load_openai
from tests.speed.conftest import Beside
from tests.speed.stages import stages
from tests.speed.turns import clock

pytestmark = pytest.mark.bench
NAMES = ("encoder", "prefill", "step", "window", "file")


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("name", NAMES)
def test_stage(name: str, all_stages: dict, beside: Beside) -> None:
    stage = all_stages[name]
    beside(stage.ours, stage.twin, f"tiny.en {name}", rounds=5, n=stage.n)


@pytest.fixture(scope="module")
def all_stages(tiny_en: Trio) -> dict:
    return {
        stage.name: stage
        for stage in stages(tiny_en.model, load_openai(tiny_en.checkpoint), packaged_clips()["beckett"].samples)
    }
