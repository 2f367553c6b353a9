"""What a checkpoint is, and what is odd about it, in a few lines."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from maxwhisper.checkpoint import LM_HEAD, Checkpoint
from maxwhisper.checkpoint.alignment_heads import upper_half_heads
from maxwhisper.checkpoint.dimensions import SIZES
from maxwhisper.engine.dtypes import DTypes


def describe(checkpoint: Checkpoint) -> dict[str, str]:
    """Describe a checkpoint's sizes, weights, heads and vocabulary.

    Returns:
        A line for each of them.
    """
    d, stored = checkpoint.dims, checkpoint.stored.values()
    names = [name for name, sizes in SIZES.items() if sizes == d]
    n_parameters = sum(tensor.size for tensor in stored)
    n_of_dtype = Counter(tensor.dtype for tensor in stored)
    memory = {name: _n_bytes(checkpoint, name) for name in ("float32", "int8")}
    return {
        "sizes": f"{names[0] if names else 'of no official model'}, {n_parameters / 1e6:.0f} million parameters",
        "encoder": f"{d.n_audio_layer} layers, {d.n_audio_head} heads, {d.n_audio_state} channels, {d.n_mels} mels",
        "decoder": f"{d.n_text_layer} layers, {d.n_text_head} heads, {d.n_text_state} channels",
        "vocabulary": f"{d.n_vocab} tokens, {'multilingual' if d.is_multilingual else 'English only'}",
        "LM head": "a weight of its own" if LM_HEAD in checkpoint.stored else "the token embedding",
        "alignment heads": f"{len(checkpoint.alignment_heads)} of {d.n_text_layer * d.n_text_head}",
        "dtypes": ", ".join(f"{n} {dtype}" for dtype, n in n_of_dtype.most_common()),
        "memory": ", ".join(f"{_megabytes(n)} for compute type {name}" for name, n in memory.items()),
    }


def oddities(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what is unusual about a checkpoint and may be a mistake. All weights are read."""
    d, stored = checkpoint.dims, checkpoint.stored
    if d not in SIZES.values():
        yield "no official model has these sizes"
    if LM_HEAD in stored:
        yield "the LM head differs from the token embedding, as after training with untied weights"
    if len({tensor.dtype for name, tensor in stored.items() if len(tensor.shape) == 2}) > 1:
        yield "matrices have different dtypes; as float32 they take more memory than as one half precision"
    if checkpoint.alignment_heads == upper_half_heads(d.n_text_layer, d.n_text_head):
        yield "no alignment heads are named, so word timestamps use all heads of the upper half of the layers"
    for name, numbers in checkpoint.weights.items():
        if not np.isfinite(numbers).all():
            yield f"{name} has numbers that are not finite"
        elif not numbers.any() and not name.endswith("bias"):
            yield f"{name} is all zeros"


def _n_bytes(checkpoint: Checkpoint, compute_type: str) -> int:
    """Return the size of the weights in memory on the CPU."""
    dtypes = DTypes.of(checkpoint, compute_type).weights
    return sum(tensor.size * dtypes[name].size_in_bytes for name, tensor in checkpoint.stored.items())


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f} MB"
