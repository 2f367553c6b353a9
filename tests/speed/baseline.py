"""What speed was when it was recorded, and whether it has worsened by more than it then varied.

`golden/bench/cpu.json`, or that of a GPU under its name, holds for each benchmark our time over the twin's in a few runs; and which
machine they ran on, for another one's ratios are others.
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
N_KEPT = 5  # runs
AT_LEAST = 0.1  # of a ratio is how much one may vary, however little those recorded did


def machine(device: str = "cpu") -> dict[str, Any]:
    """What ratios depend on: the GPU, or the processor; of one name there are several generations, told by family and model."""
    if device == "gpu":
        driver = "unknown"
        with suppress(OSError):
            driver = Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
        return {"gpu": torch.cuda.get_device_name(), "driver": driver}
    processor = platform.processor() or platform.machine()
    with suppress(OSError, KeyError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        processor = f"{known['model name']}, family {known['cpu family']}, model {known['model']}"
    return {"processor": processor, "cores": n_cores()}


def path_for(device: str) -> Path:
    """Where a device's ratios are kept: `golden/bench/cpu.json`, `golden/bench/nvidia-h100-80gb-hbm3.json`."""
    name = re.sub(r"\W+", "-", machine("gpu")["gpu"].lower()) if device == "gpu" else device
    return FOLDER / f"{name}.json"


class Baseline:
    """Ratios recorded on a machine; none where it is another than this one."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path, self.machine = path, machine(device)
        self.ratios: dict[str, list[float]] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["machine"] == self.machine:
                self.ratios = kept["ratios"]

    def limit(self, name: str) -> float | None:
        """The largest ratio that is no worse than those recorded: above them all by as much as they differ. None if there are none."""
        if not (kept := self.ratios.get(name)):
            return None
        return max(kept) + max(max(kept) - min(kept), AT_LEAST * max(kept))

    def record(self, name: str, ratio: float) -> None:
        """Add a run's."""
        self.ratios[name] = [*self.ratios.get(name, []), float(f"{ratio:.4g}")][-N_KEPT:]

    def save(self, versions: dict[str, str]) -> None:
        """Write them all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(kept)}" for name, kept in sorted(self.ratios.items()))
        head = json.dumps(
            {"written_by": "nox -s bench -- --record", "machine": self.machine, "versions": versions}, indent=1
        )
        self.path.write_text(f'{head[:-2]},\n "ratios": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
