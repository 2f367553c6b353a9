"""`import maxwhisper as whisper` gives a program the same names, arguments and results."""

import argparse
import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import whisper
from hypothesis import given
from hypothesis import strategies as st

import maxwhisper
from maxwhisper import OptionError, Whisper, cli, timing
from maxwhisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer
from reference.clips import extra_clips, packaged_clips
from tests.support.clips import IN_THREE_LANGUAGES, some_always
from tests.support.implementations import Implementations

README = (Path(__file__).parents[1] / "maxwhisper" / "README.md").read_text(encoding="utf-8")
MISSING = object()
MODULES = (
    "",
    "audio",
    "decoding",
    "tokenizer",
    "normalizers",
    "normalizers.basic",
    "normalizers.english",
    "timing",
    "utils",
)


def listed(title: str) -> set[str]:
    """Return the names in the first column of a table of `maxwhisper/README.md`."""
    _, _, rest = README.partition(f"<!-- {title} -->")
    table, end, _ = rest.partition(f"<!-- end of {title} -->")
    assert end, f"maxwhisper/README.md has no list of {title}"
    return {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def public_names(module: ModuleType) -> Iterator[str]:
    """Yield the names that a module of OpenAI Whisper defines.

    Those of a package include what it imports from its modules.
    """
    assert module.__file__ is not None
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        for part in [node, *(node.body if isinstance(node, ast.If) else [])]:
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                yield part.name
            elif isinstance(part, ast.Assign):
                yield from (target.id for target in part.targets if isinstance(target, ast.Name))
            elif isinstance(part, ast.ImportFrom) and part.level and hasattr(module, "__path__"):
                yield from (name.asname or name.name for name in part.names)


def upstream_members() -> Iterator[tuple[str, Any, Any]]:
    """Yield each public name of OpenAI Whisper with its objects in both packages.

    Names include the methods and fields of classes. If maxwhisper lacks a name, its object is
    `MISSING`.
    """
    for name in MODULES:
        openai, actual = (
            importlib.import_module(f"{package}.{name}".rstrip(".")) for package in ("whisper", "maxwhisper")
        )
        for attribute in public_names(openai):
            if attribute.startswith("_"):
                continue
            label = f"{name}.{attribute}".lstrip(".")
            openai_object, our_object = getattr(openai, attribute), getattr(actual, attribute, MISSING)
            yield label, openai_object, our_object
            if inspect.isclass(openai_object) and our_object is not MISSING:
                fields = getattr(our_object, "__dataclass_fields__", {})
                for member in [*vars(openai_object), *getattr(openai_object, "__dataclass_fields__", {})]:
                    if not member.startswith("_"):
                        yield (
                            f"{label}.{member}",
                            getattr(openai_object, member, None),
                            getattr(our_object, member, fields.get(member, MISSING)),
                        )


def test_every_public_name_exists_or_is_listed_in_the_readme(tiny_en: Implementations) -> None:
    attributes = {f"Whisper.{name}" for name in dir(tiny_en.model)}
    missing = {label for label, _, our_object in upstream_members() if our_object is MISSING} - attributes
    assert missing == listed("missing names")


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def takes_the_same_arguments(openai_function: Any, our_function: Any) -> bool:
    """Return whether a function takes OpenAI's positional arguments in order, and its keywords."""
    actual, openai = list(parameters(our_function).values()), list(parameters(openai_function).values())
    in_order = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in openai if p.kind in in_order]
    takes_any_keyword = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in actual)
    same = [p.name for p in actual if p.kind in in_order][: len(positional)] == positional
    return same and all(
        p.name in parameters(our_function) or takes_any_keyword
        for p in openai
        if p.kind == inspect.Parameter.KEYWORD_ONLY
    )


def test_functions_take_openais_arguments() -> None:
    different = set()
    # These are functions in OpenAI Whisper; the next test compares them.
    methods = ("Whisper.detect_language", "Whisper.transcribe", "Whisper.decode")
    for label, openai_object, our_object in upstream_members():
        if not callable(openai_object) or our_object is MISSING or label in methods:
            continue
        if not takes_the_same_arguments(openai_object, our_object):
            different.add(label)
    assert different == listed("other arguments")


@pytest.mark.parametrize("name", ["transcribe", "decode", "detect_language"])
def test_methods_are_the_functions(name: str) -> None:
    method, function = (parameters(owner) for owner in (getattr(maxwhisper.Whisper, name), getattr(maxwhisper, name)))
    variable = {p.kind for p in method.values()} & {inspect.Parameter.VAR_KEYWORD}
    assert variable or list(method)[1:] == list(function)[1:]


def test_default_arguments_are_openais() -> None:
    for name in ("transcribe", "DecodingOptions"):
        openai, actual = (parameters(getattr(module, name)) for module in (whisper, maxwhisper))
        assert {p.name: p.default for p in openai.values()}.items() <= {
            p.name: p.default for p in actual.values()
        }.items()


def test_every_difference_has_a_test() -> None:
    _, _, rest = README.partition("<!-- differences -->")
    table, _, _ = rest.partition("<!-- end of differences -->")
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    for _, difference, test_id, _ in rows:
        file, _, test = test_id.strip(" `").partition("::")
        assert f"\ndef {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), difference


# The two command lines.


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, argparse.Action], dict[str, argparse.Action]]:
    seen: list[argparse.ArgumentParser] = []

    def parse_args(parser: argparse.ArgumentParser) -> None:
        seen.append(parser)
        raise SystemExit

    whisper_cli = importlib.import_module("whisper.transcribe").cli
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(SystemExit):
            whisper_cli()
    commands = next(action for action in cli._parser()._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    return options(seen[0]), options(commands.choices["transcribe"])


def test_the_command_line_takes_openais_options(
    parsers: tuple[dict[str, argparse.Action], dict[str, argparse.Action]],
) -> None:
    openai, actual = parsers
    assert openai.keys() <= actual.keys()
    assert actual.keys() - openai.keys() == listed("further options")
    different = set()
    openai["device"].default = "cpu"  # it is "cuda" if PyTorch finds a GPU
    for name, action in openai.items():
        same = (action.option_strings, action.nargs, action.default) == (
            actual[name].option_strings,
            actual[name].nargs,
            actual[name].default,
        )
        choices = action.choices is None or actual[name].choices == action.choices
        if not (same and choices):
            different.add(name)
    assert different == listed("other defaults")


@pytest.mark.parametrize("text", ["True", "False", "yes", "None", "3", "0.5", "x"])
def test_option_values_are_parsed_as_by_openai(
    text: str, parsers: tuple[dict[str, argparse.Action], dict[str, argparse.Action]]
) -> None:
    """Both refuse the same values, except that we accept "None" for more options."""
    openai, actual = parsers
    for name, action in openai.items():
        parsed: list[Any] = []
        for option in (action, actual[name]):
            parse = option.type if callable(option.type) else str
            try:
                parsed.append(parse(text))
            except (ValueError, argparse.ArgumentTypeError):
                parsed.append(ValueError)
        is_equal = parsed[0] == parsed[1] or (parsed[0] is ValueError and parsed[1] is None)
        assert name == "model" or is_equal, (name, parsed)


# Programs.


def program(name: str, package: str) -> Any:
    """Load a program of `tests/programs`, in which only the import may be changed."""
    source = (Path(__file__).parent / "programs" / f"{name}.py").read_text(encoding="utf-8")
    module = ModuleType(name)
    exec(compile(with_maxwhisper(source) if package == "maxwhisper" else source, f"{name}.py", "exec"), vars(module))
    return module.main


def with_maxwhisper(source: str) -> str:
    """Return a program that imports maxwhisper instead of OpenAI Whisper."""
    return re.sub(r"^(import|from) whisper\b", lambda match: IMPORTS[match[1]], source, flags=re.MULTILINE)


IMPORTS = {"import": "import maxwhisper as whisper", "from": "from maxwhisper"}


@pytest.fixture
def same_models(implementations: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both packages use installed weights and one audio reader.

    OpenAI Whisper would download weights, and run an installed `ffmpeg`.
    """
    monkeypatch.setattr(whisper, "load_model", lambda name: implementations(name).openai)
    monkeypatch.setattr(maxwhisper, "load_model", lambda name: implementations(name).model)
    for module in (whisper, whisper.audio):
        monkeypatch.setattr(module, "load_audio", maxwhisper.load_audio)


@pytest.mark.usefixtures("same_models")
@pytest.mark.parametrize("clip", ["beckett", "en/hello_world"])
def test_a_program_that_times_words_runs_unchanged(clip: str, tmp_path: Path, device: str) -> None:
    audio = str(packaged_clips()[clip].path)
    texts, times = list[tuple[str, str, list[str]]](), list[list[float]]()
    for package in ("maxwhisper", "whisper"):
        (tmp_path / package).mkdir()
        words = program("subtitles", package)(audio, tmp_path / package)
        (file,) = (tmp_path / package).iterdir()
        texts.append((file.name, re.sub(r"\d\d:\d\d:\d\d,\d+", "", file.read_text()), [word for word, _, _ in words]))
        times.append([float(start.split(":")[1]) for _, start, _ in words])
    assert texts[0] == texts[1]
    assert times[0] == pytest.approx(times[1], abs=0.021)  # a frame of 20 ms, and rounding to 1 ms
    assert len(times[0]) > 1


@pytest.mark.usefixtures("same_models")
@pytest.mark.parametrize("name", some_always(IN_THREE_LANGUAGES, packaged_clips()))
def test_a_program_that_tells_languages_runs_unchanged(name: str, tmp_path: Path, device: str) -> None:
    audio = str(packaged_clips()[name].path)
    actual, openai = (program("language", package)(audio, tmp_path) for package in ("maxwhisper", "whisper"))
    assert actual == openai


def openai_tests(folder: Path) -> Path:
    """Return a folder with the tests of OpenAI Whisper's source distribution, downloaded once.

    Only their imports and the list of models are changed.
    """
    requirement = f"openai-whisper=={version('openai-whisper')}"
    if not list(folder.glob("*.tar.gz")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            str(folder),
            requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the source of {requirement} can't be downloaded")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        sources = {
            Path(name).name: tar.extractfile(name) for name in tar.getnames() if re.search(r"/tests/\w+\.py$", name)
        }
        for name, file in sources.items():
            assert file is not None
            source = file.read().decode().replace("whisper.available_models()", '["tiny.en", "base"]')
            (folder / name).write_text(with_maxwhisper(source), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = requires_cuda\n")
    return folder


def test_openais_own_tests_pass(pytestconfig: pytest.Config, device: str) -> None:
    """OpenAI Whisper's tests that need no CUDA pass.

    Two of them read a recording that is in OpenAI's repository, but not in the source distribution.
    """
    folder = openai_tests(pytestconfig.cache.mkdir("openai-whisper"))
    jfk = extra_clips().get("jfk")
    with_sound = ("test_audio.py", "test_transcribe.py")
    if jfk:
        shutil.copy(jfk.path, folder)
    chosen = sorted(str(path) for path in folder.glob("test_*.py") if jfk or path.name not in with_sound)
    assert len(chosen) == (5 if jfk else 3)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:audioeval",
        "-c",
        str(folder / "pytest.ini"),
        "-m",
        "not requires_cuda",
    ]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Tensors of PyTorch, which maxwhisper does not import.

SMALL_ARRAYS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(st.integers(-2, 2), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda values: np.array(values, np.float32).reshape(shape)
    )
)


@given(x=SMALL_ARRAYS)
def test_tensors_are_warped_and_filtered(x: np.ndarray) -> None:
    import torch

    tensor: Any = torch.from_numpy(x)
    for dtw in (timing.dtw, timing.dtw_cpu, timing.dtw_cuda):
        assert np.array_equal(dtw(tensor), whisper.timing.dtw(tensor))
    filtered = timing.median_filter(tensor, 3)
    assert np.array_equal(filtered, whisper.timing.median_filter(tensor, 3))


@given(x=SMALL_ARRAYS)
def test_backtrace_is_openais(x: np.ndarray) -> None:
    """Paths are equal for any marks that stay inside the matrix."""
    marks = np.full((x.shape[0] + 1, x.shape[1] + 1), -1.0)
    marks[1:, 1:] = np.abs(x)
    marks[1, 1:], marks[1:, 1], marks[1, 1] = 2, 1, 0
    assert np.array_equal(timing.backtrace(marks), whisper.timing.backtrace(marks.copy()))


# Methods of the model.


def test_models_take_tensors(tiny_en: Implementations) -> None:
    import torch

    model = tiny_en.model
    speech = packaged_clips()["en/hello_world"].samples
    mel = maxwhisper.log_mel_spectrogram(maxwhisper.pad_or_trim(speech))
    tensor: Any = torch.from_numpy(np.array(mel))
    assert model.transcribe(torch.from_numpy(speech), temperature=0.0) == model.transcribe(speech, temperature=0.0)  # type: ignore[arg-type]
    assert model.decode(tensor, fp16=False) == model.decode(mel)
    assert model.decode(tensor[None]) == model.decode(mel[None])
    tokens: Any = torch.tensor([[50257, 50362, 464]])
    assert np.array_equal(model(tensor[None], tokens), model(mel[None], tokens.numpy()))


def test_moving_to_the_same_device_returns_the_model(tiny_en: Implementations) -> None:
    assert tiny_en.model.to(tiny_en.model.device_name) is tiny_en.model
    assert tiny_en.model.to(tiny_en.model.device) is tiny_en.model
    if tiny_en.model.device.is_host:
        with pytest.raises(OptionError, match="no GPU"):
            tiny_en.model.to("cuda")


def test_a_model_moves_to_a_different_device(tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's device is replaced by a different one first, so that it has to move."""
    mel = np.zeros((80, 3000), np.float32)
    model = maxwhisper.load_model("tiny.en", tiny_en.model.device_name)
    before, device = model.embed_audio(mel).to_numpy(), model.device
    for moved in (model, Whisper(tiny_en.checkpoint, device)):
        monkeypatch.setattr(moved.runtime, "device", "elsewhere")
        if moved is model:
            assert moved.to(device) is moved
            assert moved.device == device
            assert np.array_equal(moved.embed_audio(mel).to_numpy(), before)
        else:
            with pytest.raises(OptionError, match="a checkpoint that is gone"):
                moved.to(device)


def test_a_move_that_fails_changes_nothing(tiny_en: Implementations) -> None:
    model = maxwhisper.load_model("tiny.en", tiny_en.model.device_name)
    before = dict(vars(model))
    refused = [
        lambda: model.to("tpu"),
        model.train,
        model.requires_grad_,
        *([model.half, model.cuda] if model.device.is_host else []),
    ]
    for change in refused:
        with pytest.raises(OptionError):
            change()
        assert vars(model) == before


def test_a_model_has_these_of_a_torch_module(tiny_en: Implementations) -> None:
    import torch

    torch_names = {name for name in dir(torch.nn.Module) if not name.startswith("_")}
    match = re.search(r"The methods of `torch\.nn\.Module` are limited to ([^;]*);", " ".join(README.split()))
    assert match and set(re.findall(r"`(\w+)`", match[1])) == torch_names & set(dir(tiny_en.model))


def test_methods_without_effect_return_the_model(tiny_en: Implementations) -> None:
    model = tiny_en.model
    assert model.eval() is model.train(False) is model.requires_grad_(False) is model.float() is model
    if model.device.is_host:
        assert model.cpu() is model


def test_parameters_are_openais(tiny_en: Implementations) -> None:
    def shapes(model: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(weight.shape) for weight in model.parameters())

    assert shapes(tiny_en.model) == shapes(tiny_en.openai)
    assert next(tiny_en.model.parameters()).device == "cpu"
    assert np.issubdtype(next(tiny_en.model.parameters()).dtype, np.floating)


def test_the_encoder_is_embed_audio(tiny_en: Implementations) -> None:
    mel = np.zeros((80, 3000), np.float32)
    assert np.array_equal(tiny_en.model.encoder(mel), tiny_en.model.embed_audio(mel))


def test_logits_of_features_and_of_arrays_are_openais(tiny_en: Implementations) -> None:
    import torch

    mel, tokens = np.zeros((2, 80, 3000), np.float32), np.array([[50257, 50362, 464]] * 2)
    features = tiny_en.model.embed_audio(mel)
    logits = tiny_en.model.logits(tokens, features)
    with torch.no_grad():
        openai = tiny_en.openai(torch.from_numpy(mel), torch.from_numpy(tokens)).numpy()
    # Logits of a different row differ by more than 1. `test_model.py` tests their exactness.
    assert np.abs(logits - openai).max() < 2e-3
    assert np.array_equal(tiny_en.model.logits(tokens, np.asarray(features)), logits)
    assert np.array_equal(tiny_en.model(mel, tokens), logits)
    with pytest.raises(OptionError, match=r"2 sequences of tokens, but features of 1 windows"):
        tiny_en.model.logits(tokens, tiny_en.model.embed_audio(mel[:1]))
    with pytest.raises(OptionError, match=r"\(2, 7, 384\), not \[n, 1500, 384\]"):
        tiny_en.model.logits(tokens, np.asarray(features)[:, :7])


# Text normalisers.

SPOKEN = """Hmm, I kinda dunno 'cause the colour cost twenty-five dollars and sixty cents, um, on the 1st of May
nineteen ninety-nine; Mr. Smith won't've gone there (laughs) [music] at half past two, would he?
It's 3,000.50% naïve, sorta double oh seven."""


@pytest.mark.parametrize("package", ["maxwhisper", "whisper"])
def test_normalisers_of_both_packages_rewrite_a_sentence(package: str) -> None:
    normalize = importlib.import_module(f"{package}.normalizers").EnglishTextNormalizer()
    assert normalize("Mr. Smith isn't twenty-five") == "mister smith is not 25"


word = st.sampled_from(SPOKEN.split()) | st.text(max_size=6)


@given(text=st.lists(word, max_size=30).map(" ".join), remove=st.booleans(), split=st.booleans())
def test_normalisers_are_openais(text: str, remove: bool, split: bool) -> None:
    assert _ENGLISH[0](text) == _ENGLISH[1](text)
    assert BasicTextNormalizer(remove, split)(text) == whisper.normalizers.BasicTextNormalizer(remove, split)(text)


_ENGLISH = (EnglishTextNormalizer(), whisper.normalizers.EnglishTextNormalizer())


def test_missing_normalisers_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    for name in ("", ".basic", ".english"):
        monkeypatch.delitem(sys.modules, f"maxwhisper.normalizers{name}")
    for name in ("", ".english"):
        with pytest.raises(ImportError, match=r"maxwhisper\[normalizers\]"):
            importlib.import_module(f"maxwhisper.normalizers{name}")
