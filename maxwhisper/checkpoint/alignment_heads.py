"""Alignment heads: the cross-attention heads of a model that word timestamps are computed from."""

import json
import warnings
from pathlib import Path

from maxwhisper.errors import CheckpointWarning

Heads = tuple[tuple[int, int], ...]  # pairs of layer and head

# Published by OpenAI in `whisper`, encoded in base85 there.
ALIGNMENT_HEADS: dict[str, Heads] = {
    "tiny.en": ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)),
    "tiny": ((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5)),
    "base.en": ((3, 3), (4, 7), (5, 1), (5, 5), (5, 7)),
    "base": ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)),
    "small.en": (
        (6, 6),
        (7, 0),
        (7, 3),
        (7, 8),
        (8, 2),
        (8, 5),
        (8, 7),
        (9, 0),
        (9, 4),
        (9, 8),
        (9, 10),
        (10, 0),
        (10, 1),
        (10, 2),
        (10, 3),
        (10, 6),
        (10, 11),
        (11, 2),
        (11, 4),
    ),
    "small": ((5, 3), (5, 9), (8, 0), (8, 4), (8, 7), (8, 8), (9, 0), (9, 7), (9, 9), (10, 5)),
    "medium.en": (
        (11, 4),
        (14, 1),
        (14, 12),
        (14, 14),
        (15, 4),
        (16, 0),
        (16, 4),
        (16, 9),
        (17, 12),
        (17, 14),
        (18, 7),
        (18, 10),
        (18, 15),
        (20, 0),
        (20, 3),
        (20, 9),
        (20, 14),
        (21, 12),
    ),
    "medium": ((13, 15), (15, 4), (15, 15), (16, 1), (20, 0), (23, 4)),
    "large-v1": ((9, 19), (11, 2), (11, 4), (11, 17), (22, 7), (22, 11), (22, 17), (23, 2), (23, 15)),
    "large-v2": (
        (10, 12),
        (13, 17),
        (16, 11),
        (16, 12),
        (16, 13),
        (17, 15),
        (17, 16),
        (18, 4),
        (18, 11),
        (18, 19),
        (19, 11),
        (21, 2),
        (21, 3),
        (22, 3),
        (22, 9),
        (22, 12),
        (23, 5),
        (23, 7),
        (23, 13),
        (25, 5),
        (26, 1),
        (26, 12),
        (27, 15),
    ),
    "large-v3": ((7, 0), (10, 17), (12, 18), (13, 12), (16, 1), (17, 14), (19, 11), (21, 4), (24, 1), (25, 6)),
    "large-v3-turbo": ((2, 4), (2, 11), (3, 3), (3, 6), (3, 11), (3, 14)),
}
ALIGNMENT_HEADS |= {"large": ALIGNMENT_HEADS["large-v3"], "turbo": ALIGNMENT_HEADS["large-v3-turbo"]}


def read_heads(path: Path, n_layer: int, n_head: int) -> Heads:
    """Read the alignment heads from a JSON configuration.

    Warns with CheckpointWarning if they do not fit the model. In some distilled models they are
    those of a different model.

    Args:
        path: of the configuration.
        n_layer: number of decoder layers.
        n_head: number of heads per layer.

    Returns:
        The heads; empty if the file has none, can't be read, or has heads that do not fit.
    """
    try:
        pairs = json.loads(path.read_text(encoding="utf-8")).get("alignment_heads")
        if not pairs:
            return ()
        heads = tuple((layer, head) for layer, head in pairs)
        fit = all(type(n) is int for pair in heads for n in pair) and all(
            0 <= layer < n_layer and 0 <= head < n_head for layer, head in heads
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return ()
    if not fit:
        warnings.warn(
            f"{path} names alignment heads that are not all in this model of {n_layer} layers with {n_head} heads; "
            "word timestamps use all heads of the upper half of the layers",
            CheckpointWarning,
            stacklevel=3,
        )
        return ()
    return heads


def upper_half_heads(n_layer: int, n_head: int) -> Heads:
    """Return all heads of the upper half of the layers, OpenAI Whisper's default for any model."""
    return tuple((layer, head) for layer in range(n_layer // 2, n_layer) for head in range(n_head))
