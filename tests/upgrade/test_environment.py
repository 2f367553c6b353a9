"""Pip's arguments for a version of MAX, and the errors if a version is not available."""

import re
from pathlib import Path

import pytest

from tests.upgrade import environment
from tests.upgrade.__main__ import main
from tests.upgrade.environment import Environment, UpgradeError, prepare, requirements


def test_a_version_becomes_pips_arguments(tmp_path: Path) -> None:
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
        ("newest", "'newest' is no version of MAX; use one such as 26.7.0, a wheel's path, latest or nightly"),
        ("26.7.0; rm", "'26.7.0; rm' is no version of MAX"),
        ("26.7.0,nowhere.whl", "there is no wheel nowhere.whl"),
        ("nowhere.whl", "there is no wheel nowhere.whl"),
        ("nightly", "name it with --index URL"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_an_unavailable_version_is_an_error_at_once(
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
    printed = capsys.readouterr()
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_an_error_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "report").write_text("a file", encoding="utf-8")
    assert main(["26.7.0", "26.7.0", "--report", str(tmp_path / "report")]) == 3
    assert "report" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["26.7.0"], ["26.7.0", "26.7.0", "--what"]])
def test_wrong_arguments_exit_with_3(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Argparse's exit status 2 would mean "slower"."""
    with pytest.raises(SystemExit) as status:
        main(argv)
    assert status.value.code == 3
    assert "usage" in capsys.readouterr().err


def test_a_version_that_does_not_exist_raises_with_pips_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path)
    with pytest.raises(UpgradeError, match=re.escape("max==1.99.99")):
        prepare("1.99.99")


def test_a_changed_wheel_gets_a_different_environment(tmp_path: Path) -> None:
    wheel = tmp_path / "fault.whl"
    names = []
    for content in (b"1", b"2"):
        wheel.write_bytes(content)
        names.append(environment._name(f"26.7.0,{wheel}", ["max==26.7.0", str(wheel)]))
    assert names[0] != names[1]
    assert all(re.fullmatch(r"26\.7\.0-fault-\w{8}", name) for name in names)


def test_a_process_does_not_inherit_this_ones_max(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_python: Environment
) -> None:
    """MAX sets its compiler's paths as environment variables of the process that imports it."""
    monkeypatch.setenv("MODULAR_MOJO_MAX_IMPORT_PATH", "/of/a/different/version")
    prefixes = ("MODULAR", "MAXWHISPER_CACHE", "TMP")
    script = f"import os; print({{name: os.environ[name] for name in os.environ if name.startswith({prefixes})}})"
    output, _ = own_python.start("-c", script).communicate()
    assert "of/a/different/version" not in output.decode()
    assert output.decode().count(str(own_python.folder)) == 3


def test_a_process_that_hangs_is_ended(own_python: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(UpgradeError, match="exit status -9"):
        own_python.run("-c", "import time; time.sleep(600)")


def test_the_error_of_a_failed_process_has_its_last_line(own_python: Environment) -> None:
    with pytest.raises(UpgradeError, match="exit status 1: ValueError: the reason"):
        own_python.run("-c", "raise ValueError('the reason')")
