"""The sizes of a Whisper model, and the names and shapes of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from maxwhisper.checkpoint.stored import StoredTensor
from maxwhisper.errors import CheckpointError


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

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary is multilingual, as `whisper.model.Whisper.is_multilingual`."""
        return self.n_vocab >= 51865

    @property
    def num_languages(self) -> int:
        """The number of language tokens, as `whisper.model.Whisper.num_languages`."""
        return self.n_vocab - 51765 - int(self.is_multilingual)


Shapes = dict[str, tuple[int, ...]]
EMBEDDING = "decoder.token_embedding.weight"
LM_HEAD = "decoder.proj_out.weight"  # if it differs from the token embedding; not OpenAI's name


def weight_shapes(dims: ModelDimensions, tied: bool = True) -> Shapes:
    """Return the shapes of all weights by their names in OpenAI's checkpoints.

    The names are those of the `state_dict` of `whisper.model.Whisper`.

    Args:
        dims: the model's sizes.
        tied: whether the LM head is the token embedding, as in all of OpenAI's models. Otherwise it
            is a separate weight, `LM_HEAD`.
    """
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
        EMBEDDING: (dims.n_vocab, text),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
    }
    for i in range(dims.n_text_layer):
        shapes |= _block(f"decoder.blocks.{i}", text, ("attn", "cross_attn"))
    shapes |= _layer_norm("decoder.ln", text)
    return shapes if tied else {**shapes, LM_HEAD: (dims.n_vocab, text)}


def dimensions_of(weights: Mapping[str, StoredTensor], n_audio_head: int, n_text_head: int) -> ModelDimensions:
    """Derive the sizes from the weights, except for the numbers of heads.

    Args:
        weights: by OpenAI's names.
        n_audio_head: number of heads in the encoder.
        n_text_head: number of heads in the decoder.

    Raises:
        KeyError: if the weights are not those of a Whisper model.
        IndexError: likewise.
        ValueError: likewise.
    """

    def n_layer(part: str) -> int:
        return len({name.split(".")[2] for name in weights if name.startswith(f"{part}.blocks.")})

    n_audio_state, n_mels, _ = weights["encoder.conv1.weight"].shape
    n_vocab, n_text_state = weights[EMBEDDING].shape
    return ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=weights["encoder.positional_embedding"].shape[0],
        n_audio_state=n_audio_state,
        n_audio_head=n_audio_head,
        n_audio_layer=n_layer("encoder"),
        n_vocab=n_vocab,
        n_text_ctx=weights["decoder.positional_embedding"].shape[0],
        n_text_state=n_text_state,
        n_text_head=n_text_head,
        n_text_layer=n_layer("decoder"),
    )


HEAD_DIM = 64  # of every official model


def _sizes(n_state: int, n_audio_layer: int, n_text_layer: int, n_vocab: int, n_mels: int = 80) -> ModelDimensions:
    n_head = n_state // HEAD_DIM
    return ModelDimensions(n_mels, 1500, n_state, n_head, n_audio_layer, n_vocab, 448, n_state, n_head, n_text_layer)


# The sizes of OpenAI's models and of distil-whisper's.
SIZES = {
    "tiny.en": _sizes(384, 4, 4, 51864),
    "tiny": _sizes(384, 4, 4, 51865),
    "base.en": _sizes(512, 6, 6, 51864),
    "base": _sizes(512, 6, 6, 51865),
    "small.en": _sizes(768, 12, 12, 51864),
    "small": _sizes(768, 12, 12, 51865),
    "medium.en": _sizes(1024, 24, 24, 51864),
    "medium": _sizes(1024, 24, 24, 51865),
    "large-v2": _sizes(1280, 32, 32, 51865),  # and large-v1
    "large-v3": _sizes(1280, 32, 32, 51866, 128),
    "large-v3-turbo": _sizes(1280, 32, 4, 51866, 128),
    "distil-small.en": _sizes(768, 12, 4, 51864),
    "distil-medium.en": _sizes(1024, 24, 2, 51864),
    "distil-large-v2": _sizes(1280, 32, 2, 51865),
    "distil-large-v3": _sizes(1280, 32, 2, 51866, 128),
}


def official_dimensions(weights: Mapping[str, StoredTensor], source: str) -> ModelDimensions:
    """Derive the sizes of a model without a configuration, if its state size is an official one.

    In official models the state size determines the number of heads.

    Args:
        weights: by OpenAI's names.
        source: the name of the file, for errors.

    Raises:
        CheckpointError: if the state size is not official, or the weights are not those of a
            Whisper model.
    """
    try:
        n_state = weights["encoder.conv1.weight"].shape[0]
        dims = dimensions_of(weights, n_state // HEAD_DIM, n_state // HEAD_DIM)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise CheckpointError(f"{source} has weights that are not a Whisper model's ({error!r})") from error
    if n_state not in {sizes.n_audio_state for sizes in SIZES.values()}:
        raise CheckpointError(
            f"{source} does not say how many heads it has, and no official model has a state of {n_state}; config.json "
            "must be in the folder of the weights, or save it as "
            "torch.save({'dims': vars(model.dims), 'model_state_dict': model.state_dict()}, NEW_FILE)"
        )
    return dims


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
