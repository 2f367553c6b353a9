"""Pack all that a GPU machine without internet needs, in parts that can be carried.

The parts hold wheels for its Python, weights, audio, this project as it is committed, and all
graphs, compiled here. Over there, `bash run.sh` installs them in a folder of their own, compares
and times everything, and prints a short table. PyTorch must be installed there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tqdm import tqdm

from tests.gpu.ahead import jobs

# What the machine brings, because it must fit its driver.
BROUGHT = ("torch", "triton")
EXTRAS = {"test", "base", "normalizers"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
RUN = """\
#!/usr/bin/env bash
# Joins and installs the parts beside this script, then compares and times everything: bash run.sh [--device cpu]
set -euo pipefail
cd "$(dirname "$0")"
cat part-* | tar -xf -
tar -xJf graphs.tar.xz
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target site wheels/*.whl
export PYTHONPATH=$PWD/project:$PWD/site MAXWHISPER_CACHE=$PWD/cache HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export MAXWHISPER_AUDIO=$PWD/audio; [ -d audio ] || unset MAXWHISPER_AUDIO
cd project
exec python3 -m tests.gpu.run_pack --graphs ../graphs --report ../results.json "$@"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the parts and `run.sh` to a folder."""
    parser = argparse.ArgumentParser(prog="nox -s gpu_pack --", description=__doc__)
    parser.add_argument(
        "--gpu", default="sm_90", help="its architecture, or `cpu` to try the pack without one (%(default)s)"
    )
    parser.add_argument("--python", default="3.12", help="its Python (%(default)s)")
    parser.add_argument("--part", type=int, default=56, metavar="MIB", help="the largest size of a part (%(default)s)")
    parser.add_argument("--only", nargs="*", metavar="JOB", help="graphs to compile, by default all")
    parser.add_argument("--output", type=Path, default=Path("report/gpu_pack"), help="the folder (%(default)s)")
    args = parser.parse_args(argv)
    shutil.rmtree(args.output, ignore_errors=True)
    contents = args.output / "contents"
    (contents / "wheels").mkdir(parents=True)
    compile_graphs(args.gpu, args.only, contents)
    collect_wheels(args.python, contents / "wheels")
    collect_project(contents)
    n_parts = split(contents, args.output, args.part << 20)
    shutil.rmtree(contents)
    (args.output / "run.sh").write_text(RUN, encoding="utf-8")
    print(f"{n_parts} parts and run.sh are in {args.output}")
    return 0


def compile_graphs(gpu: str, only: Sequence[str] | None, contents: Path) -> None:
    """Compile each job's graphs.

    Each is compiled in a process and with a cache of its own, because MAX adds what it has cached.
    """
    folder = contents / "graphs"
    folder.mkdir()
    names = [name for name in jobs("cpu" if gpu == "cpu" else "gpu") if only is None or name in only]
    for name in tqdm(names, desc="graphs", unit="module", disable=None):
        cache = {"MODULAR_CACHE_DIR": str(contents / "cache"), "MAXWHISPER_CACHE": str(contents / "cache")}
        command = [sys.executable, "-m", "tests.gpu.compile_job", gpu, name, folder / f"{name}.mef"]
        subprocess.run(command, check=True, env={**os.environ, **cache})
        shutil.rmtree(contents / "cache", ignore_errors=True)
    with tarfile.open(contents / "graphs.tar.xz", "w:xz") as tar:
        tar.add(folder, "graphs")
    shutil.rmtree(folder)


def collect_wheels(python: str, folder: Path) -> None:
    """Download wheels of the versions that are installed here; build those that have none."""
    wanted = sorted(f"{name}=={metadata.version(name)}" for name in needed())
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    for requirement in tqdm(wanted, desc="wheels", unit="wheel", disable=None):
        target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
        options = ["--quiet", "--no-deps"]
        download = [sys.executable, "-m", "pip", "download", *options, *target, "--dest", folder, requirement]
        if subprocess.run(download, capture_output=True).returncode:
            build = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, requirement]
            subprocess.run(build, check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, "."], check=True
    )


def needed() -> set[str]:
    """Return the names of the packages that comparing and timing needs, and all that they need."""
    brought = _closure(BROUGHT)
    speech = {"pytest-audioeval", "useful-moonshine-onnx"}  # of which only the audio is used
    return (_closure(["maxwhisper"]) | speech) - brought - {"maxwhisper"}


def _closure(names: Sequence[str]) -> set[str]:
    """Return packages and all that they require, of those that are installed."""
    found, left = set[str](), list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        left += _applying(requirements, EXTRAS if name == "maxwhisper" else set())
    return found


def _applying(requirements: Sequence[str], extras: set[str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in {"", *extras}):
            yield requirement.name


def collect_project(contents: Path) -> None:
    """Export the project as it is committed, and the recordings in MAXWHISPER_AUDIO."""
    (contents / "project").mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", contents / "project"], check=True, input=archive.stdout)
    if audio := os.environ.get("MAXWHISPER_AUDIO"):
        shutil.copytree(audio, contents / "audio")


def split(contents: Path, folder: Path, size: int) -> int:
    """Write the contents as one tar archive in parts of at most `size` bytes; return how many."""
    archive = folder / "all.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(contents.iterdir()):
            tar.add(path, path.name)
    n = 0
    with archive.open("rb") as file:
        while part := file.read(size):
            (folder / f"part-{n:02}").write_bytes(part)
            n += 1
    archive.unlink()
    return n


if __name__ == "__main__":
    raise SystemExit(main())
