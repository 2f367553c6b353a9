"""The result of one size, which its process prints as JSON."""

import json
from dataclasses import asdict, dataclass, field

from tests.sizes.window import Judged
from tests.speed.worker import peak_megabytes


@dataclass
class Result:
    """What was found of a size."""

    name: str
    failures: list[str] = field(default_factory=list)
    n: int = 0  # judged activations and outputs
    worst_case: float = 0.0  # the largest share of a worst-case bound
    statistical: float = 0.0  # the largest share of a statistical bound
    error_ratio: float = 0.0  # the largest cumulative RMS error, in units of OpenAI Whisper's
    peak_mb: float = 0.0
    seconds: float = 0.0

    def note(self, judged: Judged) -> None:
        """Take an activation into account."""
        self.n += 1
        self.worst_case = max(self.worst_case, judged.verdict.worst_case_ratio)
        self.statistical = max(self.statistical, judged.verdict.rms_ratio)
        if judged.output.peer.rms:
            self.error_ratio = max(self.error_ratio, judged.output.error.rms / judged.output.peer.rms)
        if not judged.passes:
            self.failures.append(f"{judged.name}: {judged.verdict}; {judged.output}")
        self.peak_mb = peak_megabytes()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Result":
        return Result(**json.loads(text))

    @staticmethod
    def died(name: str) -> "Result":
        """Return the result of a process that ended without one."""
        return Result(name, ["its process ended without a result; see above"])
