"""A comparison as an HTML page without external resources."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reference.parity.activations import Compared
from reference.port.parity import describe
from reference.report.page import Picture, draw, render

TEMPLATE = Path(__file__).parent / "page.html"
PORT, ORIGINAL = "#e4572e", "#4c8bf5"


def page(compared: Sequence[Compared], document: dict[str, Any]) -> str:
    """Render a comparison.

    Args:
        compared: The activations.
        document: As returned by `reference.port.document.document` for them.
    """
    failed = [one for one in compared if not one.passes]
    said = describe(failed, list(compared)).splitlines() if failed else []
    return render(TEMPLATE, document=document, said=said, pictures=[_ratios(compared), _errors(compared)])


def _ratios(compared: Sequence[Compared]) -> Picture:
    def paint(axes: Axes) -> None:
        for label, color, ratios in (
            ("port", PORT, [one.in_situ.rms_ratio for one in compared]),
            ("original", ORIGINAL, [one.pytorch.rms_ratio for one in compared]),
        ):
            axes.plot(np.maximum(ratios, 1e-3), ".", color=color, label=label, markersize=5)
        axes.axhline(1, color="gray", linestyle="--", linewidth=1)
        _along_the_model(axes, compared, "RMS ratio")

    return draw("Each activation on its own inputs", "Above the dashed line, an activation is wrong.", (8, 3.6), paint)


def _errors(compared: Sequence[Compared]) -> Picture:
    def paint(axes: Axes) -> None:
        for label, color, errors in (
            ("port", PORT, [one.error.rms for one in compared]),
            ("original", ORIGINAL, [one.peer.rms if one.peer else np.nan for one in compared]),
        ):
            relative = [error / one.size if one.size and error else np.nan for error, one in zip(errors, compared)]
            axes.plot(relative, ".-", color=color, label=label, linewidth=1, markersize=4)
        _along_the_model(axes, compared, "relative error (RMS)")

    caption = "The difference from float64 after all ops so far, relative to the activation's size."
    return draw("Growth of the error", caption, (8, 3.6), paint)


def _along_the_model(axes: Axes, compared: Sequence[Compared], label: str) -> None:
    every = max(1, len(compared) // 20)
    places = range(0, len(compared), every)
    axes.set_xticks(list(places), [compared[i].name for i in places], rotation=60, ha="right", fontsize=6)
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
