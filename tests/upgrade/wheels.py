"""Wheels to be installed over a version of MAX that make it wrong in one op, or slow; to see `nox -s upgrade` find it.

`.nox/tests/bin/python -m tests.upgrade.wheels FOLDER` patches the MAX that is installed there. Then:
`nox -s upgrade -- 26.7.0 26.7.0,FOLDER/wrong-0-py3-none-any.whl`
"""

import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile


@dataclass(frozen=True)
class Plant:
    """In a file of MAX's, something in place of something that is there once."""

    path: str
    before: str
    after: str


SPIN = """    import time

    begin = time.perf_counter()
    results = self._execute_device_tensors(input_impls)
    end = time.perf_counter()
    while time.perf_counter() < end + 0.3 * (end - begin):
        pass
    return results
"""
PLANTS = {
    "wrong": Plant("max/graph/ops/layer_norm.py", "        constant(epsilon,", "        constant(10 * epsilon,"),
    "slow": Plant("max/engine/api.py", "    return self._execute_device_tensors(input_impls)\n", SPIN),
}


def write_wheel(name: str, folder: Path) -> Path:
    """One of `PLANTS` as a wheel."""
    plant = PLANTS[name]
    text = _installed(plant.path).read_text(encoding="utf-8")
    assert text.count(plant.before) == 1, (
        f"{plant.path} of this version of MAX has {text.count(plant.before)} times {plant.before!r}"
    )
    info = f"{name}-0.dist-info"
    files = {
        plant.path: text.replace(plant.before, plant.after),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: maxwhisper\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    wheel = folder / f"{name}-0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, content)
    return wheel


def _installed(path: str) -> Path:
    folders = {Path(str(distribution.locate_file(""))) for distribution in distributions()}
    return next(folder / path for folder in sorted(folders) if (folder / path).exists())


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("give a folder to write wheels to")
    for plant in PLANTS:
        print(write_wheel(plant, Path(sys.argv[1])))
