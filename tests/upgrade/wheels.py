"""Write wheels that plant a fault in MAX, to check that `nox -s upgrade` finds it.

One wheel makes an op wrong, and one makes every call slow. They contain patched files of the
installed MAX: `.nox/tests/bin/python -m tests.upgrade.wheels FOLDER`. Then run
`nox -s upgrade -- 26.7.0 26.7.0,FOLDER/wrong-0-py3-none-any.whl`.
"""

import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile


@dataclass(frozen=True)
class Patch:
    """A replacement in a file of MAX. The text to replace must occur exactly once."""

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
PATCHES = {
    "wrong": Patch(
        "max/graph/ops/elementwise.py",
        "        axis = value.rank - 1 if axis == -1 else axis\n",
        "        axis = value.rank - 1 if axis == -1 else axis\n        value = 1.1 * value\n",
    ),
    "slow": Patch("max/engine/api.py", "    return self._execute_device_tensors(input_impls)\n", SPIN),
}


def write_wheel(name: str, folder: Path) -> Path:
    """Write one of `PATCHES` as a wheel and return its path."""
    patch = PATCHES[name]
    text = _installed(patch.path).read_text(encoding="utf-8")
    count = text.count(patch.before)
    assert count == 1, f"{patch.before!r} occurs {count} times in this version's {patch.path}, expected once"
    info = f"{name}-0.dist-info"
    files = {
        patch.path: text.replace(patch.before, patch.after),
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
        sys.exit("usage: python -m tests.upgrade.wheels FOLDER, an existing folder to write wheels to")
    for name in PATCHES:
        print(write_wheel(name, Path(sys.argv[1])))
