"""`import maxwhisper as whisper` carries a program over: the same names, the same arguments, the same results."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

import maxwhisper
from conftest import Trio
from maxwhisper import OptionError, Whisper, cli, timing
from maxwhisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer
from reference.clips import extra_clips, packaged_clips

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


def listed(what: str) -> set[str]:
    """Names in the first column of a table of `maxwhisper/README.md`."""
    _, _, rest = README.partition(f"<!-- {what} -->")
    table, end, _ = rest.partition(f"<!-- end of {what} -->")
    assert end, f"maxwhisper/README.md has no list of {what}"
    return {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def public_names(module: ModuleType) -> Iterator[str]:
    """What a module of OpenAI Whisper defines, and what the package imports from its modules."""
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
    """Each public name of OpenAI Whisper, methods and fields of classes among them; what it stands for there, and here."""
    for name in MODULES:
        theirs, ours = (
            importlib.import_module(f"{package}.{name}".rstrip(".")) for package in ("whisper", "maxwhisper")
        )
        for attribute in public_names(theirs):
            if attribute.startswith("_"):
                continue
            label = f"{name}.{attribute}".lstrip(".")
            there, here = getattr(theirs, attribute), getattr(ours, attribute, MISSING)
            yield label, there, here
            if inspect.isclass(there) and here is not MISSING:
                fields = getattr(here, "__dataclass_fields__", {})
                for member in [*vars(there), *getattr(there, "__dataclass_fields__", {})]:
                    if not member.startswith("_"):
                        yield (
                            f"{label}.{member}",
                            getattr(there, member, None),
                            getattr(here, member, fields.get(member, MISSING)),
                        )


def test_every_public_name_is_here_or_in_the_readme(tiny_en: Trio) -> None:
    attributes = {f"Whisper.{name}" for name in dir(tiny_en.model)}
    missing = {label for label, _, here in upstream_members() if here is MISSING} - attributes
    assert missing == listed("missing names")


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def takes_what_they_take(there: Any, here: Any) -> bool:
    """Positional arguments in the same order, keywords by the same names."""
    ours, theirs = list(parameters(here).values()), list(parameters(there).values())
    in_order = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in theirs if p.kind in in_order]
    anything = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in ours)
    same = [p.name for p in ours if p.kind in in_order][: len(positional)] == positional
    return same and all(
        p.name in parameters(here) or anything for p in theirs if p.kind == inspect.Parameter.KEYWORD_ONLY
    )


def test_functions_take_what_theirs_take() -> None:
    others = set()
    for label, there, here in upstream_members():
        is_method = label in (
            "Whisper.detect_language",
            "Whisper.transcribe",
            "Whisper.decode",
        )  # functions there, see the next test
        if callable(there) and here is not MISSING and not is_method and not takes_what_they_take(there, here):
            others.add(label)
    assert others == listed("other arguments")


@pytest.mark.parametrize("name", ["transcribe", "decode", "detect_language"])
def test_methods_are_the_functions(name: str) -> None:
    method, function = (parameters(owner) for owner in (getattr(maxwhisper.Whisper, name), getattr(maxwhisper, name)))
    variable = {p.kind for p in method.values()} & {inspect.Parameter.VAR_KEYWORD}
    assert variable or list(method)[1:] == list(function)[1:]


def test_defaults_are_theirs() -> None:
    for name in ("transcribe", "DecodingOptions"):
        theirs, ours = (parameters(getattr(module, name)) for module in (whisper, maxwhisper))
        assert {p.name: p.default for p in theirs.values()}.items() <= {
            p.name: p.default for p in ours.values()
        }.items()


def test_every_difference_has_a_test() -> None:
    _, _, rest = README.partition("<!-- differences -->")
    table, _, _ = rest.partition("<!-- end of differences -->")
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    for _, what, shown_by, _ in rows:
        file, _, test = shown_by.strip(" `").partition("::")
        assert f"\ndef {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), what


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


def test_the_command_line_takes_what_theirs_takes(
    parsers: tuple[dict[str, argparse.Action], dict[str, argparse.Action]],
) -> None:
    theirs, ours = parsers
    assert theirs.keys() <= ours.keys()
    assert ours.keys() - theirs.keys() == listed("further options")
    others = set()
    theirs["device"].default = "cpu"  # it is the GPU, where PyTorch finds one
    for name, action in theirs.items():
        same = (action.option_strings, action.nargs, action.default) == (
            ours[name].option_strings,
            ours[name].nargs,
            ours[name].default,
        )
        choices = action.choices is None or ours[name].choices == action.choices
        if not (same and choices):
            others.add(name)
    assert others == listed("other defaults")


@pytest.mark.parametrize("text", ["True", "False", "yes", "None", "3", "0.5", "x"])
def test_values_are_read_as_theirs(
    text: str, parsers: tuple[dict[str, argparse.Action], dict[str, argparse.Action]]
) -> None:
    """Where a value is refused, it is by both, but for `None`, which is taken more often here."""
    theirs, ours = parsers
    for name, action in theirs.items():
        read: list[Any] = []
        for option in (action, ours[name]):
            parse = option.type if callable(option.type) else str
            try:
                read.append(parse(text))
            except (ValueError, argparse.ArgumentTypeError):
                read.append(ValueError)
        assert name == "model" or read[0] == read[1] or (read[0] is ValueError and read[1] is None), (name, read)


# Programs.


def program(name: str, package: str) -> Any:
    """A program of `tests/programs`, unchanged but for the import."""
    source = (Path(__file__).parent / "programs" / f"{name}.py").read_text(encoding="utf-8")
    module = ModuleType(name)
    exec(compile(with_ours(source) if package == "maxwhisper" else source, f"{name}.py", "exec"), vars(module))
    return module.main


def with_ours(source: str) -> str:
    """A program with this package in place of OpenAI Whisper."""
    return re.sub(r"^(import|from) whisper\b", lambda found: OURS[found[1]], source, flags=re.MULTILINE)


OURS = {"import": "import maxwhisper as whisper", "from": "from maxwhisper"}


@pytest.fixture
def same_models(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI Whisper would download them, and ask a program for sound."""
    monkeypatch.setattr(whisper, "load_model", lambda name: trio(name).judge)
    monkeypatch.setattr(maxwhisper, "load_model", lambda name: trio(name).model)
    for module in (whisper, whisper.audio):
        monkeypatch.setattr(module, "load_audio", maxwhisper.load_audio)


@pytest.mark.usefixtures("same_models")
@pytest.mark.parametrize("clip", ["beckett", "en/hello_world"])
def test_a_program_that_times_words_runs_unchanged(clip: str, tmp_path: Path, device: str) -> None:
    audio = str(packaged_clips()[clip].path)
    said, times = list[tuple[str, str, list[str]]](), list[list[float]]()
    for package in ("maxwhisper", "whisper"):
        (tmp_path / package).mkdir()
        words = program("subtitles", package)(audio, tmp_path / package)
        (written,) = (tmp_path / package).iterdir()
        said.append(
            (written.name, re.sub(r"\d\d:\d\d:\d\d,\d+", "", written.read_text()), [word for word, _, _ in words])
        )
        times.append([float(start.split(":")[1]) for _, start, _ in words])
    assert said[0] == said[1]
    assert times[0] == pytest.approx(times[1], abs=0.021)  # one frame of 20 ms, and less than the written milliseconds
    assert len(times[0]) > 1


@pytest.mark.usefixtures("same_models")
@pytest.mark.parametrize("name", packaged_clips())
def test_a_program_that_tells_languages_runs_unchanged(name: str, tmp_path: Path, device: str) -> None:
    audio = str(packaged_clips()[name].path)
    ours, theirs = (program("language", package)(audio, tmp_path) for package in ("maxwhisper", "whisper"))
    assert ours == theirs


def openai_tests(folder: Path) -> Path:
    """OpenAI Whisper's own tests, of its source distribution, unchanged but for imports and the list of models; fetched once."""
    judge = f"openai-whisper=={version('openai-whisper')}"
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
            judge,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the source of {judge} can't be had here")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        sources = {
            Path(name).name: tar.extractfile(name) for name in tar.getnames() if re.search(r"/tests/\w+\.py$", name)
        }
        for name, file in sources.items():
            assert file is not None
            source = file.read().decode().replace("whisper.available_models()", '["tiny.en", "base"]')
            (folder / name).write_text(with_ours(source), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = requires_cuda\n")
    return folder


def test_openais_own_tests_pass(pytestconfig: pytest.Config, device: str) -> None:
    """Those that need no CUDA. Two read a recording that lies beside them in OpenAI's repository, but not in what it publishes."""
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


# Arrays of PyTorch, of which this package knows nothing.

SMALL = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(st.integers(-2, 2), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda values: np.array(values, np.float32).reshape(shape)
    )
)


@given(x=SMALL)
@settings(deadline=None)  # the judge compiles itself when it is first called
def test_tensors_are_warped_and_filtered(x: np.ndarray) -> None:
    import torch

    tensor: Any = torch.from_numpy(x)
    for dtw in (timing.dtw, timing.dtw_cpu, timing.dtw_cuda):
        assert np.array_equal(dtw(tensor), whisper.timing.dtw(tensor))
    filtered = timing.median_filter(tensor, 3)
    assert np.array_equal(filtered, whisper.timing.median_filter(tensor, 3))


@given(x=SMALL)
@settings(deadline=None)  # the judge compiles itself when it is first called
def test_marks_lead_back_as_theirs(x: np.ndarray) -> None:
    """Along any marks that leave no row and no column."""
    marks = np.full((x.shape[0] + 1, x.shape[1] + 1), -1.0)
    marks[1:, 1:] = np.abs(x)
    marks[1, 1:], marks[1:, 1], marks[1, 1] = 2, 1, 0
    assert np.array_equal(timing.backtrace(marks), whisper.timing.backtrace(marks.copy()))


# What the model itself does.


def test_models_take_tensors(tiny_en: Trio) -> None:
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


def test_a_model_moves_to_where_it_is(tiny_en: Trio) -> None:
    assert tiny_en.model.to(tiny_en.model.device_name) is tiny_en.model
    assert tiny_en.model.to(tiny_en.model.device) is tiny_en.model
    if tiny_en.model.device.is_host:
        with pytest.raises(OptionError, match="no GPU"):
            tiny_en.model.to("cuda")


def test_a_model_moves(tiny_en: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a device that is not the one it is taken to be on."""
    mel = np.zeros((80, 3000), np.float32)
    model = maxwhisper.load_model("tiny.en", tiny_en.model.device_name)
    before, here = model.embed_audio(mel).to_numpy(), model.device
    for moved in (model, Whisper(tiny_en.checkpoint, here)):
        monkeypatch.setattr(moved, "device", "elsewhere")
        if moved is model:
            assert moved.to(here) is moved
            assert moved.device == here
            assert np.array_equal(moved.embed_audio(mel).to_numpy(), before)
        else:
            with pytest.raises(OptionError, match="a checkpoint that is gone"):
                moved.to(here)


def test_a_move_that_fails_changes_nothing(tiny_en: Trio) -> None:
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


def test_a_model_has_these_of_a_torch_module(tiny_en: Trio) -> None:
    import torch

    there = {name for name in dir(torch.nn.Module) if not name.startswith("_")}
    said = re.search(r"The methods of `torch\.nn\.Module` are limited to ([^;]*);", " ".join(README.split()))
    assert said and set(re.findall(r"`(\w+)`", said[1])) == there & set(dir(tiny_en.model))


def test_what_changes_nothing_gives_the_model_back(tiny_en: Trio) -> None:
    model = tiny_en.model
    assert model.eval() is model.train(False) is model.requires_grad_(False) is model.float() is model
    if model.device.is_host:
        assert model.cpu() is model


def test_parameters_are_theirs(tiny_en: Trio) -> None:
    def described(model: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(weight.shape) for weight in model.parameters())

    assert described(tiny_en.model) == described(tiny_en.judge)
    assert next(tiny_en.model.parameters()).device == "cpu"
    assert np.issubdtype(next(tiny_en.model.parameters()).dtype, np.floating)


def test_the_encoder_is_embed_audio(tiny_en: Trio) -> None:
    mel = np.zeros((80, 3000), np.float32)
    assert np.array_equal(tiny_en.model.encoder(mel), tiny_en.model.embed_audio(mel))


def test_logits_are_theirs_of_features_and_of_arrays(tiny_en: Trio) -> None:
    import torch

    mel, tokens = np.zeros((2, 80, 3000), np.float32), np.array([[50257, 50362, 464]] * 2)
    features = tiny_en.model.embed_audio(mel)
    logits = tiny_en.model.logits(tokens, features)
    with torch.no_grad():
        theirs = tiny_en.judge(torch.from_numpy(mel), torch.from_numpy(tokens)).numpy()
    assert np.abs(logits - theirs).max() < 2e-3  # another row is off by whole numbers; exactness is for `test_model.py`
    assert np.array_equal(tiny_en.model.logits(tokens, np.asarray(features)), logits)
    assert np.array_equal(tiny_en.model(mel, tokens), logits)
    with pytest.raises(OptionError, match=r"2 sequences of tokens, but features of 1 windows"):
        tiny_en.model.logits(tokens, tiny_en.model.embed_audio(mel[:1]))
    with pytest.raises(OptionError, match=r"\(2, 7, 384\), not \[n, 1500, 384\]"):
        tiny_en.model.logits(tokens, np.asarray(features)[:, :7])


# Text normalisers.

SPOKEN = """Hmm, I kinda dunno 'cause the colour cost twenty-five dollars and sixty cents, um, on the 1st of May nineteen ninety-nine;
Mr. Smith won't've gone there (laughs) [music] at half past two, would he? It's 3,000.50% naïve, sorta double oh seven."""


@pytest.mark.parametrize("package", ["maxwhisper", "whisper"])
def test_normalisers_say_what_they_do(package: str) -> None:
    normalize = importlib.import_module(f"{package}.normalizers").EnglishTextNormalizer()
    assert normalize("Mr. Smith isn't twenty-five") == "mister smith is not 25"


word = st.sampled_from(SPOKEN.split()) | st.text(max_size=6)


@given(text=st.lists(word, max_size=30).map(" ".join), remove=st.booleans(), split=st.booleans())
def test_normalisers_are_openais(text: str, remove: bool, split: bool) -> None:
    assert _ENGLISH[0](text) == _ENGLISH[1](text)
    assert BasicTextNormalizer(remove, split)(text) == whisper.normalizers.BasicTextNormalizer(remove, split)(text)


_ENGLISH = (EnglishTextNormalizer(), whisper.normalizers.EnglishTextNormalizer())


def test_normalisers_that_are_not_installed_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    for name in ("", ".basic", ".english"):
        monkeypatch.delitem(sys.modules, f"maxwhisper.normalizers{name}")
    for name in ("", ".english"):
        with pytest.raises(ImportError, match=r"maxwhisper\[normalizers\]"):
            importlib.import_module(f"maxwhisper.normalizers{name}")
