"""The sessions people run: `nox -s tests`, `nox -s parity`, and the others below."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

# pip, and not uv, finds PyTorch's CPU build where one is provided.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]

# Judging makes and drops large arrays thousands of times. The C library (glibc) is to keep their memory, which saves a fourth of the time.
# (One arena for all threads would save no more, and cost MAX's compiler a fourth.)
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}


def install(session: nox.Session, *extra: str) -> None:
    """The project as it lies here, with what tests and parity need."""
    session.install("-e", ".[test,base,normalizers]", *extra)
    session.install("--no-deps", *nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "speech"))


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that must pass. `nox -s tests -- tests/test_audio.py` runs a part."""
    install(session)
    session.run("pytest", *session.posargs, env=KEEP_MEMORY)


@nox.session
def pythons(session: nox.Session) -> None:
    """Install the wheel for every Python here, with the newest and the oldest dependencies, and use it: `nox -s pythons -- [3.12 …]`."""
    found = {version: path for version, path in _pythons() if version in (session.posargs or PYTHONS)}
    if missing := [version for version in session.posargs or PYTHONS if version not in found]:
        (session.error if session.posargs else session.warn)(f"not installed here: Python {', '.join(missing)}")
    project, folder = nox.project.load_toml("pyproject.toml"), Path(session.create_tmp())
    shutil.rmtree(folder, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
    session.run("pip", "install", "--quiet", "--no-deps", *nox.project.dependency_groups(project, "speech"))
    (audio,) = Path(session.virtualenv.location).glob("lib/*/site-packages/moonshine_onnx/assets/beckett.wav")
    (wheel,) = folder.glob("*.whl")
    for version, path in found.items():
        oldest = folder / f"oldest-{version}.txt"
        oldest.write_text("\n".join(_oldest(project["project"]["dependencies"], version)), encoding="utf-8")
        for end, constraints in (("newest", ()), ("oldest", ("--constraint", str(oldest)))):
            python = folder / f"{version}-{end}" / "bin" / "python"
            session.run(path, "-m", "venv", str(python.parents[1]), external=True)
            session.run(
                str(python), "-m", "pip", "install", "--quiet", f"{wheel}[normalizers]", *constraints, external=True
            )
            session.run(str(python), "-I", "tests/fresh_install.py", str(audio), external=True)
            shutil.rmtree(python.parents[1])


PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def _pythons() -> Iterator[tuple[str, str]]:
    """The version and path of each Python that is installed, by its name or by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in PYTHONS:
        for path in (
            shutil.which(f"python{version}"),
            *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True),
        ):
            with suppress(OSError):  # pyenv puts a name on the path that fails where no such version is chosen
                if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                    yield version, path
                    break


def _oldest(dependencies: list[str], version: str) -> Iterator[str]:
    """The lower end of each range that holds for a version of Python."""
    for requirement in map(Requirement, dependencies):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": version}):
            (lowest,) = (limit.version for limit in requirement.specifier if limit.operator in (">=", "=="))
            yield f"{requirement.name}=={lowest}"


@nox.session
def parity(session: nox.Session) -> None:
    """MAX beside OpenAI Whisper on real speech: `nox -s parity -- [--model base] [AUDIO …]`."""
    install(session)
    session.run("python", "-m", "reference.parity", *session.posargs, env=KEEP_MEMORY)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Every op on any shape, for long: `nox -s fuzz -- --examples 2000 [--op softmax]`."""
    install(session)
    session.run("python", "-m", "reference.ops.fuzz", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Plant mistakes that porters make, one by one; each must be caught, and the right name blamed: `nox -s faults -- ["tanh GELU" …]`."""
    install(session)
    session.run("python", "-m", "tests.faults", *session.posargs, env=KEEP_MEMORY)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the code that tests judge quickly, operator by operator, and see whether a test notices: `nox -s mutants`."""
    install(session, "mutmut==3.8.1")
    session.run("mutmut", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})  # each core has a mutant of its own
    session.run("mutmut", "results")


@nox.session
def bench(session: nox.Session) -> None:
    """How fast each op and each stage is beside PyTorch, whether that has worsened, and how far from the machine's ceilings."""
    install(session)
    session.run(
        "pytest", "-m", "bench", "tests/speed", "--benchmark-columns=median,iqr,rounds,iterations", *session.posargs
    )
    session.run("python", "-m", "tests.speed.roofline")


@nox.session
def compare(session: nox.Session) -> None:
    """Speed, memory and words beside OpenAI Whisper, faster-whisper and whisper.cpp, taking turns: `nox -s compare -- [AUDIO]`."""
    install(session, "-e", ".[compare]")
    session.run("python", "-m", "tests.speed.compare", *session.posargs)


@nox.session
def golden(session: nox.Session) -> None:
    """Ask the reference anew and rewrite `golden/`, or compare with it: `nox -s golden -- --check`."""
    install(session)
    session.run("python", "-m", "reference.golden", *session.posargs)


@nox.session
def proof(session: nox.Session) -> None:
    """All comparisons in short, and speed, in one go, for a machine with a GPU: `nox -s proof -- --device gpu`."""
    install(session)
    session.run("python", "-m", "tests.proof", *session.posargs, env=KEEP_MEMORY)


@nox.session
def upgrade(session: nox.Session) -> None:
    """Two versions of MAX side by side, in an environment each: `nox -s upgrade -- 26.6.0 26.7.0`. Exit status 0: nothing worse, 1: wrong,
    2: slower, 3: could not run.
    """
    try:
        install(session)
    except CommandFailed:
        raise SystemExit(3) from None
    command = [str(Path(session.bin) / "python"), "-m", "tests.upgrade", *session.posargs]
    process = subprocess.Popen(command, env={**os.environ, **KEEP_MEMORY})
    with suppress(KeyboardInterrupt):  # which reaches the process as well
        process.wait()
    if status := process.wait():
        raise SystemExit(status)  # nox would make 1 of any


@nox.session
def gpu_compile(session: nox.Session) -> None:
    """Everything that runs on a GPU, compiled without one: `nox -s gpu_compile -- [--gpu sm_89] [--model tiny.en] [--op linear]`."""
    install(session)
    session.run("python", "-m", "tests.gpu.compile_ahead", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    install(session, "ruff==0.17.6", "mypy==2.4.1", "nox==2026.10.20")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def max_defects(session: nox.Session) -> None:
    """The pinned reproducers of defects in MAX itself."""
    install(session)
    session.run("pytest", "-m", "max_defects", *session.posargs)
