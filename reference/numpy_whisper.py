"""Whisper in NumPy float64, composed of the definitions: the truth that float32 implementations are measured against."""

import numpy as np

from maxwhisper.checkpoint import Checkpoint
from reference import definitions as define


class NumpyWhisper:
    """The encoder and the decoder of a checkpoint, with nothing cached and nothing fast."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dims = checkpoint.dims
        self.weights = {name: array.astype(np.float64) for name, array in checkpoint.weights.items()}

    def encoder(self, log_mel: np.ndarray) -> np.ndarray:
        """log_mel [n_audio, n_mels, 2 * n_audio_ctx] to audio features [n_audio, n_audio_ctx, n_audio_state]."""
        x = log_mel.astype(np.float64).swapaxes(1, 2)
        x = define.gelu(define.conv1d(x, *self._weight_and_bias("encoder.conv1"), stride=1))
        x = define.gelu(define.conv1d(x, *self._weight_and_bias("encoder.conv2"), stride=2))
        x = x + self.weights["encoder.positional_embedding"]
        for i in range(self.dims.n_audio_layer):
            block = f"encoder.blocks.{i}"
            h = self._layer_norm(f"{block}.attn_ln", x)
            x = x + self._attention(f"{block}.attn", h, h, self.dims.n_audio_head)
            x = x + self._mlp(block, x)
        return self._layer_norm("encoder.ln_post", x)

    def decoder(self, tokens: np.ndarray, audio_features: np.ndarray) -> np.ndarray:
        """tokens [n_batch, n] and their audio's features to logits [n_batch, n, n_vocab]."""
        positions = np.arange(tokens.shape[1])
        x = self.weights["decoder.token_embedding.weight"][tokens] + self.weights["decoder.positional_embedding"][positions]
        for i in range(self.dims.n_text_layer):
            block = f"decoder.blocks.{i}"
            h = self._layer_norm(f"{block}.attn_ln", x)
            x = x + self._attention(f"{block}.attn", h, h, self.dims.n_text_head, causal=True)
            h = self._layer_norm(f"{block}.cross_attn_ln", x)
            x = x + self._attention(f"{block}.cross_attn", h, audio_features, self.dims.n_text_head)
            x = x + self._mlp(block, x)
        return define.linear(self._layer_norm("decoder.ln", x), self.weights["decoder.token_embedding.weight"])

    def _attention(self, path: str, x: np.ndarray, xa: np.ndarray, n_head: int, causal: bool = False) -> np.ndarray:
        q = define.split_heads(define.linear(x, *self._weight_and_bias(f"{path}.query")), n_head)
        k = define.split_heads(define.linear(xa, self.weights[f"{path}.key.weight"]), n_head)
        v = define.split_heads(define.linear(xa, *self._weight_and_bias(f"{path}.value")), n_head)
        scores = define.attention_scores(q, k)
        if causal:
            scores = define.causal_mask(scores, np.arange(x.shape[1]), np.arange(x.shape[1]))
        context = define.merge_heads(define.softmax(scores) @ v)
        return define.linear(context, *self._weight_and_bias(f"{path}.out"))

    def _mlp(self, block: str, x: np.ndarray) -> np.ndarray:
        h = define.linear(self._layer_norm(f"{block}.mlp_ln", x), *self._weight_and_bias(f"{block}.mlp.0"))
        return define.linear(define.gelu(h), *self._weight_and_bias(f"{block}.mlp.2"))

    def _layer_norm(self, path: str, x: np.ndarray) -> np.ndarray:
        return define.layer_norm(x, *self._weight_and_bias(path))

    def _weight_and_bias(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        return self.weights[f"{path}.weight"], self.weights[f"{path}.bias"]
