"""What speed was when it was recorded, and whether it has worsened by more than it then varied.

`golden/bench/<device>.json` holds, for each benchmark, our time over the twin's in a few runs; and which machine they ran on, for another
one's ratios are others.
"""

import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from maxwhisper.utils import n_cores

FOLDER = Path(__file__).parents[2] / "golden" / "bench"
N_KEPT = 5  # runs
AT_LEAST = 0.1  # of a ratio is how much one may vary, however little those recorded did


def machine() -> dict[str, Any]:
    """What ratios depend on. Of processors with one name there are several generations, which family and model tell apart."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, KeyError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        processor = f"{known['model name']}, family {known['cpu family']}, model {known['model']}"
    return {"processor": processor, "cores": n_cores()}


class Baseline:
    """Ratios recorded on a machine; none where it is another than this one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ratios: dict[str, list[float]] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["machine"] == machine():
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
        head = json.dumps({"written_by": "nox -s bench -- --record", "machine": machine(), "versions": versions}, indent=1)
        self.path.write_text(f'{head[:-2]},\n "ratios": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
