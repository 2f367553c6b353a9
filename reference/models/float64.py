"""Whisper in NumPy float64, composed of the definitions: the truth that float32 implementations are measured against."""

import numpy as np

from maxwhisper.checkpoint import Checkpoint
from reference.flow import dataflow
from reference.flow import whisper as whisper_flow
from reference.numerics import definitions
from reference.ops import TABLE


class NumpyWhisper:
    """The encoder and the decoder of a checkpoint, with nothing cached and nothing fast."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dims = checkpoint.dims
        self.weights = {name: array.astype(np.float64) for name, array in checkpoint.weights.items()}

    def encoder(self, log_mel: np.ndarray) -> np.ndarray:
        """log_mel [n_audio, n_mels, 2 * n_audio_ctx] to audio features [n_audio, n_audio_ctx, n_audio_state]."""
        return self.evaluate(whisper_flow.encoder(self.dims, fused=True), {"log_mel": log_mel.astype(np.float64)})[
            "encoder.ln_post"
        ]

    def decoder(self, tokens: np.ndarray, audio_features: np.ndarray) -> np.ndarray:
        """Tokens [n_batch, n] and their audio's features to logits [n_batch, n, n_vocab]."""
        flow = whisper_flow.cross_kv(self.dims) | whisper_flow.decoder(self.dims, fused=True)
        return self.evaluate(flow, {"encoder.ln_post": audio_features, **decoder_inputs(tokens)})["decoder.logits"]

    def evaluate(self, flow: dataflow.Dataflow, given: dataflow.Arrays) -> dict[str, np.ndarray]:
        """Every activation of a data flow, by name, from what it is given."""
        flow = whisper_flow.for_weights(flow, self.weights)
        return dataflow.evaluate(flow, {**self.weights, **given}, lambda op, inputs: TABLE[op].define(*inputs))


def decoder_inputs(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What a decoder is given besides features, from tokens [n_batch, n] that start at position 0."""
    n = tokens.shape[1]
    return {"tokens": tokens, "positions": np.arange(n), "mask": definitions.causal_mask(n)}
