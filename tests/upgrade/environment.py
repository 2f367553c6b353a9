"""An environment of its own for each version of MAX, with everything else the same."""

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
SECONDS = 1800  # of a process that computes; who takes longer is taken to hang


class UpgradeError(Exception):
    """A comparison that can't be made, or an answer that can't be had; its text says why, and what to do."""


@dataclass(frozen=True)
class Environment:
    """A folder with Python and packages, what MAX compiled there, and what processes wrote on standard error."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self, *arguments: str, cache: Path | None = None) -> "subprocess.Popen[bytes]":
        """A process of its Python. cache: where what is compiled lies, in place of the environment's own folder."""
        kept = cache or self.folder / "cache"
        temporary = self.folder / "tmp"  # MAX gives there the same name to whatever it compiles of our kernels
        temporary.mkdir(exist_ok=True)
        # What MAX itself sets in a process that imports it, paths of its compiler's, would be another version's.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODULAR_")}
        folders = {"MAXWHISPER_CACHE": kept / "maxwhisper", "MODULAR_CACHE_DIR": kept / "modular", "TMPDIR": temporary}
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
        """What such a process prints. Raises UpgradeError where it fails, or takes more than `SECONDS`."""
        process = self.start(*arguments, cache=cache)
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait():
            raise UpgradeError(self.obituary(process))
        return output

    def obituary(self, process: "subprocess.Popen[bytes]") -> str:
        """How a process ended, and what was written last on standard error."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return ": ".join([f"the process ended with exit status {process.wait()}", *lines[-1:]])


def requirements(asked: str, index: str | None = None) -> tuple[str, list[str]]:
    """What pip is told for one side: MAX as a version, a wheel's path, `latest` or `nightly`; and behind commas, wheels to lay over it.

    index: a further index of packages, where nightly versions are. Raises UpgradeError where a wheel is missing, or a version is none.
    """
    version, *others = asked.split(",")
    if version == "nightly" and index is None:
        raise UpgradeError("nightly versions are in an index of their own; give it with --index URL")
    if not version.endswith(".whl") and version not in SPECIAL and not re.fullmatch(r"\d+(\.\d+)+[\w.+]*", version):
        raise UpgradeError(f"{version!r} is no version of MAX; give one as 26.7.0, a wheel's path, latest or nightly")
    wanted = _existing(version) if version.endswith(".whl") else SPECIAL.get(version, f"max=={version}")
    return wanted, [_existing(other) for other in others]


# A pre-release in the bounds is what lets pip take pre-releases, of this package alone.
SPECIAL = {"latest": "max", "nightly": "max>=26.0.0.dev0"}


def _existing(wheel: str) -> str:
    path = Path(wheel).resolve()
    if not path.is_file():
        raise UpgradeError(f"there is no wheel {wheel}")
    return str(path)


def prepare(asked: str, index: str | None = None, beside: Environment | None = None) -> Environment:
    """Make an environment, or bring the one that is there up to date. One that would be that of `beside` is made again under another name.

    Raises UpgradeError where pip fails, with what it said, or finds no nightly version.
    """
    wanted, wheels = requirements(asked, index)
    environment = Environment(FOLDER / _name(asked, [wanted, *wheels]))
    if environment == beside:
        environment = Environment(environment.folder.with_name(environment.folder.name + "-again"))
    if not (environment.folder / "bin" / "pip").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(environment.folder)])
    environment.log.unlink(missing_ok=True)

    pip = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    further = ["--extra-index-url", index] if index else []
    newest = ["--upgrade"] if wanted in SPECIAL.values() else []
    beside_it = (
        ["--find-links", str(Path(wanted).parent)] if wanted.endswith(".whl") else []
    )  # a wheel of MAX's needs others
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    _run([*pip, *further, *newest, *beside_it, wanted])
    _run([*pip, *_others(project["project"])])
    _run([*pip, "--no-deps", *project["dependency-groups"]["speech"], "--editable", str(ROOT)])
    if wheels:  # over what is there, be it of the same version
        _run([*pip, "--no-deps", "--force-reinstall", *wheels])

    if wanted == SPECIAL["nightly"]:
        version = (
            environment.run("-c", "from importlib.metadata import version; print(version('max'))").decode().strip()
        )
        if "dev" not in version:
            raise UpgradeError(f"no nightly version is to be had from {index}, only {version}")
    return environment


def _others(project: dict) -> list[str]:
    """What the project needs but MAX, whose version is what is compared."""
    every = [*project["dependencies"], *(need for extra in EXTRAS for need in project["optional-dependencies"][extra])]
    return [need for need in every if not re.match(r"max\b", need)]


def _name(asked: str, wanted: Sequence[str]) -> str:
    """Another one where a wheel holds something else."""
    wheels = [Path(need).read_bytes() for need in wanted if need.endswith(".whl")]
    digest = hashlib.sha256(b"".join(wheels)).hexdigest()[:8] if wheels else ""
    names = [Path(part).stem if part.endswith(".whl") else part for part in asked.split(",")]
    return re.sub(r"[^\w.]+", "-", "-".join([*names, digest]).rstrip("-"))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise UpgradeError("\n".join(errors) or f"{command[0]} ended with exit status {done.returncode}")
