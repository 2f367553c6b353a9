"""The results of both sides, and the verdict."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.upgrade.noise import Speed, agreed

MODEL, CLIP, DEVICE = "tiny.en", "beckett", "cpu"  # of activations, stages and costs
# Exit statuses by verdict.
STATUS = {"nothing differs": 0, "nothing worse": 0, "wrong": 1, "slower": 2, "could not be compared": 3}
THERE, GONE = "there", "gone"  # states of a defect of MAX
# Costs by name, and the ratio NEW / OLD above which a cost is worse. The ratios are far beyond
# noise, because measurements that take a minute are repeated only a few times.
LIMITS = {
    "CPU seconds to load, cold": 1.5,
    "CPU seconds to load, warm": 1.5,
    "MB compiled": 1.1,
    "MB of memory, cold": 1.25,
    "MB of memory, warm": 1.25,
}


@dataclass(frozen=True)
class Op:
    """The results of a row of the table of ops in a dtype."""

    share: float  # the largest error as a share of the worst-case bound
    sharp_share: float  # the RMS error as a share of the statistical bound
    failure: str  # empty if nothing fails
    digest: str  # of all bits


@dataclass(frozen=True)
class Activation:
    """The results of an activation."""

    op: str
    rms: float  # distance from float64, accumulated over all ops up to this one
    failure: str  # empty if nothing fails
    digest: str  # of all bits


@dataclass(frozen=True)
class Transcript:
    """A transcript."""

    tokens: list[list[int]]  # of each window
    failure: str  # how it differs from OpenAI Whisper's; empty if it does not


@dataclass(frozen=True)
class Pair:
    """The results of both sides. A string instead of a result says why there is none."""

    old: Any
    new: Any

    @property
    def compared(self) -> bool:
        """Whether both sides have a result."""
        return not isinstance(self.old, str) and not isinstance(self.new, str)

    @property
    def equal(self) -> bool:
        """Whether both sides have a result, and the results are equal bit for bit."""
        return self.compared and self.old == self.new

    @property
    def worse(self) -> str:
        """What is wrong with NEW but not with OLD; empty if nothing."""
        return "" if _failure(self.old) else _failure(self.new)

    @property
    def wrong_before(self) -> str:
        """What is wrong with both; empty if nothing."""
        return _failure(self.new) if _failure(self.old) else ""


def costs_more(name: str, pair: Pair) -> bool:
    """Return whether NEW exceeds the limit of a cost."""
    return pair.compared and pair.new > LIMITS[name] * pair.old


def _failure(side: Any) -> str:
    return side if isinstance(side, str) else getattr(side, "failure", "")


@dataclass
class Findings:
    """All results by name."""

    versions: Pair
    ops: Mapping[str, Pair] = field(default_factory=dict)
    activations: Mapping[str, Pair] = field(default_factory=dict)
    transcripts: Mapping[str, Pair] = field(default_factory=dict)
    timing: Mapping[str, Pair] = field(default_factory=dict)  # whether each line could be timed
    speed: Mapping[str, list[Speed]] = field(default_factory=dict)  # of each pair of processes
    cost: Mapping[str, Pair] = field(default_factory=dict)  # numbers by the names of `LIMITS`
    defects: Mapping[str, Pair] = field(default_factory=dict)  # `THERE`, `GONE` or an error message

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
        """Return by name what only NEW computes wrong or not at all, and MAX's new defects."""
        worse = {name: pair.worse for name, pair in self._computed() if pair.worse}
        new = {name: pair.new for name, pair in self.defects.items() if pair.old == GONE and pair.new != GONE}
        return worse | {f"defect {name}": "it is new" if state == THERE else state for name, state in new.items()}

    def wrong_before(self) -> dict[str, str]:
        """Return by name what both compute wrong or not at all."""
        return {name: pair.wrong_before for name, pair in self._computed() if pair.wrong_before}

    def slower(self) -> dict[str, str]:
        """Return by name the ratios of lines slower beyond noise, and of costs above limits."""
        higher_costs = {
            name: f"{pair.new / pair.old:.2f} times as much"
            for name, pair in self.cost.items()
            if costs_more(name, pair)
        }
        return self._beyond_noise("slower") | higher_costs

    def faster(self) -> dict[str, str]:
        """Return by name the ratios of lines that are faster beyond noise."""
        return self._beyond_noise("faster")

    def _beyond_noise(self, judged: str) -> dict[str, str]:
        return {
            name: f"{speeds[-1].ratio:.2f} times as long"
            for name, speeds in self.speed.items()
            if agreed(speeds) == judged
        }

    def different(self) -> list[str]:
        """Return the names of results whose bits or tokens differ, and of defects that differ."""
        results = {"op": self.ops, "activation": self.activations, "transcript": self.transcripts}
        changed = [
            f"{part} {name}"
            for part, pairs in results.items()
            for name, pair in pairs.items()
            if pair.compared and not pair.equal
        ]
        return changed + [f"defect {name}" for name, pair in self.defects.items() if pair.old != pair.new]

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
