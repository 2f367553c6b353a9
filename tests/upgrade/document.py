"""The comparison as JSON, `report/upgrade.json`. Its keys are the names in `findings`."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from tests.speed.baseline import machine
from tests.upgrade.findings import STATUS, Findings, Pair
from tests.upgrade.noise import agreed


def document(findings: Findings, old: str, new: str) -> dict[str, Any]:
    """Convert the findings to JSON.

    Null stands for a number that is infinite or NaN. If a side has no result, a string says why.

    Args:
        findings: of the comparison.
        old: OLD, as on the command line.
        new: NEW, as on the command line.
    """
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "old": {"asked": old, "versions": findings.versions.old},
        "new": {"asked": new, "versions": findings.versions.new},
        "verdict": findings.verdict,
        "status": STATUS[findings.verdict],
        "wrong": findings.wrong(),
        "wrong_before": findings.wrong_before(),
        "slower": findings.slower(),
        "faster": findings.faster(),
        "different": findings.different(),
        "ops": _pairs(findings.ops),
        "activations": _pairs(findings.activations),
        "transcripts": _pairs(findings.transcripts),
        "speed": {
            name: {"beyond_noise": agreed(speeds), "seen": [_plain(speed) for speed in speeds]}
            for name, speeds in findings.speed.items()
        },
        "cost": _pairs(findings.cost),
        "defects": {
            name: {"equal": pair.old == pair.new, "old": pair.old, "new": pair.new}
            for name, pair in findings.defects.items()
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
