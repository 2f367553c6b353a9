"""The tools of the speed comparison: counted work, checkpoint formats, programs in processes."""

import timeit
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from max.dtype import DType

from maxwhisper import ModelDimensions, transcribe
from maxwhisper.checkpoint import load_checkpoint, weight_shapes
from maxwhisper.engine.dtypes import DTypes
from reference.clips import packaged_clips
from tests.speed import work
from tests.speed.ceilings import CeilingMeter, Ceilings
from tests.speed.compare import Result, describe
from tests.speed.formats import write_formats
from tests.speed.programs import PROGRAMS, RunSettings
from tests.speed.stages import stages
from tests.speed.worker import Run, Worker
from tests.support.implementations import Implementations

TINY_EN = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)


def test_work_follows_from_the_shapes() -> None:
    """Count by hand the products of one encoder block, and the bytes that a decoder step reads."""
    dtypes = DTypes(dict.fromkeys(weight_shapes(TINY_EN), DType.float32))
    one_more_layer = work.encoder(
        ModelDimensions(**{**vars(TINY_EN), "n_audio_layer": 5}), DTypes({**dtypes.weights, **_layer(4)})
    )
    block = one_more_layer.operations - work.encoder(TINY_EN, dtypes).operations
    assert block == 2 * 1500 * 384 * (4 * 384 + 2 * 1536) + 2 * 2 * 1500 * 1500 * 384
    float16_dtypes = DTypes.of(load_checkpoint("tiny.en"))
    matrices = 4 * (4 * 384**2 + 2 * 384**2 + 2 * 4 * 384**2) + 51864 * 384
    step = work.decoder(TINY_EN, float16_dtypes, n=1, n_past=99)
    kv_bytes = 4 * 2 * 384 * (1500 + 100) * 4
    # Biases of each layer: query, value and out of self-attention, query and out of
    # cross-attention, 4 x 384 and 384 in the MLP. Then three layer norms per layer, and the last.
    vectors = 4 * ((3 + 2 + 4 + 1) * 384 + 3 * 2 * 384) + 2 * 384
    assert step.n_bytes == 2 * matrices + 4 * vectors + kv_bytes + 4 * 51864
    # The causal mask leaves half of a token's own keys on average.
    assert step.operations == 2 * (matrices + 4 * 2 * 384 * 1599.5)


def _layer(i: int) -> dict[str, DType]:
    shapes = weight_shapes(ModelDimensions(**{**vars(TINY_EN), "n_audio_layer": i + 1}))
    return {name: DType.float32 for name in shapes if name.startswith(f"encoder.blocks.{i}.")}


def test_the_slower_ceiling_sets_the_roofline_time() -> None:
    ceilings = Ceilings(operations=100.0, bandwidth=10.0)
    assert ceilings.roofline_seconds(200, 10) == 2
    assert ceilings.roofline_seconds(200, 30) == 3


@pytest.mark.undisturbed
def test_no_matrix_product_is_faster_than_the_ceiling(device: str) -> None:
    ceilings = max(CeilingMeter().measure().operations for _ in range(3))
    a = torch.rand(1024, 1024)
    seconds = min(timeit.repeat(lambda: a @ a, number=1, repeat=5))
    # A shared machine's own speed was seen to change by a factor of 1.2 within a second.
    assert 2 * 1024**3 / seconds < 1.5 * ceilings


def test_every_stage_runs_on_max_and_in_openai_whisper(tiny_en: Implementations) -> None:
    openai, samples = whisper.model.Whisper(tiny_en.openai.dims).eval(), packaged_clips()["beckett"].samples[:48000]
    all_stages = stages(tiny_en.model, openai, samples)
    assert [stage.name for stage in all_stages] == ["encoder", "prefill", "step", "window", "file"]
    for stage in all_stages[:3]:
        stage.run_max(), stage.run_openai()
        assert stage.roofline_seconds(Ceilings(1e12, 1e11)) > 0


def test_every_format_has_the_same_weights(tmp_path: Path) -> None:
    write_formats("tiny.en", tmp_path)
    checkpoint = load_checkpoint("tiny.en")
    openai = whisper.load_model(str(tmp_path / "openai.pt"), device="cpu").state_dict()
    assert all(
        np.array_equal(openai[name].numpy(), np.asarray(weight, np.float32))
        for name, weight in checkpoint.weights.items()
    )
    ggml = (tmp_path / "ggml.bin").read_bytes()
    for weight in (
        checkpoint.weights["decoder.token_embedding.weight"],
        checkpoint.weights["encoder.blocks.2.mlp.0.weight"],
    ):
        assert np.asarray(weight, np.float16).tobytes() in ggml
    assert (tmp_path / "ctranslate2" / "model.bin").stat().st_size > 70_000_000


def test_a_worker_transcribes_and_reports_its_memory(tiny_en: Implementations, tmp_path: Path) -> None:
    samples = packaged_clips()["beckett"].samples
    worker = Worker("maxwhisper", RunSettings("tiny.en", tmp_path, "en", 1), samples)
    assert worker.problem == ""
    run = worker.run()
    assert isinstance(run, Run)
    assert run.text == transcribe(tiny_en.model, samples, temperature=0.0, language="en")["text"]
    assert run.seconds > 0
    assert 100 < worker.stop() < 1000


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_can_not_run_says_why(program: str, tmp_path: Path) -> None:
    worker = Worker(program, RunSettings("missing", tmp_path, "en", 1), np.zeros(16000, np.float32))
    assert worker.problem


def test_rows_compare_programs_with_maxwhisper_and_openai() -> None:
    max_result = Result("maxwhisper", runs=[Run(s, "Ask not what.") for s in (1.0, 9.0, 2.0)], megabytes=400)
    openai_result = Result("OpenAI Whisper", runs=[Run(s, "Ask not who.") for s in (8.0, 6.0, 7.0)], megabytes=600)
    rows = describe([max_result, openai_result, Result("missing", problem="not installed")], 20.0, "en")
    assert rows[0]["seconds"] == 2 and rows[0]["times_real_time"] == 10
    assert rows[1]["times_maxwhisper"] == 3.5
    assert rows[0]["other_words"] == 1 / 3
    assert rows[2] == {"program": "missing", "problem": "not installed"}
