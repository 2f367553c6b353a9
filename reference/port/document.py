"""A comparison as JSON data; `schema.json` describes every field."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference.parity.activations import Compared
from reference.port.match import Matched
from reference.report.page import number

SCHEMA = json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))


def document(compared: Sequence[Compared], matched: Matched) -> dict[str, Any]:
    """Return a comparison as JSON data."""
    failed = [one.name for one in compared if not one.passes]
    return {
        "equal": not failed,
        "first_divergence": failed[0] if failed else None,
        "not_in_the_original": list(matched.unknown),
        "not_shown": list(matched.missing),
        "activations": [_activation(one) for one in compared],
    }


def _activation(one: Compared) -> dict[str, Any]:
    return {
        "name": one.name,
        "ops": one.op.split(" → "),
        "shape": list(one.shape),
        "passes": one.passes,
        "estimated": one.estimated,
        "worst_case_ratio": number(one.in_situ.worst_case_ratio),
        "rms_ratio": number(one.in_situ.rms_ratio),
        "original_rms_ratio": number(one.pytorch.rms_ratio),
        "error": number(one.error.rms),
        "original_error": None if one.peer is None else number(one.peer.rms),
        "failures": one.in_situ.failures,
        "looks_like": one.resembles,
    }
