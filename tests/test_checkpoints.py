"""Three file formats read into the same checkpoint, and what is none of them refused."""

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwhisper import CheckpointError, ModelDimensions, available_models
from maxwhisper.checkpoint import Checkpoint, catalog, load_checkpoint, openai_pt, read_checkpoint, weight_shapes
from tests.checkpoint_writers import ctranslate2_bytes, random_checkpoint, write_ctranslate2, write_huggingface, write_openai

SMALL = ModelDimensions(80, 16, 8, 2, 1, 51864, 12, 8, 2, 1)
# Layers, heads, mels and vocabulary of the official models.
OFFICIAL = {
    "tiny.en": (4, 4, 6, 80, 51864),
    "tiny": (4, 4, 6, 80, 51865),
    "base": (6, 6, 8, 80, 51865),
    "small": (12, 12, 12, 80, 51865),
    "medium": (24, 24, 16, 80, 51865),
    "large-v2": (32, 32, 20, 80, 51865),
    "large-v3": (32, 32, 20, 128, 51866),
    "large-v3-turbo": (32, 4, 20, 128, 51866),
}
WRITERS: dict[str, Callable[[Path, Checkpoint], Path]] = {
    "model.pt": lambda folder, checkpoint: write_openai(folder / "model.pt", checkpoint),
    "model.safetensors": lambda folder, checkpoint: write_huggingface(folder, checkpoint) / "model.safetensors",
    "model.bin": lambda folder, checkpoint: write_ctranslate2(folder / "model.bin", checkpoint),
}


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
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes_are_read_from_every_format(name: str, writer: str, tmp_path: Path) -> None:
    n_audio_layer, n_text_layer, n_head, n_mels, n_vocab = OFFICIAL[name]
    n_state = 2 * n_head  # narrow, so that the test is quick; all other sizes are the real ones
    checkpoint = random_checkpoint(
        ModelDimensions(n_mels, 1500, n_state, n_head, n_audio_layer, n_vocab, 448, n_state, n_head, n_text_layer)
    )
    assert_same(read_checkpoint(WRITERS[writer](tmp_path, checkpoint)), checkpoint)
    assert_same(load_checkpoint(str(tmp_path)), checkpoint)  # a folder as well as a file


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("write", [write_openai, write_huggingface])
def test_every_floating_point_type_is_read_without_loss(write: Callable[..., Path], dtype: torch.dtype, tmp_path: Path) -> None:
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


# What must be refused, in one line that names the file.


def refused(path: Path | str, *, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(str(path))
    assert "\n" not in str(caught.value)


class RunsCode:
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
    refused(tmp_path / "evil.pt", match=r"evil\.pt .*mkdir")
    assert not trace.exists()


@pytest.mark.parametrize(
    "payload", [b"cbuiltins\neval\n(S'1/0'\ntR.", b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", b"cnumpy\nload\n(S'/etc/passwd'\ntR."]
)
def test_no_name_but_a_tensors_is_looked_up(payload: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    refused(tmp_path / "evil.pt", match="which no tensor needs")


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path) -> None:
    path = write_openai(tmp_path / "model.pt", random_checkpoint(SMALL))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pkl = next(name for name in members if name.endswith("data.pkl"))
    twelve_by_eight, ninety_nine_by_eight = b"K\x0cK\x08\x86", b"K\x63K\x08\x86"  # pickled; decoder.positional_embedding has this shape
    assert members[pkl].count(twelve_by_eight) == 1
    members[pkl] = members[pkl].replace(twelve_by_eight, ninety_nine_by_eight)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refused(path, match="outside")


def test_a_pickle_can_not_change_how_others_are_read(tmp_path: Path) -> None:
    """BUILD sets the state of whatever the pickle was given."""
    checkpoint = random_checkpoint(SMALL, np.float32)
    whole = write_openai(tmp_path / "whole.pt", checkpoint, torch.bfloat16)
    before = read_checkpoint(whole)
    for name, state in (("torch\nBFloat16Storage", "}"), ("torch._utils\n_rebuild_tensor_v2", "(N}V__defaults__\n(tst")):
        with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
            archive.writestr("archive/data.pkl", f"c{name}\n{state}b.".encode())
        refused(tmp_path / "evil.pt", match="damaged")
    assert_same(read_checkpoint(whole), before)


def test_a_compressed_pt_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    refused(tmp_path / "bomb.pt", match="compressed")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_cut_file_is_refused(writer: str, tmp_path: Path) -> None:
    path = WRITERS[writer](tmp_path, random_checkpoint(SMALL))
    whole = path.read_bytes()
    for n in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, match=rf"{path.name} .*get it anew")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    return {writer: write(folder, random_checkpoint(SMALL)).read_bytes() for writer, write in WRITERS.items()} | {
        "config.json": (folder / "config.json").read_bytes()
    }


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(
    writer: str, small_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes are changed, the reader either returns a whole model of some Whisper's sizes or says that it can't."""
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
        assert {name: array.shape for name, array in checkpoint.weights.items()} == weight_shapes(checkpoint.dims)
    finally:
        shutil.rmtree(folder)


def edited(checkpoint: Checkpoint, **weights: np.ndarray | None) -> Checkpoint:
    """The same checkpoint with weights replaced, added or (None) left out, unchecked."""
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
    if weights.get("decoder.ln.bias") is not None and weights["decoder.ln.bias"].dtype == np.int64 and writer == "model.safetensors":
        match = "is damaged"  # the format's reader takes floating-point types alone
    refused(WRITERS[writer](tmp_path, edited(random_checkpoint(SMALL), **weights)), match=match)


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
def test_sizes_that_are_no_whispers_are_named(change: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        Checkpoint(replace(SMALL, **change), random_checkpoint(SMALL).weights, "model.pt")


def test_eight_bit_weights_are_refused(tmp_path: Path) -> None:
    variables: dict[str, np.ndarray] = {
        "decoder/embeddings/weight": np.zeros((2, 2), np.int8),
        "decoder/embeddings/weight_scale": np.ones(2, np.float32),
    }
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(variables, {}))
    refused(tmp_path / "model.bin", match="rounded to 8 bits; convert the model again")


def test_what_is_wrong_with_a_bin_is_said(tmp_path: Path) -> None:
    path = write_ctranslate2(tmp_path / "model.bin", random_checkpoint(SMALL))
    whole = path.read_bytes()
    path.write_bytes(whole + b"123")
    refused(path, match=re.escape("(3 bytes are left over); get it anew"))
    path.write_bytes(whole[:-2])
    refused(path, match=re.escape(f"(it ends after {len(whole) - 2} bytes); get it anew"))
    bias = {"encoder/layer_0/self_attention/linear_0/bias": np.ones(24, np.float16)}
    path.write_bytes(ctranslate2_bytes(bias, {}))
    refused(path, match=re.escape("(a key bias is not zero, but Whisper's keys have no bias)"))


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
    storage = np.arange(12.0)
    if is_inside:
        expected = torch.from_numpy(storage).as_strided(shape, strides, offset).numpy()
        assert np.array_equal(openai_pt._rebuild_tensor(storage, offset, shape, strides), expected)
    else:
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            openai_pt._rebuild_tensor(storage, offset, shape, strides)


def test_another_models_bin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\x0b\0MarianSpec\0" + bytes(8))
    refused(tmp_path / "model.bin", match="MarianSpec")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    refused("smal", match="no model 'smal': .* small, .*tiny.en comes with maxwhisper")
    refused(tmp_path, match="holds no model")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", match="none of the formats")
    (tmp_path / "model.safetensors").write_bytes(b"hello")
    refused(tmp_path, match="config.json can't be read .*must lie beside the weights")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, match="config.json is damaged or not a Whisper model's")


# Official names.


def test_names_are_openais() -> None:
    import whisper

    assert available_models() == whisper.available_models()
    for name, official in catalog.OFFICIAL.items():
        assert official.sha256 in whisper._MODELS[name]


def test_a_damaged_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = replace(catalog.TINY_EN, sha256="0" * 64)
    monkeypatch.setitem(catalog.OFFICIAL, "tiny.en", replace(catalog.OFFICIAL["tiny.en"], packaged=packaged))
    refused("tiny.en", match="damaged .*sha256.*pip install")


def test_openais_cache_is_used_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(SMALL)
    path = write_openai(tmp_path / "large-v3.pt", checkpoint)
    with pytest.raises(CheckpointError, match="sha256"):
        load_checkpoint("large", tmp_path)
    import hashlib

    known = replace(catalog.OFFICIAL["large"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(catalog.OFFICIAL, "large", known)
    monkeypatch.setitem(catalog.ALIGNMENT_HEADS, "large", ((0, 1),))
    assert_same(load_checkpoint("large", tmp_path), checkpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tmp_path, tmp_path / "cache" / "whisper", ignore=shutil.ignore_patterns("cache"))
    assert_same(load_checkpoint("large"), checkpoint)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(tmp_path / "cache", tmp_path / "home" / ".cache")
    assert_same(load_checkpoint("large"), checkpoint)


def test_the_hub_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    checkpoint = random_checkpoint(SMALL)
    folder = write_huggingface(tmp_path / "snapshot", checkpoint)
    asked = []

    def snapshot_download(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert allow_patterns == ["config.json", "model.safetensors"]
        asked.append((repository, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="alignment head 4 of layer 2 is not there"):
        load_checkpoint("turbo", tmp_path / "empty")
    asked.clear()
    monkeypatch.setitem(catalog.ALIGNMENT_HEADS, "turbo", ((0, 1),))
    assert_same(load_checkpoint("turbo", tmp_path / "empty"), checkpoint)
    assert load_checkpoint("turbo", tmp_path / "empty").alignment_heads == ((0, 1),)
    del asked[2:]
    assert asked == [("openai/whisper-large-v3-turbo", True), ("openai/whisper-large-v3-turbo", False)]


def test_alignment_heads_are_read_or_those_of_the_upper_half(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL)
    half = tuple((layer, head) for layer in range(SMALL.n_text_layer // 2, SMALL.n_text_layer) for head in range(SMALL.n_text_head))
    (tmp_path / "hf").mkdir()
    (tmp_path / "ct2").mkdir()
    folder = write_huggingface(tmp_path / "hf", checkpoint)
    write_ctranslate2(tmp_path / "ct2" / "model.bin", checkpoint)
    for where, config in ((folder, folder / "generation_config.json"), (tmp_path / "ct2", tmp_path / "ct2" / "config.json")):
        assert read_checkpoint(where).alignment_heads == half
        config.write_text('{"alignment_heads": [[0, 1]]}')
        assert read_checkpoint(where).alignment_heads == ((0, 1),)
        # Some distilled models ship the configuration of the model that they were made of.
        for text in ("{", "null", "{}", '{"alignment_heads": null}', *STRANGE):
            config.write_text(text)
            assert read_checkpoint(where).alignment_heads == half


STRANGE = [f'{{"alignment_heads": {heads}}}' for heads in ("[[9, 9]]", "[1]", "[[0.5, 1]]", '{"12": 3}', "[" * 100_000)]


def test_without_a_network_the_error_says_what_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model small is neither .* Give the path .* tiny\.en .* base \(pip install"):
        load_checkpoint("small", tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"downloadable \(the download holds no model\.safetensors\)\."):
        load_checkpoint("small", tmp_path)

    def fail(*_: object, **__: object) -> str:
        raise OSError("no such host\nand many lines more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"downloadable \(no such host\)\."):
        load_checkpoint("small", tmp_path)
