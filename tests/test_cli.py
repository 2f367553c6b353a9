"""Files, output and errors of the command line."""

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

from maxwhisper import AudioError, AudioWarning, Whisper, cli, load_audio, transcribe
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.console import Outlet, explained, say
from maxwhisper.engine import compiled
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.punctuation import PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import AudioInput
from maxwhisper.writers import FORMATS, WriteTXT
from reference.clips import packaged_clips
from tests.support.audio import write_audio
from tests.support.checkpoints import SMALL, random_checkpoint, write_openai
from tests.support.implementations import Implementations

BECKETT = str(packaged_clips()["beckett"].path)
COUNTING = str(packaged_clips()["en/counting"].path)


@pytest.fixture(autouse=True)
def load_calls(tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Let the command line use the model of other tests. Return the arguments of `load_model`."""
    calls = []

    def load_model(*arguments: object, **options: object) -> object:
        calls.append((*arguments, options))
        return tiny_en.model

    monkeypatch.setattr("maxwhisper.cli.load_model", load_model)
    return calls


def run(*arguments: str) -> int:
    return cli.main(["transcribe", *arguments])


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of maxwhisper in the error output."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maxwhisper:")]
    assert len(lines) == 1, lines
    return lines[0]


def test_all_formats_are_written_and_the_text_is_printed(
    tmp_path: Path, tiny_en: Implementations, capsys: pytest.CaptureFixture[str]
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
    assert printed.err == ""  # no progress bar if the output is not a terminal


@pytest.mark.parametrize("output_format", FORMATS)
def test_one_format_is_written(output_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COUNTING, "--output_dir", str(tmp_path), "--output_format", output_format, "--verbose", "False") == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"counting.{output_format}"]
    assert capsys.readouterr().out == ""


def test_options_reach_the_model(tmp_path: Path, load_calls: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict = {}

    def spy(options: TranscriptionOptions, model: object, audio: str, **arguments: object) -> dict:
        fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        received.update(**fields.pop("decode_options"), **fields, **arguments, audio=audio)
        return {"text": "", "segments": [], "language": "en"}

    monkeypatch.setattr("maxwhisper.cli.transcribe_with", spy)
    monkeypatch.setattr("maxwhisper.cli.set_num_threads", lambda n: received.update(threads=n))
    arguments = """--model base --model_dir models --threads 2 --temperature 0.2 --best_of 3
        --temperature_increment_on_fallback 0.4 --task translate --language German
        --initial_prompt Hallo --condition_on_previous_text False --no_speech_threshold None
        --compression_ratio_threshold 3 --logprob_threshold -2 --suppress_tokens 1,2
        --length_penalty 0.5 --verbose False --compute_type int8 --patience 1.5
        --carry_initial_prompt True --word_timestamps True --append_punctuations . --hotwords Tag
        --clip_timestamps 1,2 --hallucination_silence_threshold 2 --vad_filter True
        --multilingual True --language_detection_segments 3 --audio_track 1"""
    assert run("talk.mp3", "-o", str(tmp_path), *arguments.split()) == 0
    assert load_calls == [("base", "cpu", "models", {"compute_type": "int8"})]
    assert received.pop("threads") == 2
    assert received.pop("temperature") == pytest.approx([0.2, 0.6, 1.0])
    assert received == {
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
    assert received["temperature"] == [0.0]


def test_a_bad_file_does_not_stop_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.wav").write_text("no sound")
    assert run(COUNTING, str(tmp_path / "notes.wav"), BECKETT, "-o", str(tmp_path / "out"), "-f", "txt") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"counting.txt", "beckett.txt"}
    assert "notes.wav can't be read as audio" in failure(capsys)


BATCHED_OR_NOT = pytest.mark.parametrize("mode", [[], ["--batch_size", "2"]], ids=["one by one", "batched"])
FILES = [BECKETT, COUNTING, str(packaged_clips()["en/hello_world"].path)]


@BATCHED_OR_NOT
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("by nothing\nat all"), MemoryError(), OSError(5, "Input/output error"), AudioError("no")],
)
def test_any_exception_fails_only_its_file(
    error: Exception,
    mode: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = AudioInput.of

    def fail(model: Whisper, audio: str, *arguments: object) -> AudioInput:
        if audio == COUNTING:
            raise error
        return read(model, audio, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AudioInput, "of", fail)
    assert run(*FILES, *mode, "-o", str(tmp_path), "-f", "txt") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"beckett.txt", "hello_world.txt"}
    lines = str(error).splitlines() or [""]
    message = (
        lines[0]
        if isinstance(error, AudioError)
        else f"{COUNTING}: {type(error).__name__}: {lines[0]}".removesuffix(": ")
    )
    assert failure(capsys) == f"maxwhisper: {message}"
    assert run(COUNTING, *mode, "-o", str(tmp_path), "-f", "txt", "--debug") == 1
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed and "in fail" in printed
    assert f"maxwhisper: {message}" in printed


def test_a_batch_that_fails_is_retried_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unknown which recording failed. One is standard input, which can be read only once."""
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


def test_finished_transcripts_are_written_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def transcribe_batched(options: object, model: object, recordings: Iterable[str], *_: object) -> Iterator[dict]:
        for _recording in recordings:
            yield {"text": "", "segments": [], "language": "en"}
            written.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr("maxwhisper.cli.transcribe_batched_with", transcribe_batched)
    assert run(*FILES, "--batch_size", "2", "-o", str(tmp_path), "-f", "txt") == 0
    assert written == [1, 2]  # the iterator is not continued after the last transcript


def test_a_writer_that_fails_fails_only_its_file(
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


def test_an_exception_before_any_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maxwhisper.cli.load_model", lambda *_, **__: [][0])
    assert run(BECKETT, "-o", str(tmp_path)) == 1
    assert failure(capsys) == "maxwhisper: IndexError: list index out of range"


def test_warnings_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def transcribe_with_warnings(options: object, model: object, audio: str, **arguments: object) -> dict:
        warnings.warn(f"{Path(audio).stem} is strange", AudioWarning, stacklevel=2)
        warnings.warn("something else", UserWarning, stacklevel=2)
        return {"text": "", "segments": [], "language": "en"}

    monkeypatch.setattr("maxwhisper.cli.transcribe_with", transcribe_with_warnings)
    with pytest.warns(UserWarning, match="something else"):  # other warnings are not changed
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
    for content, match in (
        (b"", "standard input can't be read as audio"),
        (b"no sound", "standard input can't be read as audio"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
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


def test_words_are_written_in_batched_mode(tmp_path: Path) -> None:
    assert (
        run(BECKETT, COUNTING, "--word_timestamps", "True", "--batch_size", "2", "-o", str(tmp_path), "-f", "json") == 0
    )
    for name in ("beckett", "counting"):
        segments = json.loads((tmp_path / f"{name}.json").read_text())["segments"]
        assert all(segment["words"] for segment in segments)


def test_english_only_models_warn_about_other_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_unusable_arguments_are_reported_in_one_line(
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
    tmp_path: Path, load_calls: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        assert run(BECKETT, "-o", str(folder)) == 1
        assert "choose another --output_dir" in failure(capsys)
    assert load_calls == []


def test_a_folder_that_can_not_be_written_is_noticed(
    tmp_path: Path, load_calls: list[tuple], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    assert run(BECKETT, "-o", str(tmp_path)) == 1
    assert "can't be written to" in failure(capsys)
    assert load_calls == []


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


# The program in a separate process.


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
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
    """Neither importing the package nor transcribing imports torch."""
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


# Closed streams, no home folder, and Ctrl-C.


def shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program by a shell that redirects its streams."""
    command = f'"$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND, *arguments], capture_output=True, text=True, timeout=1200
    )


COMMAND = (sys.executable, "-m", "maxwhisper", "transcribe")


@pytest.mark.parametrize(
    "redirections",
    [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| head -n 0", "| sleep 0"],
)
@BATCHED_OR_NOT
def test_files_are_written_though_streams_are_closed(
    redirections: str, mode: list[str], tmp_path: Path, device: str
) -> None:
    done = shell(
        f"{redirections}; echo $? >{tmp_path}/status",
        BECKETT,
        COUNTING,
        *mode,
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
@BATCHED_OR_NOT
def test_missing_standard_input_is_reported(
    redirection: str, reason: str, mode: list[str], tmp_path: Path, device: str
) -> None:
    done = shell(redirection, "-", BECKETT, *mode, "--device", device, "-o", str(tmp_path), "-f", "txt")
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
    """Programs of pythonw and services have no console."""
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


def without_home(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user whom the system does not know."""
    return subprocess.run(
        [sys.executable, "-c", NO_HOME, *arguments], capture_output=True, text=True, timeout=1200, env=environment
    )


@pytest.mark.parametrize("arguments", [["--help"], ["transcribe", "--help"], ["compile", "--help"]])
def test_help_needs_no_home(arguments: list[str]) -> None:
    done = without_home(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("device")
def test_no_home_folder_is_needed(tmp_path: Path) -> None:
    for environment in (
        {"MAXWHISPER_CACHE": str(compiled.folder())},
        {"XDG_CACHE_HOME": str(compiled.folder().parent)},
    ):
        done = without_home("transcribe", BECKETT, "-o", str(tmp_path), "-f", "txt", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        (tmp_path / "beckett.txt").unlink()
    done = without_home("compile")
    assert done.returncode == 1
    assert (
        done.stderr
        == "maxwhisper: there is no home folder to keep compiled graphs in; set MAXWHISPER_CACHE to a folder\n"
    )
    done = without_home("transcribe", BECKETT, "--model", "small", "-o", str(tmp_path), "-f", "txt", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "maxwhisper: model small is neither in a local cache"
    )


def interrupt(process: subprocess.Popen[str], text: str, after: float) -> tuple[int, float, str]:
    """Send Ctrl-C to a process some seconds after it prints a line with a given text.

    Returns:
        The exit status, the seconds until the process ended, and the lines printed after that line.
    """
    assert process.stderr
    assert any(text in line for line in process.stderr)
    time.sleep(after)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    return process.wait(), time.monotonic() - begin, rest


@pytest.mark.undisturbed
@pytest.mark.parametrize(
    "module",
    ["numpy", "max.driver", "max.engine", "max.graph", "maxwhisper.engine.runtime", "maxwhisper", "argparse"],
)
def test_ctrl_c_during_imports_exits_quietly(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "maxwhisper", "transcribe", BECKETT, "-o", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        status, seconds, rest = interrupt(process, f" {module}\n", 0)
    assert status == 130
    assert seconds < 3
    assert [line for line in rest.splitlines() if not line.startswith("import time:")] == []


@pytest.mark.undisturbed
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("after", [0, 4])
def test_ctrl_c_while_compiling_exits_quietly(after: float, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("MAXWHISPER_CACHE", "MODULAR_CACHE_DIR")}
    command = [*COMMAND, BECKETT, "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **folders}) as process:
        status, seconds, rest = interrupt(process, "compiling Whisper's graphs", after)
    assert (status, rest) == (130, "")
    assert seconds < 3
    assert not list(Path(folders["MAXWHISPER_CACHE"]).rglob("*"))


@pytest.mark.undisturbed
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("after", [0.5, 1.5])
def test_ctrl_c_while_transcribing_exits_quietly(after: float, tmp_path: Path) -> None:
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
        status, seconds, rest = interrupt(process, "argparse", after)
    assert status == 130
    assert seconds < 3
    assert "Traceback" not in rest
    assert not [
        path for path in (tmp_path / "out").glob("*") if path.name.endswith(".partial") or not path.stat().st_size
    ]


class WriteOnly:
    """A stream that can only write, such as programs use to replace standard output."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text


def test_a_stream_that_only_writes_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = WriteOnly()
    monkeypatch.setattr(sys, "stdout", stream)
    say("a line")
    assert stream.written == "a line\n"


def test_printed_lines_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("a line")
        assert (tmp_path / "out").read_text() == "a line\n"
        assert Outlet(stream).encoding == stream.encoding


class Terminal(io.StringIO):
    """Keeps what is printed to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "counts"), [(Terminal(), True), (io.StringIO(), False)])
def test_what_takes_long_is_explained_and_timed(
    stream: io.StringIO, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    with explained("compiling…", after=60):
        pass
    assert not stream.getvalue()
    with explained("compiling…", after=0.2):
        time.sleep(2.5)
    assert stream.getvalue().startswith("compiling…\n")
    assert ("00:01" in stream.getvalue()) == counts
