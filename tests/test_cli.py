"""The command line: what it writes, what it prints, and how it fails."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import Trio
from maxwhisper import AudioError, AudioWarning, Whisper, cli, load_audio, transcribe
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.console import Outlet, say
from maxwhisper.engine import compiled
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.punctuation import PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import AudioInput
from maxwhisper.writers import FORMATS, WriteTXT
from reference.clips import packaged_clips
from tests.checkpoint_writers import random_checkpoint, write_openai
from tests.test_audio import write_audio
from tests.test_checkpoints import SMALL

BECKETT = str(packaged_clips()["beckett"].path)
COUNTING = str(packaged_clips()["en/counting"].path)


@pytest.fixture(autouse=True)
def compiled_once(tiny_en: Trio, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The model that other tests use too; what was asked for is noted."""
    asked = []

    def load_model(*arguments: object, **options: object) -> object:
        asked.append((*arguments, options))
        return tiny_en.model

    monkeypatch.setattr("maxwhisper.cli.load_model", load_model)
    return asked


def run(*arguments: str) -> int:
    return cli.main(["transcribe", *arguments])


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says what went wrong."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maxwhisper:")]
    assert len(lines) == 1, lines
    return lines[0]


def test_all_formats_are_written_and_the_text_is_printed(
    tmp_path: Path, tiny_en: Trio, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(BECKETT, "-o", str(tmp_path / "new" / "folder")) == 0
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        f"beckett.{extension}" for extension in FORMATS
    }
    result = json.loads((tmp_path / "new" / "folder" / "beckett.json").read_text())
    assert result == transcribe(tiny_en.model, BECKETT, best_of=5, beam_size=5)
    printed = capsys.readouterr()
    for segment in result["segments"]:
        assert segment["text"].strip() in printed.out
    assert "[00:00.000 --> " in printed.out
    assert printed.err == ""  # no progress bar where nobody watches


@pytest.mark.parametrize("output_format", FORMATS)
def test_one_format(output_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COUNTING, "--output_dir", str(tmp_path), "--output_format", output_format, "--verbose", "False") == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"counting.{output_format}"]
    assert capsys.readouterr().out == ""


def test_options_reach_the_model(tmp_path: Path, compiled_once: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}

    def spy(options: TranscriptionOptions, model: object, audio: str, **others: object) -> dict:
        own = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        seen.update(**own.pop("decode_options"), **own, **others, audio=audio)
        return {"text": "", "segments": [], "language": "en"}

    monkeypatch.setattr("maxwhisper.cli.transcribe_with", spy)
    monkeypatch.setattr("maxwhisper.cli.set_num_threads", lambda n: seen.update(threads=n))
    arguments = """--model base --model_dir models --threads 2 --temperature 0.2 --temperature_increment_on_fallback 0.4 --best_of 3
        --task translate --language German --initial_prompt Hallo --condition_on_previous_text False --no_speech_threshold None
        --compression_ratio_threshold 3 --logprob_threshold -2 --suppress_tokens 1,2 --length_penalty 0.5 --verbose False
        --compute_type int8 --patience 1.5 --carry_initial_prompt True --word_timestamps True --append_punctuations . --hotwords Tag
        --clip_timestamps 1,2 --hallucination_silence_threshold 2 --vad_filter True --multilingual True --language_detection_segments 3
        --audio_track 1"""
    assert run("talk.mp3", "-o", str(tmp_path), *arguments.split()) == 0
    assert compiled_once == [("base", "cpu", "models", {"compute_type": "int8"})]
    assert seen.pop("threads") == 2
    assert seen.pop("temperature") == pytest.approx([0.2, 0.6, 1.0])
    assert seen == {
        "audio": "talk.mp3",
        "best_of": 3,
        "beam_size": 5,
        "patience": 1.5,
        "task": "translate",
        "language": "German",
        "initial_prompt": "Hallo",
        "condition_on_previous_text": False,
        "no_speech_threshold": None,
        "compression_ratio_threshold": 3.0,
        "logprob_threshold": -2.0,
        "suppress_tokens": "1,2",
        "length_penalty": 0.5,
        "verbose": False,
        "fp16": True,
        "carry_initial_prompt": True,
        "word_timestamps": True,
        "prepend_punctuations": PREPEND_PUNCTUATIONS,
        "append_punctuations": ".",
        "hotwords": "Tag",
        "clip_timestamps": "1,2",
        "hallucination_silence_threshold": 2.0,
        "vad_filter": True,
        "multilingual": True,
        "vad_parameters": None,
        "language_detection_segments": 3,
        "language_detection_threshold": 0.5,
        "audio_track": 1,
    }
    assert run("talk.mp3", "-o", str(tmp_path), "--temperature_increment_on_fallback", "None") == 0
    assert seen["temperature"] == [0.0]


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.wav").write_text("no sound")
    assert run(COUNTING, str(tmp_path / "notes.wav"), BECKETT, "-o", str(tmp_path / "out"), "-f", "txt") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"counting.txt", "beckett.txt"}
    assert "notes.wav can't be read as audio" in failure(capsys)


TOGETHER = pytest.mark.parametrize("how", [[], ["--batch_size", "2"]], ids=["one by one", "batched"])
FILES = [BECKETT, COUNTING, str(packaged_clips()["en/hello_world"].path)]


@TOGETHER
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("by nothing\nat all"), MemoryError(), OSError(5, "Input/output error"), AudioError("no")],
)
def test_any_exception_is_that_of_a_file(
    error: Exception,
    how: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hear = AudioInput.of

    def fail(model: Whisper, audio: str, *others: object) -> AudioInput:
        if audio == COUNTING:
            raise error
        return hear(model, audio, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(AudioInput, "of", fail)
    assert run(*FILES, *how, "-o", str(tmp_path), "-f", "txt") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"beckett.txt", "hello_world.txt"}
    lines = str(error).splitlines() or [""]
    said = (
        lines[0]
        if isinstance(error, AudioError)
        else f"{COUNTING}: {type(error).__name__}: {lines[0]}".removesuffix(": ")
    )
    assert failure(capsys) == f"maxwhisper: {said}"
    assert run(COUNTING, *how, "-o", str(tmp_path), "-f", "txt", "--debug") == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown and "in fail" in shown and f"maxwhisper: {said}" in shown


def test_what_fails_for_many_windows_is_done_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which of them it was; standard input is among them, which can be read but once."""
    embed = Whisper.embed_audio

    def fail(model: Whisper, mel: np.ndarray) -> object:
        if mel.ndim == 3 and len(mel) > 1:
            raise MemoryError
        return embed(model, mel)

    monkeypatch.setattr(Whisper, "embed_audio", fail)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(COUNTING).read_bytes())))
    assert run("-", BECKETT, "--batch_size", "2", "-o", str(tmp_path), "-f", "txt") == 0
    assert {path.name: len(path.read_text()) > 20 for path in tmp_path.iterdir()} == {
        "stdin.txt": True,
        "beckett.txt": True,
    }
    assert capsys.readouterr().err == ""


def test_what_is_done_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def transcribe_batched(options: object, model: object, recordings: Iterable[str], *_: object) -> Iterator[dict]:
        for _recording in recordings:
            yield {"text": "", "segments": [], "language": "en"}
            written.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr("maxwhisper.cli.transcribe_batched_with", transcribe_batched)
    assert run(*FILES, "--batch_size", "2", "-o", str(tmp_path), "-f", "txt") == 0
    assert written == [1, 2]  # nobody asks for what is behind the last


def test_a_writer_that_fails_is_that_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = WriteTXT.__call__

    def fail(writer: WriteTXT, result: dict, name: str, *options: object) -> None:
        if name == BECKETT:
            raise KeyError("words")
        write(writer, result, name, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(WriteTXT, "__call__", fail)
    assert run(*FILES, "-o", str(tmp_path), "-f", "txt") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"counting.txt", "hello_world.txt"}
    assert f"{BECKETT}: KeyError: 'words'" in failure(capsys)


def test_an_exception_before_any_file_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maxwhisper.cli.load_model", lambda *_, **__: [][0])
    assert run(BECKETT, "-o", str(tmp_path)) == 1
    assert failure(capsys) == "maxwhisper: IndexError: list index out of range"


def test_warnings_are_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(options: object, model: object, audio: str, **others: object) -> dict:
        warnings.warn(f"{Path(audio).stem} is strange", AudioWarning, stacklevel=2)
        warnings.warn("something else", UserWarning, stacklevel=2)
        return {"text": "", "segments": [], "language": "en"}

    monkeypatch.setattr("maxwhisper.cli.transcribe_with", warned)
    with pytest.warns(UserWarning, match="something else"):  # as elsewhere
        assert run(*FILES[:2], "-o", str(tmp_path)) == 0
    printed = capsys.readouterr().err
    for name in ("beckett", "counting"):
        assert f"maxwhisper: warning: {name} is strange\n" in printed


@pytest.mark.parametrize("extension", ["wav", "mp3", "m4a"])
def test_standard_input_is_read(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_audio(tmp_path / f"speech.{extension}", load_audio(COUNTING)[None], SAMPLE_RATE)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(source.read_bytes())))
    assert run("-", "-o", str(tmp_path / "out"), "-f", "txt", "--verbose", "False") == 0
    assert run(str(source), "-o", str(tmp_path / "out"), "-f", "txt", "--verbose", "False") == 0
    assert (tmp_path / "out" / "stdin.txt").read_text() == (tmp_path / "out" / "speech.txt").read_text()
    for nothing, match in (
        (b"", "standard input can't be read as audio"),
        (b"no sound", "standard input can't be read as audio"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(nothing)))
        assert run("-", "-o", str(tmp_path / "out"), "-f", "srt") == 1
        assert match in failure(capsys)
    cut = write_audio(tmp_path / "cut.wav", load_audio(BECKETT)[None], SAMPLE_RATE).read_bytes()[:-100_000]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(cut)))
    assert run("-", "-o", str(tmp_path / "out"), "-f", "srt") == 0
    assert failure(capsys).startswith("maxwhisper: warning: standard input may be cut short")


def test_subtitles_are_laid_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--word_timestamps", "True", "-o", str(tmp_path), "-f", "srt"]
    assert run(BECKETT, *words, "--max_words_per_line", "1", "--max_line_width", "20", "--max_line_count", "1") == 0
    assert "--max_words_per_line has no effect" in failure(capsys)
    lines = (tmp_path / "beckett.srt").read_text().split("\n\n")
    assert max(len(line) for subtitle in lines for line in subtitle.split("\n")[2:]) <= 20
    assert run(BECKETT, *words, "--highlight_words", "True", "--max_line_count", "1") == 0
    assert "--max_line_count has no effect" in failure(capsys)
    assert "<u>" in (tmp_path / "beckett.srt").read_text()


def test_words_of_many_windows_at_once(tmp_path: Path) -> None:
    assert (
        run(BECKETT, COUNTING, "--word_timestamps", "True", "--batch_size", "2", "-o", str(tmp_path), "-f", "json") == 0
    )
    for name in ("beckett", "counting"):
        segments = json.loads((tmp_path / f"{name}.json").read_text())["segments"]
        assert all(segment["words"] for segment in segments)


def test_english_models_say_that_they_know_only_english(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COUNTING, "-o", str(tmp_path), "--language", "French", "-f", "json") == 0
    assert json.loads((tmp_path / "counting.json").read_text())["language"] == "en"
    assert "tiny.en knows only English" in failure(capsys)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--beam_size", "0"], "beam_size 0 follows no sequence"),
        (["--patience", "0.05"], "patience 0.05 lets none of 5 sequences end"),
        (["--temperature", "-1"], "temperature -1.0 is not 0 or more"),
        (["--temperature", "nan"], "temperature nan is not 0 or more"),
        (["--temperature_increment_on_fallback", "0"], "is not between 0.01 and 1"),
        (["--temperature_increment_on_fallback", "nan"], "is not between 0.01 and 1"),
        (["--initial_prompt", "<|endoftext|>"], "special tokens"),
        (["--suppress_tokens", "x"], "'x' is not a comma-separated list"),
        (["--suppress_tokens", "60000"], "tokens that the vocabulary of 51864 lacks"),
        (["--threads", "-1"], "-1 threads can't be used"),
        (["--clip_timestamps", "3,x"], "'3,x' is not a list of numbers"),
        (["--clip_timestamps", "3,2"], "'3,2' is not start,end"),
        (["--highlight_words", "True"], "--highlight_words needs --word_timestamps True"),
        (["--max_line_width", "10"], "--max_line_width needs --word_timestamps True"),
        (["--hotwords", "Beckett", "--batch_size", "2"], "--hotwords can't be used with --batch_size"),
        (
            ["--hallucination_silence_threshold", "0", "--batch_size", "2"],
            "--hallucination_silence_threshold can't be used",
        ),
        (["missing.wav"], "missing.wav can't be read"),
        (["."], ". is a folder"),
        (["elsewhere/beckett.mp3"], "2 of the files are named beckett"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(
    arguments: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(BECKETT, *arguments, "-o", str(tmp_path), "-f", "txt") == 1
    assert match in failure(capsys)


@pytest.mark.parametrize(
    "arguments", [["--model"], ["--task", "sing"], ["--language", "Klingon"], ["--verbose", "yes"], ["--nonsense"]]
)
def test_wrong_usage_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(BECKETT, *arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_noticed_before_any_work(
    tmp_path: Path, compiled_once: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        assert run(BECKETT, "-o", str(folder)) == 1
        assert "choose another --output_dir" in failure(capsys)
    assert compiled_once == []


def test_a_folder_that_can_not_be_written_is_noticed(
    tmp_path: Path, compiled_once: list[tuple], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    assert run(BECKETT, "-o", str(tmp_path)) == 1
    assert "can't be written to" in failure(capsys)
    assert compiled_once == []


@pytest.mark.parametrize("option", ["--help", "transcribe --help"])
def test_help_names_the_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(option.split())
    assert caught.value.code == 0
    assert "transcribe" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"maxwhisper {version('maxwhisper')}\n"


# The real program, in a process of its own.


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maxwhisper", *arguments], capture_output=True, text=True, timeout=1200
    )


def test_bad_models_are_named_without_a_traceback(tmp_path: Path) -> None:
    whole = write_openai(tmp_path / "whole.pt", random_checkpoint(SMALL)).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    for model, match in (("tiny.fr", "no model 'tiny.fr'"), (str(tmp_path / "cut.pt"), "cut.pt is damaged")):
        done = program("transcribe", BECKETT, "--model", model, "-o", str(tmp_path / "out"))
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert match in done.stderr
        assert list((tmp_path / "out").iterdir()) == []


def test_a_very_long_name_is_written(tmp_path: Path) -> None:
    recording = tmp_path / f"{'x' * 240}.wav"
    recording.write_bytes(Path(COUNTING).read_bytes())
    assert run(str(recording), "-o", str(tmp_path / "out")) == 0
    assert len(list((tmp_path / "out").iterdir())) == len(FORMATS)


def test_thread_counts_give_the_same_transcript(tmp_path: Path, device: str) -> None:
    results = []
    for threads in ("1", "2"):
        out = tmp_path / threads
        done = program("transcribe", BECKETT, "--threads", threads, "--device", device, "-o", str(out), "-f", "json")
        assert done.returncode == 0, done.stderr
        results.append([segment["tokens"] for segment in json.loads((out / "beckett.json").read_text())["segments"]])
    assert results[0] == results[1]


def test_no_torch_is_needed(tmp_path: Path) -> None:
    """Neither to import the package nor to transcribe."""
    script = f"""
import sys
from maxwhisper.cli import main
assert main(["transcribe", {COUNTING!r}, "-o", {str(tmp_path)!r}]) == 0
import maxwhisper
loaded = {{"torch", "whisper", "librosa", "reference"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr


# Where there are no streams, no home and no patience.


def shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, started by a shell that redirects its streams."""
    command = f'"$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND, *arguments], capture_output=True, text=True, timeout=1200
    )


COMMAND = (sys.executable, "-m", "maxwhisper", "transcribe")


@pytest.mark.parametrize(
    "redirections",
    [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| head -n 0", "| sleep 0"],
)
@TOGETHER
def test_streams_that_are_closed_keep_nothing_from_being_written(
    redirections: str, how: list[str], tmp_path: Path, device: str
) -> None:
    done = shell(
        f"{redirections}; echo $? >{tmp_path}/status",
        BECKETT,
        COUNTING,
        *how,
        "--device",
        device,
        "-o",
        str(tmp_path),
        "-f",
        "txt",
    )
    assert done.stderr == ""
    assert {path.name for path in tmp_path.glob("*.txt")} == {"beckett.txt", "counting.txt"}
    assert "Ever tried" in (tmp_path / "beckett.txt").read_text()
    assert (tmp_path / "status").read_text() == "0\n"


@pytest.mark.parametrize("redirections", ["| head -n 0", ">&-", ">/dev/full"])
def test_a_pipe_that_closes_changes_no_exit_status(redirections: str, tmp_path: Path, device: str) -> None:
    script = f'set -o pipefail; "$@" {redirections}'
    for arguments in ([BECKETT, "--device", device, "-o", str(tmp_path)], ["--help"]):
        done = subprocess.run(
            ["bash", "-c", script, "bash", *COMMAND, *arguments], capture_output=True, text=True, timeout=1200
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("redirection", "reason"), [("<&-", "it is closed"), ("0>/dev/null", "Bad file descriptor")])
@TOGETHER
def test_standard_input_that_is_not_there_is_said(
    redirection: str, reason: str, how: list[str], tmp_path: Path, device: str
) -> None:
    done = shell(redirection, "-", BECKETT, *how, "--device", device, "-o", str(tmp_path), "-f", "txt")
    assert done.returncode == 1
    assert (
        done.stderr == f"maxwhisper: standard input can't be read ({reason}); pipe a recording to it, or name a file\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["beckett.txt"]


@pytest.mark.parametrize("stream", ["None", "closed"])
@pytest.mark.parametrize(
    "call", ["maxwhisper.transcribe(model, {0!r}, verbose={1})", "main(['transcribe', {0!r}, '-o', {2!r}])"]
)
def test_programs_without_a_console_work(stream: str, call: str, tmp_path: Path) -> None:
    """As those of pythonw and of services."""
    script = f"""
import io, os, sys
import maxwhisper
from maxwhisper.cli import main
closed = io.StringIO()
closed.close()
sys.stdin = sys.stdout = sys.stderr = {stream}
model = maxwhisper.load_model()
for verbose in (None, False, True):
    result = {call.format(BECKETT, "verbose", str(tmp_path))}
    if result != 0 and "Ever tried" not in result["text"]:
        os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


NO_HOME = (
    "import pwd, sys; pwd.getpwuid = lambda uid: {}[uid]; from maxwhisper.cli import main; sys.exit(main(sys.argv[1:]))"
)


def homeless(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program, of a user that the system doesn't know."""
    return subprocess.run(
        [sys.executable, "-c", NO_HOME, *arguments], capture_output=True, text=True, timeout=1200, env=environment
    )


@pytest.mark.parametrize("arguments", [["--help"], ["transcribe", "--help"], ["compile", "--help"]])
def test_help_needs_no_home(arguments: list[str]) -> None:
    done = homeless(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("device")
def test_nobody_needs_a_home(tmp_path: Path) -> None:
    for environment in (
        {"MAXWHISPER_CACHE": str(compiled.folder())},
        {"XDG_CACHE_HOME": str(compiled.folder().parent)},
    ):
        done = homeless("transcribe", BECKETT, "-o", str(tmp_path), "-f", "txt", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        (tmp_path / "beckett.txt").unlink()
    done = homeless("compile")
    assert done.returncode == 1
    assert (
        done.stderr
        == "maxwhisper: there is no home folder to keep compiled graphs in; set MAXWHISPER_CACHE to a folder\n"
    )
    done = homeless("transcribe", BECKETT, "--model", "small", "-o", str(tmp_path), "-f", "txt", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "maxwhisper: model small is neither in a local cache"
    )


def interrupted(process: subprocess.Popen[str], sign: str, after: float) -> tuple[int, float, str]:
    """Send Ctrl-C some time after a line with that sign; the exit status, how long it took to end, and the lines behind."""
    assert process.stderr
    assert any(sign in line for line in process.stderr)
    time.sleep(after)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    return process.wait(), time.monotonic() - begin, rest


@pytest.mark.parametrize("module", ["numpy", "max.driver", "max.engine", "max.graph", "maxwhisper.whisper", "argparse"])
def test_an_import_is_interrupted(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "maxwhisper", "transcribe", BECKETT, "-o", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        status, seconds, rest = interrupted(process, f" {module}\n", 0)
    assert status == 130
    assert seconds < 3
    assert [line for line in rest.splitlines() if not line.startswith("import time:")] == []


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("after", [0, 4])
def test_compiling_is_interrupted(after: float, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("MAXWHISPER_CACHE", "MODULAR_CACHE_DIR")}
    command = [*COMMAND, BECKETT, "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **folders}) as process:
        status, seconds, rest = interrupted(process, "compiling Whisper's graphs", after)
    assert (status, rest) == (130, "")
    assert seconds < 3
    assert not list(Path(folders["MAXWHISPER_CACHE"]).rglob("*"))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("after", [0.5, 1.5])
def test_transcribing_is_interrupted(after: float, tmp_path: Path) -> None:
    recordings = [shutil.copy(BECKETT, tmp_path / f"{i}.wav") for i in range(100)]
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "maxwhisper",
        "transcribe",
        *map(str, recordings),
        "-o",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        status, seconds, rest = interrupted(process, "argparse", after)
    assert status == 130
    assert seconds < 3
    assert "Traceback" not in rest
    assert not [
        path for path in (tmp_path / "out").glob("*") if path.name.endswith(".partial") or not path.stat().st_size
    ]


class Plain:
    """A stream as programs put in the place of the standard ones: it writes, and knows nothing else."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text


def test_a_stream_that_only_writes_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Plain()
    monkeypatch.setattr(sys, "stdout", stream)
    say("a line")
    assert stream.written == "a line\n"


def test_what_is_said_is_there_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("a line")
        assert (tmp_path / "out").read_text() == "a line\n"
        assert Outlet(stream).encoding == stream.encoding
