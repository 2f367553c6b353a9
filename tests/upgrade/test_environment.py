"""What pip is told, and what is said where that can't be had."""

import re
from pathlib import Path

import pytest

from tests.upgrade import environment
from tests.upgrade.__main__ import main
from tests.upgrade.environment import Environment, UpgradeError, prepare, requirements


def test_what_pip_is_told(tmp_path: Path) -> None:
    wheel = tmp_path / "fault-0-py3-none-any.whl"
    wheel.write_bytes(b"")
    assert requirements("26.7.0") == ("max==26.7.0", [])
    assert requirements("26.8.0.dev2026112505") == ("max==26.8.0.dev2026112505", [])
    assert requirements("latest") == ("max", [])
    assert requirements("nightly", "somewhere")[0].endswith(".dev0")
    assert requirements(f"26.7.0,{wheel}") == ("max==26.7.0", [str(wheel)])
    assert requirements(str(wheel)) == (str(wheel), [])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("newest", "'newest' is no version of MAX; give one as 26.7.0, a wheel's path, latest or nightly"),
        ("26.7.0; rm", "'26.7.0; rm' is no version of MAX"),
        ("26.7.0,nowhere.whl", "there is no wheel nowhere.whl"),
        ("nowhere.whl", "there is no wheel nowhere.whl"),
        ("nightly", "give it with --index URL"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_cannot_be_had_is_said_at_once(
    asked: str,
    says: str,
    place: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "environments")
    versions = ["26.7.0", "26.7.0"]
    versions[place] = asked
    assert main([*versions, "--report", str(tmp_path / "report")]) == 3
    seen = capsys.readouterr()
    assert says in seen.err
    assert "Traceback" not in seen.err
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_said_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file", encoding="utf-8")
    assert main(["26.7.0", "26.7.0", "--report", str(tmp_path / "report")]) == 3
    assert "report" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["26.7.0"], ["26.7.0", "26.7.0", "--what"]])
def test_arguments_that_make_no_comparison_are_no_verdict(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Argparse's exit status would be that of "slower"."""
    with pytest.raises(SystemExit) as status:
        main(argv)
    assert status.value.code == 3
    assert "usage" in capsys.readouterr().err


def test_a_version_that_is_not_out_is_what_pip_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path)
    with pytest.raises(UpgradeError, match=re.escape("max==1.99.99")):
        prepare("1.99.99")


def test_another_wheel_is_another_environment(tmp_path: Path) -> None:
    wheel = tmp_path / "fault.whl"
    names = []
    for content in (b"1", b"2"):
        wheel.write_bytes(content)
        names.append(environment._name(f"26.7.0,{wheel}", ["max==26.7.0", str(wheel)]))
    assert names[0] != names[1]
    assert all(re.fullmatch(r"26\.7\.0-fault-\w{8}", name) for name in names)


def test_nothing_of_this_processs_max_reaches_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_python: Environment
) -> None:
    """MAX puts paths of its compiler's into the environment of the process that imports it; our own has."""
    monkeypatch.setenv("MODULAR_MOJO_MAX_IMPORT_PATH", "/of/another/version")
    script = "import os; print({name: os.environ[name] for name in os.environ if name.startswith(('MODULAR', 'MAXWHISPER_CACHE', 'TMP'))})"
    output, _ = own_python.start("-c", script).communicate()
    assert "of/another/version" not in output.decode()
    assert output.decode().count(str(own_python.folder)) == 3


def test_a_process_that_hangs_is_ended(own_python: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "SECONDS", 0.5)
    with pytest.raises(UpgradeError, match="exit status -9"):
        own_python.run("-c", "import time; time.sleep(600)")


def test_a_process_that_fails_leaves_its_last_words(own_python: Environment) -> None:
    with pytest.raises(UpgradeError, match="exit status 1: ValueError: at last"):
        own_python.run("-c", "raise ValueError('at last')")
