"""The comparison as data, `report/upgrade.json`: what `tests.upgrade.findings` names, by the names it gives."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from tests.speed.baseline import machine
from tests.upgrade.findings import STATUS, Findings, Pair
from tests.upgrade.noise import agreed


def document(found: Findings, old: str, new: str) -> dict[str, Any]:
    """Everything that was found. Null stands for a number that is infinite or undefined, a string in place of a side for why it is missing.

    old, new: what was asked for.
    """
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "old": {"asked": old, "versions": found.versions.old},
        "new": {"asked": new, "versions": found.versions.new},
        "verdict": found.verdict,
        "status": STATUS[found.verdict],
        "wrong": found.wrong(),
        "wrong_before": found.wrong_before(),
        "slower": found.slower(),
        "faster": found.faster(),
        "different": found.different(),
        "ops": _pairs(found.ops),
        "activations": _pairs(found.activations),
        "transcripts": _pairs(found.transcripts),
        "speed": {
            name: {"beyond_noise": agreed(seen), "seen": [_plain(speed) for speed in seen]}
            for name, seen in found.speed.items()
        },
        "cost": _pairs(found.cost),
        "defects": {
            name: {"equal": pair.old == pair.new, "old": pair.old, "new": pair.new}
            for name, pair in found.defects.items()
        },
    }


def _pairs(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    return {
        name: {"compared": pair.compared, "equal": pair.equal, "old": _plain(pair.old), "new": _plain(pair.new)}
        for name, pair in pairs.items()
    }


def _plain(x: Any) -> Any:
    if is_dataclass(x) and not isinstance(x, type):
        return {name: _plain(value) for name, value in asdict(x).items()}
    return None if isinstance(x, float) and not isfinite(x) else x
