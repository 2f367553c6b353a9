"""Mistakes in how compiled graphs are called: positions, and what is kept from one call to the next."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.faults.plant import Fault


def decoder_given(**changes: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """What the decoder's graph is given, changed: each by a function of what it was and of the positions."""

    def replace(right: Any) -> Any:
        def run(model: Any, graph: str, *inputs: Any) -> Any:
            if graph == "decoder":
                names = ("tokens", "positions", "rows")
                given = {name: buffer.to_numpy() for name, buffer in zip(names, inputs)}
                changed = {
                    name: changes[name](array, given["positions"]) if name in changes else array
                    for name, array in given.items()
                }
                inputs = (
                    *(model.to_device(np.ascontiguousarray(array)) for array in changed.values()),
                    *inputs[len(names) :],
                )
            return right(model, graph, *inputs)

        return run

    return replace


def length_kept(right: Any) -> Any:
    """The cache of a new window begins where that of the last one ended."""
    made: list[Any] = []

    def decoder(model: Any, audio: Any, n_group: int = 1) -> Any:
        made.append(right(model, audio, n_group))
        made[-1].n_past = made[-2].n_past if made[1:] else 0
        return made[-1]

    return decoder


def stale_audio(right: Any) -> Any:
    """Cross-attention's keys and values stay those of the window before."""
    seen: list[Any] = []

    def init(decoder: Any, model: Any, audio: Any, n_group: int) -> None:
        seen.append(audio)
        right(decoder, model, audio, n_group)
        decoder._cross_kv = seen[max(0, len(seen) - 2)].cross_kv

    return init


def in_half_precision(right: Any) -> Any:
    """The encoder gets the spectrogram as a checkpoint of halves has its weights."""
    return lambda model, mel: right(model, mel.astype(np.float16))


FAULTS = [
    Fault(
        "log-mel in half precision",
        "log_mel",
        "mel.half(), which models on a GPU take",
        {"whisper.Whisper.embed_audio": in_half_precision},
        looks_like="rounded to float16",
    ),
    Fault(
        "positions shifted by one",
        "decoder.positions",
        "positions that start at 1, or at 2 as BART's",
        {"engine.runtime.Runtime.run": decoder_given(positions=lambda positions, _: positions + 1)},
    ),
    Fault(
        "valid length not reset between windows",
        "decoder.positions",
        "a cache that is kept, to save its allocation",
        {"whisper.Whisper.decoder": length_kept},
    ),
    Fault(
        "cross-attention cache of the previous window",
        "decoder.blocks.0.cross_attn.context",
        "keys and values computed once, and not once per window",
        {"engine.decoder.Decoder.__init__": stale_audio},
    ),
]
