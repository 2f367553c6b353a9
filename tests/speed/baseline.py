"""Speeds recorded on a machine, and the limit above which a new one is a regression.

Speeds differ between machines, so `golden/bench` has a file for each processor and each GPU. It
stores for each benchmark the results of a few runs, and the machine that they were measured on. For
a processor, which other programs slow down, a result is the ratio of MAX's time to its PyTorch
counterpart's. For a GPU it is MAX's time in microseconds.
"""

import json
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from maxwhisper.system import n_cores

FOLDER = Path(__file__).parents[2] / "golden" / "bench"
N_STORED = 5  # runs
MIN_MARGIN = 0.1  # of the largest result: how much a new one may exceed it if the stored ones agree
UNITS = {"cpu": "ratios", "gpu": "microseconds"}


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe what results depend on: the GPU and its driver, or the processor and its cores.

    Processors of one name have several generations, so family and model number are included.
    """
    if device == "gpu":
        driver = "unknown"
        with suppress(OSError):
            driver = Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
        return {"gpu": torch.cuda.get_device_name(), "driver": driver}
    processor = platform.processor() or platform.machine()
    with suppress(OSError, KeyError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        processor = f"{fields['model name']}, family {fields['cpu family']}, model {fields['model']}"
    return {"processor": processor, "cores": n_cores()}


def path_for(device: str) -> Path:
    """Return the file of this machine's GPU, or of its processor and number of cores.

    Such as `golden/bench/nvidia-h100-80gb-hbm3.json`.
    """
    this = machine(device)
    name = this["gpu"] if device == "gpu" else f"{this['processor']} {this['cores']} cores"
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


class Baseline:
    """Results recorded on this machine. Empty if the file was recorded on a different machine."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path, self.machine, self.unit = path, machine(device), UNITS[device]
        self.results: dict[str, list[float]] = {}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["machine"] == self.machine:
                self.results = stored[self.unit]

    @property
    def notice(self) -> str:
        """What to say if nothing is recorded for this machine, so that no benchmark can fail."""
        if self.results:
            return ""
        this = ", ".join(f"{name}: {value}" for name, value in self.machine.items())
        others = ", ".join(sorted(path.stem for path in self.path.parent.glob("*.json") if path != self.path))
        return (
            f"No {self.unit} are recorded for this machine ({this}), so nothing was compared with earlier runs. "
            f"Record some by `nox -s bench -- --record`, a few times; they go to {self.path.name}. "
            f"Recorded are: {others or 'none'}."
        )

    def limit(self, name: str) -> float | None:
        """Return the largest result that is not a regression, or None if nothing is recorded.

        It is the largest recorded ratio plus the spread of the recorded ones, at least MIN_MARGIN.
        """
        if not (stored := self.results.get(name)):
            return None
        return max(stored) + max(max(stored) - min(stored), MIN_MARGIN * max(stored))

    def record(self, name: str, result: float) -> None:
        """Add the result of a run. Only the last N_STORED are stored."""
        self.results[name] = [*self.results.get(name, []), float(f"{result:.4g}")][-N_STORED:]

    def save(self, versions: dict[str, str]) -> None:
        """Write all results, the machine and the packages' versions to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(stored)}" for name, stored in sorted(self.results.items())
        )
        head = json.dumps(
            {"written_by": "nox -s bench -- --record", "machine": self.machine, "versions": versions}, indent=1
        )
        self.path.write_text(f'{head[:-2]},\n "{self.unit}": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
