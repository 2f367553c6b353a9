"""The sizes that ops have in a real model."""

from collections.abc import Mapping

from maxwhisper import ModelDimensions
from maxwhisper.audio import N_SAMPLES
from reference.ops.inputs import dimensions

# What the decoder does for each token; the other ops work on a whole window.
OF_A_STEP = {
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
TO_AUDIO = {"cross_attention"}
FIXED = {"residual_block", "cross_attention_block", "decoder_block", "decoder_block_int8"}  # rows of one small width


def real_sizes(op: str, dims: ModelDimensions) -> Mapping[str, int]:
    """Sizes of an op's dimensions in a model's encoder, or in a step of its decoder in the middle of its context."""
    steps, state = op in OF_A_STEP, dims.n_text_state if op in OF_A_STEP else dims.n_audio_state
    n_head = dims.n_text_head if steps else dims.n_audio_head
    sizes = {
        "batch": 1,
        "n": 1 if steps else dims.n_audio_ctx,
        "n_kv": dims.n_audio_ctx if op in TO_AUDIO or not steps else dims.n_text_ctx // 2,
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
