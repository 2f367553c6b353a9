"""Virtual environments that differ only in the version of MAX."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".nox" / "versions-of-max"
EXTRAS = ("test", "base")
TIMEOUT_SECONDS = 1800  # a process that takes longer is assumed to hang


class UpgradeError(Exception):
    """Says why a comparison or an answer is impossible, and the remedy."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, with MAX's caches and a log of its processes' standard error."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self, *arguments: str, cache: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a process of this environment's Python.

        Args:
            arguments: of Python.
            cache: folder of compiled graphs, by default the environment's own.
        """
        caches = cache or self.folder / "cache"
        # MAX compiles all kernels to one file name in TMPDIR, so each environment has its own.
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        # A process that imports MAX has paths of that version's compiler in MODULAR_ variables.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODULAR_")}
        folders = {
            "MAXWHISPER_CACHE": caches / "maxwhisper",
            "MODULAR_CACHE_DIR": caches / "modular",
            "TMPDIR": temporary,
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(self.python), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**inherited, **{name: str(path) for name, path in folders.items()}, "HF_HUB_OFFLINE": "1"},
            )

    def run(self, *arguments: str, cache: Path | None = None) -> bytes:
        """Run such a process and return its standard output.

        Raises:
            UpgradeError: if it fails, or takes more than `TIMEOUT_SECONDS`.
        """
        process = self.start(*arguments, cache=cache)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait():
            raise UpgradeError(self.exit_message(process))
        return output

    def exit_message(self, process: "subprocess.Popen[bytes]") -> str:
        """Return how a process ended, and the last line on standard error."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return ": ".join([f"the process ended with exit status {process.wait()}", *lines[-1:]])


def requirements(spec: str, index: str | None = None) -> tuple[str, list[str]]:
    """Turn a side of the command line into pip's arguments.

    Args:
        spec: a version of MAX, a wheel's path, `latest` or `nightly`; after commas, wheels to
            install over it.
        index: an additional package index, which nightly versions need.

    Returns:
        The requirement of MAX, and the paths of the wheels to install over it.

    Raises:
        UpgradeError: if a wheel is missing, or the version is not valid.
    """
    version, *wheels = spec.split(",")
    if version == "nightly" and index is None:
        raise UpgradeError("nightly versions have their own package index; name it with --index URL")
    if not version.endswith(".whl") and version not in SPECIAL and not re.fullmatch(r"\d+(\.\d+)+[\w.+]*", version):
        raise UpgradeError(
            f"{version!r} is no version of MAX; use one such as 26.7.0, a wheel's path, latest or nightly"
        )
    requirement = _existing(version) if version.endswith(".whl") else SPECIAL.get(version, f"max=={version}")
    return requirement, [_existing(wheel) for wheel in wheels]


# A pre-release in the bounds makes pip accept pre-releases of this package alone.
SPECIAL = {"latest": "max", "nightly": "max>=26.0.0.dev0"}


def _existing(wheel: str) -> str:
    path = Path(wheel).resolve()
    if not path.is_file():
        raise UpgradeError(f"there is no wheel {wheel}")
    return str(path)


def prepare(spec: str, index: str | None = None, other: Environment | None = None) -> Environment:
    """Make an environment, or update the existing one.

    Args:
        spec: as in `requirements`.
        index: an additional package index.
        other: the environment to compare with. If both would be the same, a second one is made.

    Raises:
        UpgradeError: if pip fails (with its message), or finds no nightly version.
    """
    requirement, wheels = requirements(spec, index)
    environment = Environment(FOLDER / _name(spec, [requirement, *wheels]))
    if environment == other:
        environment = Environment(environment.folder.with_name(environment.folder.name + "-again"))
    if not (environment.folder / "bin" / "pip").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(environment.folder)])
    environment.log.unlink(missing_ok=True)

    pip = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    extra_index = ["--extra-index-url", index] if index else []
    upgrade = ["--upgrade"] if requirement in SPECIAL.values() else []
    # A wheel of MAX needs other wheels, which are expected in the same folder.
    find_links = ["--find-links", str(Path(requirement).parent)] if requirement.endswith(".whl") else []
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    _run([*pip, *extra_index, *upgrade, *find_links, requirement])
    _run([*pip, *_other_requirements(project["project"])])
    _run([*pip, "--no-deps", *project["dependency-groups"]["speech"], "--editable", str(ROOT)])
    if wheels:  # even if the installed version is the same
        _run([*pip, "--no-deps", "--force-reinstall", *wheels])

    if requirement == SPECIAL["nightly"]:
        version = (
            environment.run("-c", "from importlib.metadata import version; print(version('max'))").decode().strip()
        )
        if "dev" not in version:
            raise UpgradeError(f"{index} has no nightly version, only {version}")
    return environment


def _other_requirements(project: dict) -> list[str]:
    """Return the project's dependencies and those of EXTRAS, without MAX."""
    extras = (requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra])
    return [requirement for requirement in (*project["dependencies"], *extras) if not re.match(r"max\b", requirement)]


def _name(spec: str, requirements: Sequence[str]) -> str:
    """Return an environment's name. It has a digest of its wheels, as their contents may change."""
    wheels = [Path(requirement).read_bytes() for requirement in requirements if requirement.endswith(".whl")]
    digest = hashlib.sha256(b"".join(wheels)).hexdigest()[:8] if wheels else ""
    names = [Path(part).stem if part.endswith(".whl") else part for part in spec.split(",")]
    return re.sub(r"[^\w.]+", "-", "-".join([*names, digest]).rstrip("-"))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise UpgradeError("\n".join(errors) or f"{command[0]} ended with exit status {done.returncode}")
