"""The sessions people run: `nox -s tests`, `nox -s parity`, `nox -s lint`."""

import nox

# pip, and not uv, finds PyTorch's CPU build where one is provided.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that must pass. `nox -s tests -- tests/test_audio.py` runs a part."""
    session.install("-e", ".[test,base]")
    session.run("pytest", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """MAX beside OpenAI Whisper on real speech: `nox -s parity -- [--model base] [AUDIO …]`."""
    session.install("-e", ".[test,base]")
    session.run("python", "-m", "reference.parity", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install("-e", ".[test,base]", "ruff==0.17.6", "mypy==2.4.1", "nox==2026.10.20")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
