"""Whisper in NumPy float64, composed of the op definitions: the truth for other implementations."""

import numpy as np

from maxwhisper.checkpoint import Checkpoint
from reference.flow import dataflow
from reference.flow import whisper as whisper_flow
from reference.numerics import definitions
from reference.ops import find_row


class NumpyWhisper:
    """The encoder and the decoder of a checkpoint, without a KV cache."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dims = checkpoint.dims
        self.weights = {name: array.astype(np.float64) for name, array in checkpoint.weights.items()}

    def encoder(self, log_mel: np.ndarray) -> np.ndarray:
        """Compute audio features.

        Args:
            log_mel: [n_audio, n_mels, 2 * n_audio_ctx].

        Returns:
            float64 [n_audio, n_audio_ctx, n_audio_state].
        """
        return self.evaluate(whisper_flow.encoder(self.dims, fused=True), {"log_mel": log_mel.astype(np.float64)})[
            "encoder.ln_post"
        ]

    def decoder(self, tokens: np.ndarray, audio_features: np.ndarray) -> np.ndarray:
        """Compute logits.

        Args:
            tokens: [n_batch, n], starting at position 0.
            audio_features: the encoder's output for their audio.

        Returns:
            float64 [n_batch, n, n_vocab].
        """
        flow = whisper_flow.cross_kv(self.dims) | whisper_flow.decoder(self.dims, fused=True)
        return self.evaluate(flow, {"encoder.ln_post": audio_features, **decoder_inputs(tokens)})["decoder.logits"]

    def evaluate(self, flow: dataflow.Dataflow, inputs: dataflow.Arrays) -> dict[str, np.ndarray]:
        """Compute every activation of a data flow from its inputs, by name."""
        flow = whisper_flow.for_weights(flow, self.weights)
        return dataflow.evaluate(
            flow, {**self.weights, **inputs}, lambda op, arguments: find_row(op).define(*arguments)
        )


def decoder_inputs(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return the decoder's inputs besides features, for tokens [n_batch, n] from position 0."""
    n = tokens.shape[1]
    return {"tokens": tokens, "positions": np.arange(n), "mask": definitions.causal_mask(n)}
