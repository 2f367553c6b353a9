"""Benchmarks of Whisper's stages against OpenAI Whisper's, on real speech."""

import pytest

from reference.clips import packaged_clips
from reference.models.openai import load_openai
from tests.speed.conftest import CompareSpeed
from tests.speed.counterparts import torch_device
from tests.speed.interleaved import clock
from tests.speed.stages import stages
from tests.support.implementations import Implementations

pytestmark = pytest.mark.bench
NAMES = ("encoder", "prefill", "step", "window", "file")


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("name", NAMES)
def test_stage(name: str, all_stages: dict, compare_speed: CompareSpeed) -> None:
    stage = all_stages[name]
    compare_speed(stage.run_max, stage.run_openai, f"tiny.en {name}", rounds=5, n=stage.n)


@pytest.fixture(scope="module")
def all_stages(tiny_en: Implementations, device: str) -> dict:
    openai = load_openai(tiny_en.checkpoint).to(torch_device(device))
    return {stage.name: stage for stage in stages(tiny_en.model, openai, packaged_clips()["beckett"].samples)}
