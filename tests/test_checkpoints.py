"""Every file format is read into the same checkpoint, and invalid files are refused."""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwhisper import CheckpointError, ModelDimensions, available_models
from maxwhisper.checkpoint import LM_HEAD, Checkpoint, catalog, load_checkpoint, pytorch, read_checkpoint, weight_shapes
from maxwhisper.checkpoint.dimensions import SIZES
from maxwhisper.checkpoint.stored import StoredBytes, StoredTensor
from maxwhisper.errors import CheckpointWarning
from reference.models.float64 import NumpyWhisper
from reference.models.openai import load_openai, reordered
from tests.support.checkpoints import (
    SMALL,
    ctranslate2_bytes,
    huggingface_state,
    openai_state,
    random_checkpoint,
    write_config,
    write_ctranslate2,
    write_files,
    write_huggingface,
    write_openai,
)

WRITERS: dict[str, Callable[[Path, Checkpoint], Path]] = {
    "model.pt": lambda folder, checkpoint: write_openai(folder / "model.pt", checkpoint),
    "model.safetensors": lambda folder, checkpoint: write_huggingface(folder, checkpoint) / "model.safetensors",
    "model.bin": lambda folder, checkpoint: write_ctranslate2(folder / "model.bin", checkpoint),
    "pytorch_model.bin": lambda folder, checkpoint: write_pytorch_model(
        write_config(folder, checkpoint), huggingface_state(checkpoint)
    ),
}


def write_pytorch_model(folder: Path, state: dict[str, torch.Tensor], n_files: int = 1) -> Path:
    """Write a file like Hugging Face's before `safetensors`: tied weights have both names."""
    embedding = state["model.decoder.embed_tokens.weight"]
    write_files(folder, {"proj_out.weight": embedding, **state}, "pytorch_model.bin", n_files)
    return folder / "pytorch_model.bin"


def assert_same(read: Checkpoint, written: Checkpoint) -> None:
    assert read.dims == written.dims
    assert read.weights.keys() == written.weights.keys()
    for name, array in written.weights.items():
        assert read.weights[name].dtype == array.dtype, name
        assert np.array_equal(read.weights[name], array), name


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_real_weights_are_the_same_bits_in_every_format(name: str, writer: str, tmp_path: Path) -> None:
    packaged = load_checkpoint(name)
    assert_same(read_checkpoint(WRITERS[writer](tmp_path, packaged)), packaged)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", SIZES)
def test_official_sizes_are_read_from_every_format(name: str, writer: str, tmp_path: Path) -> None:
    n_state = 2 * SIZES[name].n_audio_head  # narrow, so that the test is quick; `nox -s sizes` has the real width
    checkpoint = random_checkpoint(replace(SIZES[name], n_audio_state=n_state, n_text_state=n_state))
    assert_same(read_checkpoint(WRITERS[writer](tmp_path, checkpoint)), checkpoint)
    assert_same(load_checkpoint(str(tmp_path)), checkpoint)  # a folder as well as a file


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("write", [write_openai, write_huggingface])
def test_every_floating_point_type_is_read_without_loss(
    write: Callable[..., Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(SMALL, np.float64)
    read = read_checkpoint(write(tmp_path / "model.pt", checkpoint, dtype))
    for name, array in checkpoint.weights.items():
        stored = torch.from_numpy(array).to(dtype)
        assert np.array_equal(read.weights[name], stored.double().numpy()), name


def test_bfloat16_from_ctranslate2_is_read_without_loss(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL, np.float32)
    upper = {name: array.view(np.uint32) >> 16 for name, array in checkpoint.weights.items()}
    bits = edited(checkpoint, **{name: array.astype(np.uint16) for name, array in upper.items()})
    cut = edited(checkpoint, **{name: (array << 16).view(np.float32) for name, array in upper.items()})
    assert_same(read_checkpoint(write_ctranslate2(tmp_path / "model.bin", bits)), cut)


def test_several_safetensors_files_make_one_model(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL)
    assert_same(read_checkpoint(write_huggingface(tmp_path, checkpoint, n_files=3)), checkpoint)


def test_a_pt_file_may_hold_views_and_parameters(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL)
    state: dict[str, Any] = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.weights.items()}
    name = "decoder.token_embedding.weight"
    state[name] = torch.nn.Parameter(state[name].T.contiguous().T)  # transposed strides
    state["encoder.conv1.bias"] = torch.cat([torch.ones(3).half(), state["encoder.conv1.bias"]])[3:]  # an offset
    torch.save({"dims": vars(SMALL).copy(), "model_state_dict": state}, tmp_path / "model.pt")
    assert_same(read_checkpoint(tmp_path / "model.pt"), checkpoint)


# Files that must be refused, with one line that names the file.


def assert_refused(path: Path | str, *, match: str) -> None:
    """Assert that loading a file fails with a message of one line."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(str(path))
    assert "\n" not in str(caught.value)


class RunsCode:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["dims", "model_state_dict", "extra"])
def test_a_pt_file_that_runs_code_is_refused_and_runs_none(where: str, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    content: dict[str, Any] = {"dims": {}, "model_state_dict": {}}
    content[where] = RunsCode(trace)
    torch.save(content, tmp_path / "evil.pt")
    assert_refused(tmp_path / "evil.pt", match=r"evil\.pt .*mkdir")
    assert not trace.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1/0'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    ],
)
def test_a_pickle_may_name_only_functions_of_tensors(payload: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    assert_refused(tmp_path / "evil.pt", match="which no tensor needs")


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path) -> None:
    path = write_openai(tmp_path / "model.pt", random_checkpoint(SMALL))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pkl = next(name for name in members if name.endswith("data.pkl"))
    # Pickled shapes. The first one is that of decoder.positional_embedding.
    twelve_by_eight, ninety_nine_by_eight = b"K\x0cK\x08\x86", b"K\x63K\x08\x86"
    assert members[pkl].count(twelve_by_eight) == 1
    members[pkl] = members[pkl].replace(twelve_by_eight, ninety_nine_by_eight)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert_refused(path, match="outside")


def test_a_pickle_can_not_change_how_others_are_read(tmp_path: Path) -> None:
    """The opcode BUILD sets the state of any object that the pickle can name."""
    checkpoint = random_checkpoint(SMALL, np.float32)
    whole = write_openai(tmp_path / "whole.pt", checkpoint, torch.bfloat16)
    before = read_checkpoint(whole)
    for name, state in (
        ("torch\nBFloat16Storage", "}"),
        ("torch._utils\n_rebuild_tensor_v2", "(N}V__defaults__\n(tst"),
    ):
        with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
            archive.writestr("archive/data.pkl", f"c{name}\n{state}b.".encode())
        assert_refused(tmp_path / "evil.pt", match="damaged")
    assert_same(read_checkpoint(whole), before)


def test_a_compressed_pt_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    assert_refused(tmp_path / "bomb.pt", match="compressed")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_cut_file_is_refused(writer: str, tmp_path: Path) -> None:
    path = WRITERS[writer](tmp_path, random_checkpoint(SMALL))
    whole = path.read_bytes()
    for n in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        assert_refused(path, match=rf"{path.name} .*download it again")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    return {writer: write(folder, random_checkpoint(SMALL)).read_bytes() for writer, write in WRITERS.items()} | {
        "config.json": (folder / "config.json").read_bytes()
    }


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(
    writer: str, small_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whichever bytes change, the reader returns a complete model or a CheckpointError."""
    whole = bytearray(small_files[writer])
    structure = st.integers(0, 4000) | st.integers(len(whole) - 4000, len(whole) - 1)  # headers and directories
    for position in data.draw(st.lists(structure, min_size=1, max_size=4)):
        whole[position] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / writer).write_bytes(whole)
    (folder / "config.json").write_bytes(small_files["config.json"])
    try:
        checkpoint = read_checkpoint(folder / writer)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017 either outcome is fine
    else:
        tied = LM_HEAD not in checkpoint.weights
        assert {name: array.shape for name, array in checkpoint.weights.items()} == weight_shapes(checkpoint.dims, tied)
    finally:
        shutil.rmtree(folder)


def edited(checkpoint: Checkpoint, **weights: np.ndarray | None) -> Checkpoint:
    """Return a copy with weights replaced, added or (if None) removed, without checks."""
    copy = replace(checkpoint)
    changed = {**checkpoint.weights, **weights}
    object.__setattr__(copy, "weights", {name: array for name, array in changed.items() if array is not None})
    return copy


@pytest.mark.parametrize("writer", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"decoder.ln.bias": np.zeros(9, np.float16)}, r"decoder\.ln\.bias has shape \(9,\)"),
        ({"decoder.ln.bias": None}, r"lacks 1 weight\(s\), decoder\.ln\.bias"),
        ({"decoder.extra": np.zeros(9, np.float16)}, r"unknown 1 weight\(s\), decoder\.extra"),
        ({"decoder.ln.bias": np.zeros(8, np.int64)}, "only floating-point"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: dict[str, Any], match: str, writer: str, tmp_path: Path) -> None:
    assert_refused(WRITERS[writer](tmp_path, edited(random_checkpoint(SMALL), **weights)), match=match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_vocab": 50000}, "50000 tokens"),
        ({"n_mels": 64}, "64 mel filters"),
        ({"n_text_head": 3}, "does not divide into 3 heads"),
        ({"n_audio_layer": 0}, "n_audio_layer is 0"),
        ({"n_text_layer": "many"}, "n_text_layer is 'many'"),
        ({"n_text_state": 16}, "differ"),
    ],
)
def test_sizes_that_no_whisper_has_are_named(change: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        Checkpoint(replace(SMALL, **change), random_checkpoint(SMALL).weights, "model.pt")


@pytest.mark.parametrize("quantization", ["int8", "int8_float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_eight_bit_weights_are_dequantized(tied: bool, quantization: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL, np.float32, tied=tied)
    read = read_checkpoint(write_ctranslate2(tmp_path / "model.bin", checkpoint, quantization))
    assert read.weights.keys() == checkpoint.weights.keys()
    for name, array in checkpoint.weights.items():
        if name.endswith(".weight") and array.ndim > 1:
            step = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True) / 127
            assert (np.abs(read.weights[name] - array) <= step / 2 * 1.0001).all(), name
            assert read.stored[name].dtype == "int8"
        else:
            stored = array.astype(np.float16 if quantization == "int8_float16" else np.float32)
            assert np.array_equal(read.weights[name], stored), name


@pytest.mark.parametrize(
    ("weight", "scale", "match"),
    [
        (np.zeros((2, 2), np.int16), np.float32(3), "quantized to 16 bits; convert the model again"),
        (np.zeros((2, 2), np.int8), np.ones(3, np.float32), r"scales of shape \(3,\)"),
        (np.zeros((2, 2), np.int8), np.array([1, 0], np.float32), "below zero"),
        (np.zeros((2, 2), np.int8), np.array([1, np.nan], np.float32), "below zero"),
    ],
)
def test_weights_with_other_scales_are_refused(weight: np.ndarray, scale: Any, match: str, tmp_path: Path) -> None:
    heads = {f"{part}/num_heads": np.array(1, np.int16) for part in ("encoder", "decoder")}
    variables = {**heads, "decoder/embeddings/weight": weight, "decoder/embeddings/weight_scale": np.asarray(scale)}
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(variables, {}))
    assert_refused(tmp_path / "model.bin", match=match)


def test_errors_of_a_bin_file_are_explained(tmp_path: Path) -> None:
    path = write_ctranslate2(tmp_path / "model.bin", random_checkpoint(SMALL))
    whole = path.read_bytes()
    path.write_bytes(whole + b"123")
    assert_refused(path, match=re.escape("(3 bytes are left over); download it again"))
    path.write_bytes(whole[:-2])
    assert_refused(path, match=re.escape(f"(it ends after {len(whole) - 2} bytes); download it again"))
    heads = {f"{part}/num_heads": np.array(1, np.int16) for part in ("encoder", "decoder")}
    bias = {**heads, "encoder/layer_0/self_attention/linear_0/bias": np.ones(24, np.float16)}
    path.write_bytes(ctranslate2_bytes(bias, {}))
    assert_refused(path, match=re.escape("(a key bias is not zero, but Whisper's keys have no bias)"))


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "is_inside"),
    [
        (0, (3, 4), (4, 1), True),
        (0, (4, 3), (1, 4), True),
        (0, (5,), (0,), True),
        (11, (1,), (7,), True),
        (11, (), (), True),
        (0, (0, 4), (4, 1), True),
        (0, (3, 4), (5, 1), False),
        (1, (3, 4), (4, 1), False),
        (12, (1,), (1,), False),
        (12, (), (), False),
        (-1, (2,), (1,), False),
        (11, (3,), (-1,), False),
        (0, (-1,), (1,), False),
        (0, (3, 4), (4,), False),
    ],
)
def test_a_tensor_is_a_view_of_its_storage_or_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], is_inside: bool
) -> None:
    numbers = np.arange(12.0)
    storage = StoredTensor.of(numbers)
    if is_inside:
        expected = torch.from_numpy(numbers).as_strided(shape, strides, offset).numpy()
        assert np.array_equal(pytorch._rebuild_tensor(storage, offset, shape, strides).numbers(), expected)
    else:
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            pytorch._rebuild_tensor(storage, offset, shape, strides)


def test_a_bin_file_of_a_different_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\x0b\0MarianSpec\0" + bytes(8))
    assert_refused(tmp_path / "model.bin", match="MarianSpec")


def test_files_and_names_without_a_model_are_refused(tmp_path: Path) -> None:
    assert_refused("smal", match="no model 'smal': .* small, .*tiny.en comes with maxwhisper")
    assert_refused(tmp_path, match="holds no model")
    (tmp_path / "notes.txt").write_text("hello")
    assert_refused(tmp_path / "notes.txt", match="none of the formats")
    (tmp_path / "model.safetensors").write_bytes(b"hello")
    assert_refused(tmp_path, match="model.safetensors is damaged")
    write_files(tmp_path, openai_state(random_checkpoint(SMALL)))
    for text in ("{}", "null", "{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        assert_refused(tmp_path, match="config.json is damaged or not a Whisper model's")
    assert_refused("a\0b", match="no model")


# Official names.


def test_names_are_openais() -> None:
    import whisper

    assert available_models() == whisper.available_models()
    for name, official in catalog.OFFICIAL.items():
        assert official.sha256 in whisper._MODELS[name]


def test_a_damaged_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = replace(catalog.TINY_EN, sha256="0" * 64)
    monkeypatch.setitem(catalog.OFFICIAL, "tiny.en", replace(catalog.OFFICIAL["tiny.en"], packaged=packaged))
    assert_refused("tiny.en", match="damaged .*sha256.*pip install")


def test_openais_cache_is_used_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(SMALL)
    path = write_openai(tmp_path / "large-v3.pt", checkpoint)
    with pytest.raises(CheckpointError, match="sha256"):
        load_checkpoint("large", tmp_path)
    import hashlib

    official = replace(catalog.OFFICIAL["large"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(catalog.OFFICIAL, "large", official)
    monkeypatch.setitem(catalog.ALIGNMENT_HEADS, "large", ((0, 1),))
    assert_same(load_checkpoint("large", tmp_path), checkpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tmp_path, tmp_path / "cache" / "whisper", ignore=shutil.ignore_patterns("cache"))
    assert_same(load_checkpoint("large"), checkpoint)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(tmp_path / "cache", tmp_path / "home" / ".cache")
    assert_same(load_checkpoint("large"), checkpoint)


def test_the_hub_is_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    checkpoint = random_checkpoint(SMALL)
    folder = write_huggingface(tmp_path / "snapshot", checkpoint)
    requests = []

    def snapshot_download(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert allow_patterns == ["config.json", "model.safetensors"]
        requests.append((repository, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="alignment head 4 of layer 2 does not exist"):
        load_checkpoint("turbo", tmp_path / "empty")
    requests.clear()
    monkeypatch.setitem(catalog.ALIGNMENT_HEADS, "turbo", ((0, 1),))
    assert_same(load_checkpoint("turbo", tmp_path / "empty"), checkpoint)
    assert load_checkpoint("turbo", tmp_path / "empty").alignment_heads == ((0, 1),)
    del requests[2:]
    assert requests == [("openai/whisper-large-v3-turbo", True), ("openai/whisper-large-v3-turbo", False)]


def test_alignment_heads_are_read_or_those_of_the_upper_half(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL)
    half = tuple(
        (layer, head)
        for layer in range(SMALL.n_text_layer // 2, SMALL.n_text_layer)
        for head in range(SMALL.n_text_head)
    )
    (tmp_path / "hf").mkdir()
    (tmp_path / "ct2").mkdir()
    folder = write_huggingface(tmp_path / "hf", checkpoint)
    write_ctranslate2(tmp_path / "ct2" / "model.bin", checkpoint)
    for where, config in (
        (folder, folder / "generation_config.json"),
        (tmp_path / "ct2", tmp_path / "ct2" / "config.json"),
    ):
        assert read_checkpoint(where).alignment_heads == half
        config.write_text('{"alignment_heads": [[0, 1]]}')
        assert read_checkpoint(where).alignment_heads == ((0, 1),)
        # Some distilled models come with the configuration of their teacher.
        for text in ("{", "null", "{}", '{"alignment_heads": null}', *INVALID_HEADS):
            config.write_text(text)
            assert read_checkpoint(where).alignment_heads == half


INVALID_HEADS = [
    f'{{"alignment_heads": {heads}}}' for heads in ("[[9, 9]]", "[1]", "[[0.5, 1]]", '{"12": 3}', "[" * 100_000)
]


def test_without_a_network_the_error_lists_the_available_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"model small is neither .* Give the path .* tiny\.en .* base \(pip install"
    ):
        load_checkpoint("small", tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"downloadable \(the download holds no model\.safetensors\)\."):
        load_checkpoint("small", tmp_path)

    def fail(*_: object, **__: object) -> str:
        raise OSError("no such host\nand many lines more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"downloadable \(no such host\)\."):
        load_checkpoint("small", tmp_path)


# Checkpoints as fine-tuning programs save them.

OFFICIAL_WIDTH = ModelDimensions(80, 16, 384, 6, 1, 51864, 12, 384, 6, 1)
EMBED_TOKENS = "model.decoder.embed_tokens.weight"


@pytest.fixture
def small() -> Checkpoint:
    return random_checkpoint(SMALL)


@pytest.fixture
def other() -> Checkpoint:
    """Return a checkpoint of the same sizes with different weights."""
    return random_checkpoint(SMALL, seed=1)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_lm_head_that_differs_from_the_embedding_is_read(writer: str, tmp_path: Path) -> None:
    untied = random_checkpoint(SMALL, tied=False)
    assert LM_HEAD in untied.weights
    assert_same(read_checkpoint(WRITERS[writer](tmp_path, untied)), untied)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("name", ["proj_out.weight", "lm_head.weight", "model.decoder.proj_out.weight"])
def test_the_values_decide_whether_the_lm_head_is_the_embedding(
    name: str, config: dict[str, bool], small: Checkpoint, tmp_path: Path
) -> None:
    write_config(tmp_path, small, **config)
    state = huggingface_state(small)
    write_files(tmp_path, {**state, name: state[EMBED_TOKENS].clone()})
    assert_same(read_checkpoint(tmp_path), small)
    write_files(tmp_path, {**state, name: state[EMBED_TOKENS] + 1})
    assert np.array_equal(
        read_checkpoint(tmp_path).weights[LM_HEAD], small.weights["decoder.token_embedding.weight"] + np.float16(1)
    )


@pytest.mark.parametrize("name", [EMBED_TOKENS, "proj_out.weight"])
def test_one_vocabulary_matrix_is_embedding_and_lm_head_if_tied(name: str, small: Checkpoint, tmp_path: Path) -> None:
    state = huggingface_state(small)
    write_files(tmp_path, {name: state.pop(EMBED_TOKENS), **state})
    for config in ({}, {"tie_word_embeddings": True}):
        assert_same(read_checkpoint(write_config(tmp_path, small, **config)), small)
    assert_refused(
        write_config(tmp_path, small, tie_word_embeddings=False), match="alone, but config.json says that .* differ"
    )


def test_ctranslate2_may_store_the_lm_head_twice(small: Checkpoint, tmp_path: Path) -> None:
    twice = edited(small, **{LM_HEAD: small.weights["decoder.token_embedding.weight"]})
    assert_same(read_checkpoint(write_ctranslate2(tmp_path / "model.bin", twice)), small)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_says_which_files_are_read(name: str, small: Checkpoint, other: Checkpoint, tmp_path: Path) -> None:
    write_config(tmp_path, small)
    write_files(tmp_path, huggingface_state(small), name, n_files=3)
    stem, ending = name.split(".")
    write_files(tmp_path, huggingface_state(other), f"old.{ending}")
    write_files(tmp_path, huggingface_state(other), f"{stem}-00001-of-00002.{ending}")
    part = tmp_path / f"{stem}-00002-of-00003.{ending}"
    mapped = json.loads((tmp_path / f"{name}.index.json").read_text())["weight_map"]
    part_weights = {key: tensor for key, tensor in huggingface_state(small).items() if mapped[key] == part.name}
    # The part also has weights that the index ignores.
    write_files(tmp_path, {**huggingface_state(other), **part_weights}, part.name)
    assert_same(read_checkpoint(tmp_path), small)
    assert_same(read_checkpoint(tmp_path / f"{name}.index.json"), small)
    assert_refused(part, match="is one part of a model; name its folder")
    write_files(tmp_path, dict(list(part_weights.items())[1:]), part.name)
    assert_refused(tmp_path, match=re.escape(f"says that {next(iter(part_weights))} is in {part.name}, but it is not"))
    part.unlink()
    assert_refused(tmp_path, match=re.escape(f"names {part.name}, which is missing; download it, too"))
    (tmp_path / f"{name}.index.json").unlink()
    (tmp_path / f"old.{ending}").unlink()
    assert_refused(tmp_path, match="holds parts of a model, .* but no index")


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b.safetensors"}}']
)
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert_refused(tmp_path, match="index.json is damaged or not an index")


@pytest.mark.parametrize("file", ["", ".", "..", "/", "a\0b", "x" * 5000, "\ud800"])
def test_an_index_with_invalid_file_names_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    assert_refused(tmp_path, match="not a file in the same folder|is missing|can't be read")


@pytest.mark.parametrize(
    "strays",
    [
        ["old.safetensors"],
        ["model.fp16.safetensors", "model.fp32-00001-of-00002.safetensors"],
        ["optimizer.pt", "pytorch_model.bin", "z.ckpt"],
    ],
)
def test_without_an_index_the_standard_name_decides(
    strays: list[str], small: Checkpoint, other: Checkpoint, tmp_path: Path
) -> None:
    write_huggingface(tmp_path, small)
    for stray in strays:
        write_files(tmp_path, huggingface_state(other), stray) if stray.endswith("safetensors") else write_openai(
            tmp_path / stray, other
        )
    assert_same(read_checkpoint(tmp_path), small)


def test_a_single_file_is_read_instead_of_an_index_with_a_warning(
    small: Checkpoint, other: Checkpoint, tmp_path: Path
) -> None:
    """The package transformers does so, too."""
    write_huggingface(tmp_path, other, n_files=2)
    write_huggingface(tmp_path, small)
    with pytest.warns(
        CheckpointWarning, match=r"index\.json, which is not read, because model\.safetensors is in the same folder"
    ):
        assert_same(read_checkpoint(tmp_path), small)


def test_several_models_of_other_names_are_refused(small: Checkpoint, other: Checkpoint, tmp_path: Path) -> None:
    write_config(tmp_path, small)
    write_files(tmp_path, huggingface_state(small), "model.fp32.safetensors")
    assert_same(read_checkpoint(tmp_path), small)  # the only model in the folder
    write_files(tmp_path, huggingface_state(other), "model.fp16.safetensors")
    assert_refused(
        tmp_path, match=r"holds 2 models, model\.fp16\.safetensors, model\.fp32\.safetensors; name one of them"
    )
    assert_same(read_checkpoint(tmp_path / "model.fp32.safetensors"), small)
    assert_same(read_checkpoint(tmp_path / "model.fp16.safetensors"), other)


def test_variants_have_indices_too(small: Checkpoint, tmp_path: Path) -> None:
    write_config(tmp_path, small)
    write_files(tmp_path, huggingface_state(small), "model.fp32.safetensors", n_files=2)
    # transformers names the index so.
    (tmp_path / "model.fp32.safetensors.index.json").rename(tmp_path / "model.safetensors.index.fp32.json")
    assert_same(read_checkpoint(tmp_path), small)


LORA = {f"base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_{x}.weight": torch.zeros(4, 8) for x in "AB"}


def test_an_adapter_is_left_out_with_a_warning_or_refused(small: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    write_files(tmp_path, LORA, "adapter_model.safetensors")
    torch.save({}, tmp_path / "training_args.bin")
    assert_refused(
        tmp_path, match=r"holds an adapter \(adapter_config\.json\), .*merge_and_unload\(\)\.save_pretrained"
    )
    assert_refused(
        tmp_path / "adapter_model.safetensors",
        match=r"an adapter that is not merged .*merge_and_unload\(\)\.save_pretrained",
    )
    write_huggingface(tmp_path, small)
    with pytest.warns(CheckpointWarning, match="holds an adapter .* not applied to model.safetensors"):
        assert_same(read_checkpoint(tmp_path), small)
    write_files(
        tmp_path, {**{f"base_model.model.{name}": tensor for name, tensor in huggingface_state(small).items()}, **LORA}
    )
    with pytest.warns(CheckpointWarning):
        assert_refused(tmp_path, match="an adapter that is not merged")


PREFIXES = [
    "_orig_mod.",
    "module.",
    "whisper.",
    "model.",
    "module._orig_mod.",
    "model.whisper.model.",
    "base_model.model.",
    "pl_module.net.",
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("state", [openai_state, huggingface_state])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_all_names_are_removed(prefix: str, state: Callable[..., Any], tied: bool, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL, tied=tied)
    write_config(tmp_path, checkpoint)
    write_files(tmp_path, {f"{prefix}{name}": tensor for name, tensor in state(checkpoint).items()})
    assert_same(read_checkpoint(tmp_path), checkpoint)


def test_wrapped_parts_of_a_model_are_unwrapped(small: Checkpoint, tmp_path: Path) -> None:
    write_config(tmp_path, small)
    wrapped = {
        name.replace("layers.0.", "layers.0._orig_mod."): tensor for name, tensor in huggingface_state(small).items()
    }
    write_files(tmp_path, wrapped)
    assert_same(read_checkpoint(tmp_path), small)


def test_a_file_of_several_models_is_refused(small: Checkpoint, other: Checkpoint, tmp_path: Path) -> None:
    write_config(tmp_path, small)
    both = {
        f"{role}.{name}": tensor
        for role, c in (("student", small), ("teacher", other))
        for name, tensor in openai_state(c).items()
    }
    write_files(tmp_path, both)
    assert_refused(tmp_path, match=r"holds several models \(student\., teacher\.\); save the weights of one")
    write_files(
        tmp_path, {**openai_state(small), **{f"module.{name}": tensor for name, tensor in openai_state(other).items()}}
    )
    assert_refused(tmp_path, match="twice, with different values")
    write_files(tmp_path, {**huggingface_state(small), "criterion.weight": torch.ones(3)})
    assert_refused(tmp_path, match=r"unknown 1 weight\(s\), criterion\.weight")
    write_files(tmp_path, {"bert.encoder.weight": torch.ones(3)})
    assert_refused(tmp_path, match=r"holds no Whisper model; its 1 weights have names like bert\.encoder\.weight")


def test_pytorch_files_of_hugging_face_are_read(small: Checkpoint, tmp_path: Path) -> None:
    write_config(tmp_path, small)
    write_pytorch_model(tmp_path, huggingface_state(small), n_files=2)
    assert_same(read_checkpoint(tmp_path), small)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.bin"])
@pytest.mark.parametrize("state", [openai_state, huggingface_state])
@pytest.mark.parametrize("around", ["", "model_state_dict", "state_dict", "model"])
def test_a_bare_state_dict_is_read(
    around: str, state: Callable[..., Any], name: str, small: Checkpoint, tmp_path: Path
) -> None:
    """Sizes come from config.json."""
    write_config(tmp_path, small)
    weights = {f"model.{key}": tensor for key, tensor in state(small).items()}
    other_entries = {
        "epoch": 3,
        "loops": {"fit": [1, 2.5, None]},
        "mask": torch.ones(3, dtype=torch.bool),
        "step": torch.ones(1, dtype=torch.int32),
    }
    torch.save({around: weights, **other_entries} if around else weights, tmp_path / name)
    assert_same(read_checkpoint(tmp_path / name), small)
    assert_same(read_checkpoint(tmp_path), small)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_sizes_come_from_the_weights_without_a_config(name: str, small: Checkpoint, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(OFFICIAL_WIDTH)
    write_files(tmp_path, openai_state(checkpoint), name)
    assert_same(read_checkpoint(tmp_path), checkpoint)
    write_files(tmp_path, openai_state(small), name)
    assert_refused(
        tmp_path,
        match=r"does not say how many heads .* state of 8; config\.json must be in the folder of the weights, "
        r"or save it as torch\.save",
    )
    write_files(
        tmp_path, {key: tensor for key, tensor in openai_state(small).items() if not key.startswith("decoder.")}, name
    )
    assert_refused(tmp_path, match="has weights that are not a Whisper model's")


class Net(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    "content", [Net(), {"state_dict": {}, "hyper_parameters": Path("x")}, {"dims": SMALL, "model_state_dict": {}}]
)
def test_a_pytorch_file_with_other_objects_is_refused_with_advice(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert_refused(tmp_path, match=r"wants \S+ to be called.*is refused.*torch\.save\(model\.state_dict\(\)")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"optimizer": {"state": {0: torch.ones(2)}}}])
def test_a_pytorch_file_without_weights_is_described(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert_refused(tmp_path, match=f"holds no weights, but {next(iter(content), 'nothing')}; save them")


def test_several_sets_of_weights_are_refused(small: Checkpoint, other: Checkpoint, tmp_path: Path) -> None:
    torch.save({"state_dict": openai_state(small), "model": openai_state(other)}, tmp_path / "model.pt")
    assert_refused(tmp_path, match="2 sets of weights in it")


@pytest.mark.parametrize(
    ("start", "match"),
    [
        (b"lmgg", "whisper.cpp's"),
        (b"GGUF\3", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.safetensors"])
def test_other_formats_are_named(name: str, start: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(start + bytes(100))
    assert_refused(tmp_path, match=match)


def test_pytorchs_old_format_is_named(small: Checkpoint, tmp_path: Path) -> None:
    torch.save(openai_state(small), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert_refused(tmp_path, match=r"in PyTorch's old format .*torch\.save\(torch\.load\(")


def test_a_storage_is_read_once_however_many_tensors_share_it(tmp_path: Path) -> None:
    big = torch.zeros(10**6)
    torch.save({str(i): big[i : i + 1] for i in range(3000)}, tmp_path / "model.pt")
    assert_refused(tmp_path, match="holds no Whisper model")  # quickly, without reading 12 GB


@pytest.mark.parametrize(
    ("n_mels", "n_vocab", "match"),
    [
        (80, 51866, r"51866 tokens, some added .*100 languages.*resize_token_embeddings\(51865\)"),
        (80, 51867, r"51867 tokens, some added .*101 languages.*resize_token_embeddings\(51865\)"),
        (80, 60000, "60000 tokens, some added"),
    ],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_added_tokens_are_refused_with_the_reason(
    n_mels: int, n_vocab: int, match: str, writer: str, small: Checkpoint, tmp_path: Path
) -> None:
    """OpenAI Whisper computes the number of languages from the vocabulary's size."""
    import whisper

    dims = replace(SMALL, n_mels=n_mels, n_vocab=n_vocab)
    counted = whisper.model.Whisper(whisper.model.ModelDimensions(**vars(dims))).num_languages
    assert f"{counted} languages" in match or "languages" not in match
    weights = {name: np.zeros(shape, np.float16) for name, shape in weight_shapes(dims).items()}
    added = edited(small, **weights)
    object.__setattr__(added, "dims", dims)
    assert_refused(WRITERS[writer](tmp_path, added), match=match)


@pytest.mark.parametrize("writer", WRITERS)
def test_tokens_added_to_100_languages_are_read_with_a_warning(writer: str, small: Checkpoint, tmp_path: Path) -> None:
    dims = replace(SMALL, n_mels=128, n_vocab=51870)
    with pytest.warns(CheckpointWarning, match="51870 tokens, some added to Whisper's 51866; .* as timestamps"):
        added = random_checkpoint(dims)
    with pytest.warns(CheckpointWarning, match="51870 tokens"):
        assert_same(read_checkpoint(WRITERS[writer](tmp_path, added)), added)


def test_openai_whisper_uses_a_separate_lm_head(rng: np.random.Generator) -> None:
    """`load_openai` adds one, and its logits do not depend on the order of channels."""
    dims = ModelDimensions(80, 16, 16, 2, 1, 51864, 12, 16, 2, 1)
    checkpoint = random_checkpoint(dims, np.float32, tied=False)
    mel, tokens = rng.standard_normal((1, 80, 32), np.float32), np.array([[50257, 50362, 400]])
    float64 = NumpyWhisper(checkpoint)
    exact = float64.decoder(tokens, float64.encoder(mel))
    tied = NumpyWhisper(random_checkpoint(dims, np.float32))
    difference = abs(tied.decoder(tokens, tied.encoder(mel)) - exact).max()
    openai = load_openai(checkpoint)
    for model in (openai, reordered(openai, seed=0)[0]):
        with torch.no_grad():
            error = abs(model(torch.from_numpy(mel), torch.from_numpy(tokens)).numpy() - exact).max()
        assert error <= difference / 1000  # the rounding error of float32, far below the difference of the two heads


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_index_is_refused_or_harmless(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, small = tmp_path_factory.mktemp("damaged"), random_checkpoint(SMALL)
    write_config(folder, small)
    write_files(folder, huggingface_state(small), name.removesuffix(".index.json"), n_files=2)
    whole = bytearray((folder / name).read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[position] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(whole)
    try:
        assert_same(read_checkpoint(folder), small)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017 either outcome is fine
    finally:
        shutil.rmtree(folder)


def test_threads_may_read_one_file_at_once(tmp_path: Path) -> None:
    """A weight that is not aligned in its file is read, at a place that threads must not share."""
    n, n_numbers = 64, 20_000
    path = tmp_path / "weights"
    path.write_bytes(b"." + b"".join(np.full(n_numbers, i, np.float32).tobytes() for i in range(n)))
    stored = StoredBytes.of(path)

    def numbers(i: int) -> set[float]:
        return set(stored.read("float32", n_numbers, 1 + 4 * n_numbers * i).tolist())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(numbers, [*range(n)] * 8)) == [{float(i)} for i in range(n)] * 8
