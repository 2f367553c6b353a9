"""What was found on both sides, and what that amounts to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.upgrade.noise import Speed, agreed

MODEL, CLIP, DEVICE = "tiny.en", "beckett", "cpu"  # whose activations, stages and costs; on what; where
# By verdict.
STATUS = {"nothing differs": 0, "nothing worse": 0, "wrong": 1, "slower": 2, "could not be compared": 3}
THERE, GONE = "there", "gone"  # a defect of MAX
# By name, NEW's over OLD's from which a cost is worse: far beyond noise, for what takes a minute is not measured often.
LIMITS = {
    "CPU seconds to load, cold": 1.5,
    "CPU seconds to load, warm": 1.5,
    "MB compiled": 1.1,
    "MB of memory, cold": 1.25,
    "MB of memory, warm": 1.25,
}


@dataclass(frozen=True)
class Op:
    """A row in a dtype: shares of its bounds, what fails ("" where nothing does), and a digest of all bits."""

    share: float
    sharp_share: float
    failure: str
    digest: str


@dataclass(frozen=True)
class Activation:
    """The op, the distance from float64 after all ops up to here (root mean square), what fails, and a digest of all bits."""

    op: str
    rms: float
    failure: str
    digest: str


@dataclass(frozen=True)
class Transcript:
    """Tokens of each window, and in what the transcript differs from OpenAI Whisper's."""

    tokens: list[list[int]]
    failure: str


@dataclass(frozen=True)
class Pair:
    """Either side's, or why there is none: a string."""

    old: Any
    new: Any

    @property
    def compared(self) -> bool:
        """Whether both sides are there."""
        return not isinstance(self.old, str) and not isinstance(self.new, str)

    @property
    def equal(self) -> bool:
        """Both are there, and the same bit for bit."""
        return self.compared and self.old == self.new

    @property
    def worse(self) -> str:
        """What is wrong with NEW and was not with OLD."""
        return "" if _failure(self.old) else _failure(self.new)

    @property
    def wrong_before(self) -> str:
        """What is wrong with both."""
        return _failure(self.new) if _failure(self.old) else ""


def costs_more(name: str, pair: Pair) -> bool:
    """Whether NEW is over a limit."""
    return pair.compared and pair.new > LIMITS[name] * pair.old


def _failure(side: Any) -> str:
    return side if isinstance(side, str) else getattr(side, "failure", "")


@dataclass
class Findings:
    """Everything, by name.

    timing: lines, whether each could be timed. speed: of each line what pairs of processes said, one after the other. cost: numbers, by the
    names of `LIMITS`. defects: `THERE`, `GONE`, or what else happens.
    """

    versions: Pair
    ops: Mapping[str, Pair] = field(default_factory=dict)
    activations: Mapping[str, Pair] = field(default_factory=dict)
    transcripts: Mapping[str, Pair] = field(default_factory=dict)
    timing: Mapping[str, Pair] = field(default_factory=dict)
    speed: Mapping[str, list[Speed]] = field(default_factory=dict)
    cost: Mapping[str, Pair] = field(default_factory=dict)
    defects: Mapping[str, Pair] = field(default_factory=dict)

    def _computed(self) -> Iterator[tuple[str, Pair]]:
        parts = {
            "import": {"of maxwhisper": self.versions},
            "op": self.ops,
            "activation": self.activations,
            "transcript": self.transcripts,
            "speed": self.timing,
            "cost": self.cost,
        }
        yield from ((f"{part} {name}", pair) for part, pairs in parts.items() for name, pair in pairs.items())

    def wrong(self) -> dict[str, str]:
        """What NEW computes wrong, or not at all, and OLD did not, by name; and MAX's defects that are new."""
        found = {name: pair.worse for name, pair in self._computed() if pair.worse}
        new = {name: pair.new for name, pair in self.defects.items() if pair.old == GONE and pair.new != GONE}
        return found | {f"defect {name}": "it is new" if state == THERE else state for name, state in new.items()}

    def wrong_before(self) -> dict[str, str]:
        """What both compute wrong, or not at all, by name."""
        return {name: pair.wrong_before for name, pair in self._computed() if pair.wrong_before}

    def slower(self) -> dict[str, str]:
        """Lines that are slower beyond noise, and what costs more than its limit, by name: how much."""
        more = {
            name: f"{pair.new / pair.old:.2f} times as much"
            for name, pair in self.cost.items()
            if costs_more(name, pair)
        }
        return self._beyond_noise("slower") | more

    def faster(self) -> dict[str, str]:
        """Lines that are faster beyond noise, by name: how much."""
        return self._beyond_noise("faster")

    def _beyond_noise(self, judged: str) -> dict[str, str]:
        return {
            name: f"{seen[-1].ratio:.2f} times as long" for name, seen in self.speed.items() if agreed(seen) == judged
        }

    def different(self) -> list[str]:
        """Results that are not the same bits, or tokens; and defects that come or go."""
        results = {"op": self.ops, "activation": self.activations, "transcript": self.transcripts}
        found = [
            f"{part} {name}"
            for part, pairs in results.items()
            for name, pair in pairs.items()
            if pair.compared and not pair.equal
        ]
        return found + [f"defect {name}" for name, pair in self.defects.items() if pair.old != pair.new]

    @property
    def verdict(self) -> str:
        """One of `STATUS`."""
        if self.wrong():
            return "wrong"
        if self.slower():
            return "slower"
        parts = (self.ops, self.activations, self.transcripts, self.timing, self.cost)
        if any(pairs and not any(pair.compared for pair in pairs.values()) for pairs in parts):
            return "could not be compared"
        return "nothing worse" if self.different() or self.faster() else "nothing differs"
