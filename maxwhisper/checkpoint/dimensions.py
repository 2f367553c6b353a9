"""A Whisper model's sizes, and the name and shape of every weight that follows from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelDimensions:
    """The sizes of a model, under the names of `whisper.model.ModelDimensions`."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


Shapes = dict[str, tuple[int, ...]]


def weight_shapes(dims: ModelDimensions) -> Shapes:
    """The shape of every weight by its name in OpenAI's checkpoints, the `state_dict` of `whisper.model.Whisper`."""
    audio, text = dims.n_audio_state, dims.n_text_state
    shapes = {
        **_linear("encoder.conv1", audio, dims.n_mels, 3),
        **_linear("encoder.conv2", audio, audio, 3),
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
    }
    for i in range(dims.n_audio_layer):
        shapes |= _block(f"encoder.blocks.{i}", audio, ("attn",))
    shapes |= _layer_norm("encoder.ln_post", audio)
    shapes |= {
        "decoder.token_embedding.weight": (dims.n_vocab, text),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
    }
    for i in range(dims.n_text_layer):
        shapes |= _block(f"decoder.blocks.{i}", text, ("attn", "cross_attn"))
    return shapes | _layer_norm("decoder.ln", text)


def _block(path: str, n_state: int, attentions: tuple[str, ...]) -> Shapes:
    shapes: Shapes = {}
    for attention in attentions:
        for projection in ("query", "key", "value", "out"):
            shapes |= _linear(f"{path}.{attention}.{projection}", n_state, n_state)
        del shapes[f"{path}.{attention}.key.bias"]  # softmax ignores it, so Whisper has none
        shapes |= _layer_norm(f"{path}.{attention}_ln", n_state)
    shapes |= _linear(f"{path}.mlp.0", 4 * n_state, n_state)
    shapes |= _linear(f"{path}.mlp.2", n_state, 4 * n_state)
    return shapes | _layer_norm(f"{path}.mlp_ln", n_state)


def _linear(path: str, n_out: int, *n_in: int) -> Shapes:
    return {f"{path}.weight": (n_out, *n_in), f"{path}.bias": (n_out,)}


def _layer_norm(path: str, n_state: int) -> Shapes:
    return {f"{path}.weight": (n_state,), f"{path}.bias": (n_state,)}
