"""The report's pictures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from maxwhisper.audio import FRAMES_PER_SECOND
from reference.parity.activations import Compared, Error
from reference.report.page import Picture, draw

COLORS = {"MAX": "#e4572e", "PyTorch": "#4c8bf5"}


def error_growth(activations: Sequence[Compared]) -> Picture:
    """How far from float64, layer by layer."""

    def paint(axes: Axes) -> None:
        x = np.arange(len(activations))
        sides: dict[str, list[Error | None]] = {
            "MAX": [a.error for a in activations],
            "PyTorch": [a.peer for a in activations],
        }
        for name, errors in sides.items():
            relative = [e.rms / a.size if e and a.size and e.rms else np.nan for e, a in zip(errors, activations)]
            axes.plot(
                x,
                relative,
                ".-",
                color=COLORS[name],
                label="OpenAI Whisper" if name == "PyTorch" else name,
                linewidth=1,
                markersize=4,
            )
        through_the_layers(axes, [a.name for a in activations], "error, relative (rms)")

    caption = "Root mean square of the distance from the float64 model, relative to the activation's own, after all ops up to there."
    return draw("How error grows through the layers", caption, (7, 3.6), paint)


def through_the_layers(axes: Axes, names: Sequence[str], label: str) -> None:
    """Say where in the model errors are, one for each of these activations: an axis on which each block begins, and a logarithmic one."""
    starts = {i: name.removesuffix(".attn_ln") for i, name in enumerate(names) if name.endswith(".attn_ln")}
    axes.set_xticks(list(starts), list(starts.values()), rotation=60, ha="right", fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def share_of_bounds(activations: Sequence[Compared]) -> Picture:
    """How close each op comes to its gates."""
    ops = list(dict.fromkeys(a.op for a in activations))

    def paint(axes: Axes) -> None:
        for side, (name, color) in enumerate(COLORS.items()):
            for i, op in enumerate(ops):
                verdicts = [a.in_situ if name == "MAX" else a.pytorch for a in activations if a.op == op]
                shares = [v.rms_ratio for v in verdicts]
                label = name if i == 0 else None
                axes.plot(
                    shares, np.full(len(shares), i + 0.3 * side - 0.15), "|", color=color, markersize=9, label=label
                )
        axes.axvline(1, color="gray", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(ops)), ops)
        axes.invert_yaxis()
        axes.set_xlim(0, max(1.05, *(min(4.0, a.in_situ.rms_ratio) for a in activations)))
        axes.set_xlabel("share of the statistical bound (1 is the limit)")
        axes.legend(frameon=False)

    caption = "Each op on MAX's own inputs, one mark per activation: root mean square of its errors as a share of what is allowed."
    return draw("Share of the bound, op by op", caption, (7, 0.4 * len(ops) + 1.2), paint)


def log_mel(mel: np.ndarray, seconds: float) -> Picture:
    """What the model hears."""
    heard = mel[:, : max(1, int(seconds * FRAMES_PER_SECOND))]

    def paint(axes: Axes) -> None:
        image = axes.imshow(
            heard,
            aspect="auto",
            origin="lower",
            cmap="magma",
            extent=(0, heard.shape[1] / FRAMES_PER_SECOND, 0, len(heard)),
        )
        axes.set_xlabel("seconds")
        axes.set_ylabel("mel band")
        axes.figure.colorbar(image, ax=axes, label="log-mel")

    return draw("What the model hears", "The log-mel spectrogram of the first window.", (7, 2.4), paint)


def cross_attention(weights: np.ndarray, labels: Sequence[str], seconds: float) -> Picture:
    """Where in the audio each token looks: weights [n_token, n_audio_ctx]."""
    heard = weights[:, : max(1, int(seconds * FRAMES_PER_SECOND / 2))]

    def paint(axes: Axes) -> None:
        end = heard.shape[1] / FRAMES_PER_SECOND * 2
        axes.imshow(
            heard / heard.max(axis=1, keepdims=True),
            aspect="auto",
            cmap="viridis",
            extent=(0, end, len(heard) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_xlabel("seconds")

    caption = "OpenAI Whisper's cross-attention in the last layer, the mean of its heads, for each token; brightest is where it looks."
    return draw("Where each token looks", caption, (7, 0.16 * len(labels) + 1), paint)
