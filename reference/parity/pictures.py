"""The pictures of the HTML report."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from maxwhisper.audio import FRAMES_PER_SECOND
from reference.parity.activations import Compared, Error
from reference.report.page import Picture, draw

COLORS = {"MAX": "#e4572e", "PyTorch": "#4c8bf5"}


def error_growth(activations: Sequence[Compared]) -> Picture:
    """Draw the cumulative error after each activation, relative to float64."""

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
        through_the_layers(axes, [a.name for a in activations], "relative error (RMS)")

    caption = (
        "Root mean square of the difference from the float64 model after all ops up to each activation,"
        " relative to the activation's own root mean square."
    )
    return draw("Growth of the error through the layers", caption, (7, 3.6), paint)


def through_the_layers(axes: Axes, names: Sequence[str], label: str) -> None:
    """Label the axes of a plot of errors by activation.

    The x axis has a tick where each block begins. The y axis is logarithmic.

    Args:
        axes: the plot.
        names: the activations along the x axis.
        label: of the y axis.
    """
    starts = {i: name.removesuffix(".attn_ln") for i, name in enumerate(names) if name.endswith(".attn_ln")}
    axes.set_xticks(list(starts), list(starts.values()), rotation=60, ha="right", fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def rms_ratios(activations: Sequence[Compared]) -> Picture:
    """Draw the RMS ratio of each activation, op by op."""
    ops = list(dict.fromkeys(a.op for a in activations))

    def paint(axes: Axes) -> None:
        for side, (name, color) in enumerate(COLORS.items()):
            for i, op in enumerate(ops):
                verdicts = [a.in_situ if name == "MAX" else a.pytorch for a in activations if a.op == op]
                ratios = [v.rms_ratio for v in verdicts]
                label = name if i == 0 else None
                axes.plot(
                    ratios, np.full(len(ratios), i + 0.3 * side - 0.15), "|", color=color, markersize=9, label=label
                )
        axes.axvline(1, color="gray", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(ops)), ops)
        axes.invert_yaxis()
        axes.set_xlim(0, max(1.05, *(min(4.0, a.in_situ.rms_ratio) for a in activations)))
        axes.set_xlabel("RMS ratio: errors relative to the statistical bound (1 is the limit)")
        axes.legend(frameon=False)

    caption = (
        "RMS ratio of each op on MAX's own inputs: the root mean square of the errors, divided by its limit."
        " There is one mark for each activation."
    )
    return draw("Errors relative to the statistical bound, op by op", caption, (7, 0.4 * len(ops) + 1.2), paint)


def log_mel(mel: np.ndarray, seconds: float) -> Picture:
    """Draw the log-mel spectrogram of a window.

    Args:
        mel: [n_mels, n_frames].
        seconds: duration of the recording; padding after it is not drawn.
    """
    spectrogram = mel[:, : max(1, int(seconds * FRAMES_PER_SECOND))]

    def paint(axes: Axes) -> None:
        image = axes.imshow(
            spectrogram,
            aspect="auto",
            origin="lower",
            cmap="magma",
            extent=(0, spectrogram.shape[1] / FRAMES_PER_SECOND, 0, len(spectrogram)),
        )
        axes.set_xlabel("seconds")
        axes.set_ylabel("mel band")
        axes.figure.colorbar(image, ax=axes, label="log-mel")

    return draw("Input of the model", "The log-mel spectrogram of the first window.", (7, 2.4), paint)


def cross_attention(weights: np.ndarray, labels: Sequence[str], seconds: float) -> Picture:
    """Draw the cross-attention of each token over the audio.

    Args:
        weights: [n_token, n_audio_ctx].
        labels: text of each token.
        seconds: duration of the recording; padding after it is not drawn.
    """
    attention = weights[:, : max(1, int(seconds * FRAMES_PER_SECOND / 2))]

    def paint(axes: Axes) -> None:
        end = attention.shape[1] / FRAMES_PER_SECOND * 2
        axes.imshow(
            attention / attention.max(axis=1, keepdims=True),
            aspect="auto",
            cmap="viridis",
            extent=(0, end, len(attention) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_xlabel("seconds")

    caption = (
        "OpenAI Whisper's cross-attention in the last layer, averaged over the heads."
        " Each row is a token. Bright places have the largest weights."
    )
    return draw("Cross-attention by token", caption, (7, 0.16 * len(labels) + 1), paint)
