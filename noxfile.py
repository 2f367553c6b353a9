"""The sessions of nox. `nox --list` lists them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

# pip, unlike uv, finds PyTorch's CPU build if the environment provides one.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]

# Judging allocates and frees large arrays thousands of times. With these settings glibc reuses
# their memory, which saves a fourth of the time. (One arena for all threads would save no more, and
# make MAX's compiler a fourth slower.)
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}

# For processes that share the cores: threads of PyTorch and of OpenBLAS that wait, wait busily.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

IMPORT_LINTER = "import-linter==2.17"


def install(session: nox.Session, *extra: str, extras: str = "test,base,normalizers") -> None:
    """Install the project in editable mode, with the requirements of tests and parity."""
    session.install("-e", f".[{extras}]", *extra)
    session.install("--no-deps", *nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "speech"))


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, or some: `nox -s tests [-- tests/test_audio.py] [--device gpu]`.

    All tests run in two processes: MAX's compiler, which takes most of the time, keeps one and a
    half cores busy. Tests that measure time run after the others.
    """
    install(session, IMPORT_LINTER)
    if session.posargs:
        session.run("pytest", *session.posargs, env=KEEP_MEMORY)
        return
    others = "not max_defects and not bench and not thorough and not ports and not undisturbed"
    session.run("pytest", "-m", others, "--numprocesses=2", env=KEEP_MEMORY | ONE_THREAD)
    session.run("pytest", "-m", "undisturbed and not bench", env=KEEP_MEMORY)


@nox.session
def pythons(session: nox.Session) -> None:
    """Install the wheel for each installed Python and transcribe: `nox -s pythons [-- 3.12 …]`.

    Each Python is used twice, with the newest and with the oldest dependencies.
    """
    installed = {version: path for version, path in _pythons() if version in (session.posargs or PYTHONS)}
    if missing := [version for version in session.posargs or PYTHONS if version not in installed]:
        (session.error if session.posargs else session.warn)(f"not installed: Python {', '.join(missing)}")
    project, folder = nox.project.load_toml("pyproject.toml"), Path(session.create_tmp())
    shutil.rmtree(folder, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
    session.run("pip", "install", "--quiet", "--no-deps", *nox.project.dependency_groups(project, "speech"))
    (audio,) = Path(session.virtualenv.location).glob("lib/*/site-packages/moonshine_onnx/assets/beckett.wav")
    (wheel,) = folder.glob("*.whl")
    for version, path in installed.items():
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
    """Yield the version and path of each installed Python, on the path or in pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in PYTHONS:
        for path in (
            shutil.which(f"python{version}"),
            *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True),
        ):
            with suppress(OSError):  # pyenv's `python3.x` fails if that version is not selected
                if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                    yield version, path
                    break


def _oldest(dependencies: list[str], version: str) -> Iterator[str]:
    """Yield a constraint to the oldest allowed version of each dependency, for a Python version."""
    for requirement in map(Requirement, dependencies):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": version}):
            (lowest,) = (limit.version for limit in requirement.specifier if limit.operator in (">=", "=="))
            yield f"{requirement.name}=={lowest}"


@nox.session
def parity(session: nox.Session) -> None:
    """Compare MAX with OpenAI Whisper on speech: `nox -s parity [-- --model base] [AUDIO …]`."""
    install(session)
    session.run("python", "-m", "reference.parity", *session.posargs, env=KEEP_MEMORY)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Test every op on many random shapes: `nox -s fuzz [-- --examples 2000 --op softmax]`."""
    install(session)
    session.run("python", "-m", "reference.ops.fuzz", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Plant faults; each must be caught and the right name blamed: `nox -s faults [-- NAME …]`."""
    install(session)
    session.run("python", "-m", "tests.faults", *session.posargs, env=KEEP_MEMORY)


@nox.session
def mutants(session: nox.Session) -> None:
    """Run mutation testing of the code that tests judge quickly: `nox -s mutants`."""
    install(session, "mutmut==3.8.1")
    session.run("mutmut", "run", *session.posargs, env=ONE_THREAD)  # each core tests a different mutant
    session.run("mutmut", "results")


@nox.session
def sizes(session: nox.Session) -> None:
    """Judge all sizes, and checkpoints as people have them: `nox -s sizes [-- tiny large-v3 …]`."""
    install(session, extras="test,base,normalizers,sizes")
    session.run("python", "-m", "tests.sizes", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.sizes.zoo")


@nox.session
def bench(session: nox.Session) -> None:
    """Time ops and stages against PyTorch, check for regressions: `nox -s bench [-- --record]`.

    Then compare each stage with its roofline time.
    """
    install(session)
    session.run(
        "pytest", "-m", "bench", "tests/speed", "--benchmark-columns=median,iqr,rounds,iterations", *session.posargs
    )
    session.run("python", "-m", "tests.speed.roofline")


@nox.session
def compare(session: nox.Session) -> None:
    """Compare speed, memory and words with other programs: `nox -s compare [-- AUDIO]`.

    The others are OpenAI Whisper, faster-whisper and whisper.cpp. Runs are interleaved.
    """
    install(session, "-e", ".[compare]")
    session.run("python", "-m", "tests.speed.compare", *session.posargs)


@nox.session
def golden(session: nox.Session) -> None:
    """Recompute the results in `golden/`, or compare with them: `nox -s golden [-- --check]`."""
    install(session)
    session.run("python", "-m", "reference.golden", *session.posargs)


@nox.session
def proof(session: nox.Session) -> None:
    """Run all comparisons in short form, and time them: `nox -s proof [-- --device gpu]`."""
    install(session)
    session.run("python", "-m", "tests.proof", *session.posargs, env=KEEP_MEMORY)


@nox.session
def upgrade(session: nox.Session) -> None:
    """Compare two versions of MAX: `nox -s upgrade -- 26.6.0 26.7.0`.

    Exit status 0: nothing is worse. 1: the new version is wrong. 2: it is slower. 3: the versions
    could not be compared.
    """
    try:
        install(session)
    except CommandFailed:
        raise SystemExit(3) from None
    command = [str(Path(session.bin) / "python"), "-m", "tests.upgrade", *session.posargs]
    process = subprocess.Popen(command, env={**os.environ, **KEEP_MEMORY})
    with suppress(KeyboardInterrupt):  # the process receives it too
        process.wait()
    if status := process.wait():
        raise SystemExit(status)  # nox would exit with 1 for any failure


@nox.session
def gpu_compile(session: nox.Session) -> None:
    """Compile for an absent GPU: `nox -s gpu_compile [-- --gpu sm_89 --op linear --model M]`."""
    install(session)
    session.run("python", "-m", "tests.gpu.compile_ahead", *session.posargs)


@nox.session
def ports(session: nox.Session) -> None:
    """Judge Modular's own Whisper encoder and BERT by their originals: `nox -s ports`."""
    install(session, extras="test,base,normalizers,ports")
    session.run("pytest", "-m", "ports", "-s", "tests/port", *session.posargs, env=KEEP_MEMORY)


@nox.session
def gpu_pack(session: nox.Session) -> None:
    """Pack what a GPU machine without internet needs: `nox -s gpu_pack [-- --gpu sm_90 …]`."""
    install(session)
    session.run("python", "-m", "tests.gpu.pack", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and imports between packages: `nox -s lint`."""
    install(session, "ruff==0.17.6", "mypy==2.4.1", "nox==2026.10.20", IMPORT_LINTER)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")


@nox.session
def max_defects(session: nox.Session) -> None:
    """Reproduce the defects of MAX that are worked around: `nox -s max_defects`."""
    install(session)
    session.run("pytest", "-m", "max_defects", *session.posargs)
