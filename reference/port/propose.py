"""Proposals of what a port's arrays are, by shape and values, for a person to confirm."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reference.ops.tensors import from_torch
from reference.parity.activations import rms
from reference.port.match import Matched
from reference.port.trace import Traced

FAR = 0.5  # a relative distance beyond which values say nothing


@dataclass(frozen=True)
class Proposal:
    """What an array of a port may be."""

    own: str  # the port's name
    name: str  # the original's, with `:transposed` if axes 1 and 2 are swapped
    distance: float  # from the original's own values, relative to their size


def propose(traced: Traced, port: Mapping[str, np.ndarray], matched: Matched) -> list[Proposal]:
    """Propose a name for each of a port's arrays that has none of the original's.

    Of the activations with its shape that no array is yet, the one with the closest values is
    proposed; in the order of the port, so that of equals the first comes first.

    Args:
        traced: The original.
        port: The port's arrays.
        matched: Those whose names are known.
    """
    own = {name: from_torch(x) for name, x in traced.run().items() if traced.ops[name].is_floating}
    free = {name: own[name] for name in own if name not in matched.activations and not traced.is_exact(name)}
    proposals = list[Proposal]()
    for unknown in matched.unknown:
        candidates = [
            Proposal(unknown, name + view, _distance(seen, array))
            for name, array in free.items()
            for view, seen in _views(port[unknown])
            if seen.shape == array.shape
        ]
        best = min(candidates, key=lambda proposal: proposal.distance, default=None)
        if best is not None and best.distance < FAR:
            proposals.append(best)
            del free[best.name.removesuffix(":transposed")]
    return proposals


def _views(array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("", array), *([(":transposed", array.swapaxes(1, 2))] if array.ndim > 2 else [])]


def _distance(array: np.ndarray, original: np.ndarray) -> float:
    difference = rms(array.astype(np.float64) - original.astype(np.float64))
    return difference / (rms(original) or 1.0) if np.isfinite(difference) else np.inf
