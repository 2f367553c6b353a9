"""The one form every file format is read into."""

from dataclasses import dataclass

import numpy as np

from maxwhisper.checkpoint.alignment_heads import Heads, all_of_upper_half
from maxwhisper.checkpoint.dimensions import LM_HEAD, ModelDimensions, weight_shapes
from maxwhisper.errors import CheckpointError

N_VOCABS = (51864, 51865, 51866)  # English only; 99 languages; 100 languages (large-v3)

# What reading malformed or hostile bytes may raise; readers turn it into a CheckpointError that names the file.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Checkpoint:
    """A model as stored: its sizes, and its weights under OpenAI's names, in the precision of the file.

    Weights are float16, float32 or float64 arrays; bfloat16 is widened to float32, which loses nothing. Alignment heads are those of the
    upper half of the layers, where nobody says better.

    Raises CheckpointError where the sizes are no Whisper's, a weight is missing, left over, or of another shape, or a head is not there.
    """

    dims: ModelDimensions
    weights: dict[str, np.ndarray]
    source: str
    alignment_heads: Heads = ()

    def __post_init__(self) -> None:
        d = self.dims
        for name, value in vars(d).items():
            if not isinstance(value, int) or value <= 0:
                raise CheckpointError(f"{self.source}: {name} is {value!r}, not a positive whole number")
        for n_state, n_head in ((d.n_audio_state, d.n_audio_head), (d.n_text_state, d.n_text_head)):
            if n_state % n_head or n_state % 2:
                raise CheckpointError(f"{self.source}: a state of {n_state} does not divide into {n_head} heads")
        if d.n_audio_state != d.n_text_state:
            raise CheckpointError(
                f"{self.source}: encoder state {d.n_audio_state} and decoder state {d.n_text_state} differ"
            )
        self._refuse_added_tokens()
        if d.n_vocab not in N_VOCABS:
            raise CheckpointError(f"{self.source}: {d.n_vocab} tokens, but Whisper's vocabularies have {N_VOCABS}")
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
            if self.weights[name].shape != shape:
                found = self.weights[name].shape
                raise CheckpointError(f"{self.source}: {name} has shape {found}, but the model's sizes ask for {shape}")
            if self.weights[name].dtype.kind != "f":
                raise CheckpointError(
                    f"{self.source}: {name} is stored as {self.weights[name].dtype}; only floating-point weights can be read"
                )
        if not self.alignment_heads:
            object.__setattr__(self, "alignment_heads", all_of_upper_half(d.n_text_layer, d.n_text_head))
        for layer, head in self.alignment_heads:
            if not (0 <= layer < d.n_text_layer and 0 <= head < d.n_text_head):
                raise CheckpointError(f"{self.source}: alignment head {head} of layer {layer} is not there")

    def _refuse_added_tokens(self) -> None:
        n, (_, one_less, most) = self.dims.n_vocab, N_VOCABS
        before = one_less if self.dims.n_mels == 80 else most  # large-v3 and its kin have 128 mels, and a language more
        if n > before:
            raise CheckpointError(
                f"{self.source}: {n} tokens, some added to Whisper's {before}; OpenAI Whisper would take it for a model of "
                f"{n - one_less + 99} languages with large-v3's special tokens, and added ones for timestamps; cut them off in "
                f"transformers, model.resize_token_embeddings({before}), and save the model"
            )


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 given as uint16 to float32: the same sign, exponent and leading bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
