"""`maxwhisper inspect` says what a checkpoint is, and what is odd about it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maxwhisper.checkpoint import LM_HEAD, Checkpoint, load_checkpoint, weight_shapes
from maxwhisper.checkpoint.dimensions import SIZES
from maxwhisper.cli import main
from maxwhisper.description import describe, oddities
from tests.support.checkpoints import SMALL, random_checkpoint, write_config, write_ctranslate2, write_huggingface

EMBEDDING = "decoder.token_embedding.weight"


@pytest.fixture(scope="module")
def tiny_en() -> Checkpoint:
    return load_checkpoint("tiny.en")


def test_an_official_model_is_described_and_nothing_is_odd(tiny_en: Checkpoint) -> None:
    assert describe(tiny_en) == {
        "sizes": "tiny.en, 38 million parameters",
        "encoder": "4 layers, 6 heads, 384 channels, 80 mels",
        "decoder": "4 layers, 6 heads, 384 channels",
        "vocabulary": "51864 tokens, English only",
        "LM head": "the token embedding",
        "alignment heads": "8 of 24",
        "dtypes": "167 float16",
        "memory": "78 MB for compute type float32, 42 MB for compute type int8",
    }
    assert list(oddities(tiny_en)) == []


def changed(checkpoint: Checkpoint, **weights: np.ndarray) -> Checkpoint:
    return replace(checkpoint, weights={**checkpoint.weights, **weights})


@pytest.mark.parametrize(
    ("name", "change", "oddity"),
    [
        (LM_HEAD, lambda weights: -weights[EMBEDDING], "the LM head differs from the token embedding"),
        (EMBEDDING, lambda weights: weights[EMBEDDING].astype(np.float32), "matrices have different dtypes"),
        ("encoder.conv1.bias", lambda weights: np.full(384, np.nan), "encoder.conv1.bias has numbers that are not"),
        ("decoder.ln.weight", lambda weights: np.zeros(384), "decoder.ln.weight is all zeros"),
    ],
)
def test_what_is_odd_is_said(
    name: str, change: Callable[[Mapping[str, np.ndarray]], np.ndarray], oddity: str, tiny_en: Checkpoint
) -> None:
    (said,) = oddities(changed(tiny_en, **{name: change(tiny_en.weights)}))
    assert said.startswith(oddity)


def test_unknown_sizes_and_heads_are_odd() -> None:
    checkpoint = random_checkpoint(SMALL)
    assert describe(checkpoint)["sizes"].startswith("of no official model")
    assert [oddity.partition(",")[0] for oddity in oddities(checkpoint)] == [
        "no official model has these sizes",
        "no alignment heads are named",
    ]


def test_the_command_describes_each_model_and_fails_if_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = random_checkpoint(SMALL)
    folder = write_huggingface(tmp_path / "tuned", checkpoint)
    (folder / "generation_config.json").write_text('{"alignment_heads": [[9, 9]]}')
    (folder / "adapter_config.json").write_text("{}")
    quantized = write_ctranslate2(tmp_path / "model.bin", checkpoint, "int8")
    assert main(["inspect", str(folder), str(tmp_path / "missing"), str(quantized)]) == 1
    out, err = capsys.readouterr()
    first, second = out.split(str(quantized))
    assert first.startswith(f"{folder / 'model.safetensors'}\n  sizes ")
    assert "  odd              " in first
    assert "adapter" in first
    assert "alignment heads that are not all in this model" in first
    assert "int8" in second
    assert err.startswith(f"maxwhisper: no model '{tmp_path / 'missing'}'")
    assert main(["inspect", str(write_config(folder, checkpoint))]) == 0


@pytest.mark.parametrize("name", SIZES)
def test_the_official_sizes_are_openais(name: str) -> None:
    """As in `whisper`'s checkpoints, by their numbers of parameters in millions."""
    millions = {
        "tiny": 38, "base": 73, "small": 242, "medium": 764, "large-v2": 1543, "large-v3": 1543, "large-v3-turbo": 809,
        "distil-small": 166, "distil-medium": 394, "distil-large-v2": 756, "distil-large-v3": 756,
    }  # fmt: skip
    n = sum(int(np.prod(shape)) for shape in weight_shapes(SIZES[name]).values())
    assert round(n / 1e6) == millions[name.removesuffix(".en")]
