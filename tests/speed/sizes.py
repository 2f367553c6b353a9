"""The sizes of ops in a real model."""

from collections.abc import Mapping

from maxwhisper import ModelDimensions
from maxwhisper.audio import N_SAMPLES
from reference.ops.inputs import dimensions

# Ops that the decoder runs once per token. The others work on a whole window.
DECODER_STEP_OPS = {
    "few_rows",
    "lm_head",
    "cached_attention",
    "cached",
    "causal_mask",
    "masked_attention",
    "cross_attention",
    "token_embedding",
    "position_embedding",
}
CROSS_ATTENTION_OPS = {"cross_attention"}
FIXED_SIZE_OPS = {
    "residual_block",
    "cross_attention_block",
    "decoder_block",
    "decoder_block_int8",
}  # of one small width


def calls_at_once(device: str) -> int:
    """Return how many calls of an op to time together: on a GPU so many that the host has none."""
    return 100 if device == "gpu" else 1


def real_sizes(op: str, dims: ModelDimensions) -> Mapping[str, int]:
    """Return the sizes of an op's dimensions in a model.

    Sizes are those of the encoder or, for a DECODER_STEP_OPS op, of a decoder step in the middle of
    the context.
    """
    is_step, state = op in DECODER_STEP_OPS, dims.n_text_state if op in DECODER_STEP_OPS else dims.n_audio_state
    n_head = dims.n_text_head if is_step else dims.n_audio_head
    sizes = {
        "batch": 1,
        "n": 1 if is_step else dims.n_audio_ctx,
        "n_kv": dims.n_audio_ctx if op in CROSS_ATTENTION_OPS or not is_step else dims.n_text_ctx // 2,
        "n_head": n_head,
        "head_dim": state // n_head,
        "n_state": state,
        "n_mlp": 4 * state,
        "n_in": dims.n_mels if op == "conv1d_stride1" else state,
        "n_out": state,
        "n_frames": 2 * dims.n_audio_ctx,
        "n_ctx": dims.n_text_ctx,
        "n_vocab": dims.n_vocab,
        "n_samples": N_SAMPLES,
    }
    return {name: sizes[name] for name in dimensions(op)}
