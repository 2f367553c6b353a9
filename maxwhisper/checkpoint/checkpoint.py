"""The common form that all file formats are read into."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maxwhisper.checkpoint.alignment_heads import Heads, upper_half_heads
from maxwhisper.checkpoint.dimensions import LM_HEAD, ModelDimensions, weight_shapes
from maxwhisper.checkpoint.stored import StoredTensor, Weights
from maxwhisper.errors import CheckpointError, CheckpointWarning

N_VOCABS = (51864, 51865, 51866)  # English only; 99 languages; 100 languages (large-v3)

# Exceptions that reading malformed or malicious bytes may raise. Readers convert them to a
# CheckpointError with the name of the file.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Checkpoint:
    """A stored model: its sizes, and its weights in the precision of the file.

    Warns with CheckpointWarning if it has added tokens that are no obstacle.

    Raises:
        CheckpointError: if the sizes are not those of a Whisper model, a weight is missing, unknown
            or of a wrong shape or dtype, or an alignment head does not exist.
    """

    dims: ModelDimensions
    # By OpenAI's names, float16, float32 or float64. bfloat16 and int8 are converted to float32,
    # exactly. Each is read when it is looked up.
    weights: Mapping[str, np.ndarray]
    source: str  # the name of the file, for errors
    alignment_heads: Heads = ()  # by default the heads of the upper half of the layers

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", Weights.of(self.weights))
        d = self.dims
        for name, value in vars(d).items():
            if not isinstance(value, int) or value <= 0:
                raise CheckpointError(f"{self.source}: {name} is {value!r}, not a positive integer")
        for n_state, n_head in ((d.n_audio_state, d.n_audio_head), (d.n_text_state, d.n_text_head)):
            if n_state % n_head or n_state % 2:
                raise CheckpointError(f"{self.source}: a state of {n_state} does not divide into {n_head} heads")
        if d.n_audio_state != d.n_text_state:
            raise CheckpointError(
                f"{self.source}: encoder state {d.n_audio_state} and decoder state {d.n_text_state} differ"
            )
        self._check_vocabulary()
        if d.n_mels not in (80, 128):
            raise CheckpointError(f"{self.source}: {d.n_mels} mel filters, but Whisper has 80 or 128")

        expected = weight_shapes(d, tied=LM_HEAD not in self.weights)
        for problem, names in (
            ("lacks", expected.keys() - self.weights.keys()),
            ("has unknown", self.weights.keys() - expected.keys()),
        ):
            if names:
                raise CheckpointError(
                    f"{self.source} {problem} {len(names)} weight(s), {min(names)} the first: not a Whisper model"
                )
        for name, shape in expected.items():
            weight = self.stored[name]
            if weight.shape != shape:
                raise CheckpointError(
                    f"{self.source}: {name} has shape {weight.shape}, but the model's sizes require {shape}"
                )
            if not weight.is_float:
                raise CheckpointError(
                    f"{self.source}: {name} is stored as {weight.dtype}; only floating-point weights can be read"
                )
        if not self.alignment_heads:
            object.__setattr__(self, "alignment_heads", upper_half_heads(d.n_text_layer, d.n_text_head))
        for layer, head in self.alignment_heads:
            if not (0 <= layer < d.n_text_layer and 0 <= head < d.n_text_head):
                raise CheckpointError(f"{self.source}: alignment head {head} of layer {layer} does not exist")

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """The weights as they are stored, without reading them."""
        return Weights.of(self.weights).stored

    def _check_vocabulary(self) -> None:
        """Warn or raise CheckpointError if tokens were added to Whisper's vocabulary.

        OpenAI Whisper takes the number of languages from the vocabulary's size. There are 100 at
        most, so added tokens leave the special tokens of models with 100 languages in their places.
        """
        n, (_, n_vocab_99, n_vocab_100) = self.dims.n_vocab, N_VOCABS
        # large-v3 and models derived from it have 128 mel filters and 100 languages.
        original = n_vocab_99 if self.dims.n_mels == 80 else n_vocab_100
        if n > original == n_vocab_100:
            warnings.warn(
                f"{self.source}: {n} tokens, some added to Whisper's {original}; as in OpenAI Whisper, those count as "
                "timestamps after 30 s",
                CheckpointWarning,
                stacklevel=4,
            )
        elif n > original:
            raise CheckpointError(
                f"{self.source}: {n} tokens, some added to Whisper's {original}; OpenAI Whisper would treat it as a "
                f"model of {n - n_vocab_99 + 99} languages with large-v3's special tokens, and the added tokens as "
                f"timestamps; remove them in transformers, model.resize_token_embeddings({original}), "
                "and save the model"
            )
        elif n not in N_VOCABS:
            raise CheckpointError(f"{self.source}: {n} tokens, but Whisper's vocabularies have {N_VOCABS}")
