"""Mistakes in calling compiled graphs: positions, and state that stays between calls."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.faults.plant import Fault


def change_decoder_inputs(**changes: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """Change inputs of the decoder graph, each by a function of the input and of the positions."""

    def replace(original: Any) -> Any:
        def run(model: Any, graph: str, *inputs: Any) -> Any:
            if graph == "decoder":
                names = ("tokens", "positions", "rows")
                arrays = {name: buffer.to_numpy() for name, buffer in zip(names, inputs)}
                changed = {
                    name: changes[name](array, arrays["positions"]) if name in changes else array
                    for name, array in arrays.items()
                }
                inputs = (
                    *(model.to_device(np.ascontiguousarray(array)) for array in changed.values()),
                    *inputs[len(names) :],
                )
            return original(model, graph, *inputs)

        return run

    return replace


def length_not_reset(original: Any) -> Any:
    """Start each window's cache at the position where the previous one ended."""
    decoders: list[Any] = []

    def decoder(model: Any, audio: Any, n_group: int = 1) -> Any:
        decoders.append(original(model, audio, n_group))
        decoders[-1].n_past = decoders[-2].n_past if decoders[1:] else 0
        return decoders[-1]

    return decoder


def stale_audio(original: Any) -> Any:
    """Use the previous window's keys and values in cross-attention."""
    windows: list[Any] = []

    def init(decoder: Any, model: Any, audio: Any, n_group: int) -> None:
        windows.append(audio)
        original(decoder, model, audio, n_group)
        decoder._cross_kv = windows[max(0, len(windows) - 2)].cross_kv

    return init


def in_half_precision(original: Any) -> Any:
    """Round the encoder's input to float16."""
    return lambda model, mel: original(model, mel.astype(np.float16))


FAULTS = [
    Fault(
        "log-mel in half precision",
        "log_mel",
        "mel.half(), as for models on a GPU",
        {"whisper.Whisper.embed_audio": in_half_precision},
        looks_like="rounded to float16",
    ),
    Fault(
        "positions shifted by one",
        "decoder.positions",
        "positions that start at 1, or at 2 as in BART",
        {"engine.runtime.Runtime.run": change_decoder_inputs(positions=lambda positions, _: positions + 1)},
    ),
    Fault(
        "valid length not reset between windows",
        "decoder.positions",
        "a cache reused between windows to save its allocation",
        {"whisper.Whisper.decoder": length_not_reset},
    ),
    Fault(
        "cross-attention cache of the previous window",
        "decoder.blocks.0.cross_attn.context",
        "keys and values computed once instead of once per window",
        {"engine.decoder.Decoder.__init__": stale_audio},
    ),
]
