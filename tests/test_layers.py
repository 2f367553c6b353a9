"""Each import contract in `pyproject.toml` breaks if a forbidden import is added."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("maxwhisper", "reference", "tests")
# Contract, module, and the forbidden import that is added to the module.
PLANTED = [
    ("maxwhisper", "maxwhisper/engine/ops/cpu.py", "import maxwhisper.decoding"),
    ("engine", "maxwhisper/audio.py", "import torch"),
    ("reference", "reference/flow/whisper.py", "import reference.ops"),
    ("truth", "reference/numerics/bounds.py", "import max.dtype"),
    ("truth", "reference/flow/dataflow.py", "def late() -> None:\n    import maxwhisper"),
    ("comparison", "reference/ops/judge.py", "from reference.ops import buffers  # which imports MAX"),
    ("tests", "reference/golden/ops.py", "import tests.versions"),
]

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
needs_linter = pytest.mark.skipif(not LINT_IMPORTS.exists(), reason="import-linter is missing; run it through nox")


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone of the repository")
def test_git_ignores_no_module() -> None:
    paths = "\n".join(str(path.relative_to(ROOT)) for path in modules())
    done = subprocess.run(["git", "check-ignore", "--stdin"], cwd=ROOT, input=paths, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")  # 1: none of them is ignored


def broken(folder: Path, contract: str) -> str:
    """Return the report of a contract that a folder's packages break, or "" if they keep it."""
    command = [str(LINT_IMPORTS), "--no-logo", "--no-cache", "--contract", contract]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        assert "1 kept, 0 broken" in done.stdout
        return ""
    assert "0 kept, 1 broken" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the packages' Python files to a folder in which tests change them."""
    folder = tmp_path_factory.mktemp("layers")
    for path in modules():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@needs_linter
@pytest.mark.parametrize(("contract", "module", "planted"), PLANTED)
def test_a_planted_import_breaks_the_contract_that_forbids_it(
    contract: str, module: str, planted: str, copied: Path
) -> None:
    assert broken(copied, contract) == ""
    path = copied / module
    sound = path.read_text(encoding="utf-8")
    path.write_text(f"{sound}\n\n{planted}\n", encoding="utf-8")
    try:
        assert module.removesuffix(".py").replace("/", ".") in broken(copied, contract)
    finally:
        path.write_text(sound, encoding="utf-8")
