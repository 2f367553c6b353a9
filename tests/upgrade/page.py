"""The comparison as a page, `report/upgrade.html`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reference.parity.pictures import through_the_layers
from reference.report.page import Picture, draw, render
from tests.upgrade.findings import LIMITS, Findings, Pair
from tests.upgrade.noise import MIN_DIFFERENCE, Speed

TEMPLATE = Path(__file__).parent / "page.html"
COLORS = {"old": "#4c8bf5", "new": "#e4572e"}
JUDGED = {"slower": "#b3261e", "faster": "#12783b", "": "gray"}


def page(findings: Findings, document: Mapping[str, Any]) -> str:
    """Render the page, with pictures of speed and of distances from float64."""
    pictures = []
    if findings.speed:
        pictures.append(_speed({name: speeds[-1] for name, speeds in findings.speed.items()}, document["speed"]))
    if compared := {
        name: pair
        for name, pair in findings.activations.items()
        if all(hasattr(side, "rms") for side in (pair.old, pair.new))
    }:
        pictures.append(_distances(compared))
    return render(TEMPLATE, document=document, pictures=pictures, limits=LIMITS)


def _speed(speeds: Mapping[str, Speed], judged: Mapping[str, Any]) -> Picture:
    """Draw the ratio new / old of each line."""

    def paint(axes: Axes) -> None:
        for i, (name, speed) in enumerate(speeds.items()):
            color = JUDGED[judged[name]["beyond_noise"]]
            axes.plot([speed.low, speed.high], [i, i], "-", color=color, linewidth=2, alpha=0.6)
            axes.plot([speed.ratio], [i], "o", color=color, markersize=4)
        axes.axvspan(1 / (1 + MIN_DIFFERENCE), 1 + MIN_DIFFERENCE, color="gray", alpha=0.12)
        axes.axvline(1, color="gray", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(
            min(0.8, *(speed.low for speed in speeds.values())), max(1.25, *(speed.high for speed in speeds.values()))
        )
        axes.set_xticks(
            ticks := [
                tick for tick in (0.25, 0.5, 0.8, 1, 1.25, 2, 4) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
            ],
            map(str, ticks),
        )
        axes.set_xticks([], minor=True)
        axes.set_yticks(range(len(speeds)), list(speeds), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("time, new / old")

    caption = (
        "The median over rounds, and its noise interval."
        " Grey: three pairs of processes do not agree that the line differs."
    )
    return draw("Speed", caption, (7, 0.2 * len(speeds) + 0.8), paint)


def _distances(activations: Mapping[str, Pair]) -> Picture:
    """Draw the distance from float64 of each activation on both sides."""

    def paint(axes: Axes) -> None:
        x = np.arange(len(activations))
        for side, color in COLORS.items():
            rms = [getattr(pair, side).rms or np.nan for pair in activations.values()]
            axes.plot(x, rms, ".-", color=color, label=side, linewidth=1, markersize=4)
        through_the_layers(axes, list(activations), "distance (rms)")

    caption = "Every activation of tiny.en on ten seconds of speech. Errors of all earlier ops are included."
    return draw("Distance from float64", caption, (7, 3.6), paint)
