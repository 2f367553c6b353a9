"""The public model class, with the interface of OpenAI Whisper's model."""

import base64
import gzip
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from max.driver import CPU, Buffer, Device

from maxwhisper.audio import HOP_LENGTH, N_FFT, Audio, log_mel_bands, reflected, scaled
from maxwhisper.checkpoint import Checkpoint, ModelDimensions, load_checkpoint
from maxwhisper.decoding import DecodingOptions, DecodingResult, decode, detect_language
from maxwhisper.engine.decoder import AudioFeatures, Decoder
from maxwhisper.engine.devices import find_device
from maxwhisper.engine.dtypes import DTypes
from maxwhisper.engine.log_mel import N_AHEAD
from maxwhisper.engine.ops import Backend
from maxwhisper.engine.quantization import convert
from maxwhisper.engine.runtime import Runtime
from maxwhisper.errors import OptionError
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcript import Transcript
from maxwhisper.transcription.sequential import transcribe


class Whisper:
    """A model whose compiled graphs and weights are on one device.

    Args:
        checkpoint: supplies the weights.
        device: as in `load_model`.
        capture: names of activations (`maxwhisper.engine.graphs`) that the graphs also return. Each
            is in `activations` after the call that computed it.
        compute_type: as in `load_model`.
        backend: as in `Runtime`.

    Raises:
        OptionError: if the compute type is unknown or the device does not exist.
        WhisperError: if MAX can't compile the graphs, or can't run because it was started before
            this process was forked. All methods that compute raise it in such a process, too.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: object = "cpu",
        capture: Sequence[str] = (),
        compute_type: str = "float32",
        backend: Backend | None = None,
    ) -> None:
        self.dims: ModelDimensions = checkpoint.dims
        self.alignment_heads = checkpoint.alignment_heads  # (layer, head) pairs for word timestamps
        self.runtime = Runtime(checkpoint, device, capture, compute_type, backend)
        self._reload: Callable[[], Checkpoint] | None = None  # returns the checkpoint again

    @classmethod
    def load(cls, reload: Callable[[], Checkpoint], device: object, compute_type: str) -> "Whisper":
        """Load a model that `to` can move, because `reload` returns its checkpoint at any time."""
        model = cls(reload(), device, compute_type=compute_type)
        model._reload = reload
        return model

    def to(self, device: object) -> "Whisper":
        """Move this model to a device, and compile its graphs for it.

        Returns:
            This object, as `torch.nn.Module.to` does.

        Raises:
            OptionError: if there is no such device, or the model was not made by `load_model`.
        """
        return self._move(find_device(device), self.compute_type)

    def _move(self, device: Device, compute_type: str) -> "Whisper":
        """Change the device and the compute type; leave this object unchanged if that fails."""
        if (device, compute_type) != (self.device, self.compute_type):
            if self._reload is None:
                raise OptionError("this model was made from a checkpoint that is gone; make a new one for the device")
            self.runtime = Runtime(self._reload(), device, compute_type=compute_type)
        return self

    def set_alignment_heads(self, dump: bytes) -> None:
        """Set the heads for word timestamps, as `whisper.model.Whisper.set_alignment_heads`.

        Args:
            dump: a bool for each head of all layers, compressed by gzip and encoded in base85.
        """
        n_head = self.dims.n_text_head
        self.alignment_heads = tuple(
            divmod(i, n_head) for i, selected in enumerate(gzip.decompress(base64.b85decode(dump))) if selected
        )

    @property
    def device(self) -> Device:
        """The device that the model runs on."""
        return self.runtime.device

    @property
    def device_name(self) -> str:
        """The name of the device, "cpu" or "gpu"."""
        return "cpu" if self.device.is_host else "gpu"

    @property
    def compute_type(self) -> str:
        """The compute type, as in `load_model`."""
        return self.runtime.compute_type

    @property
    def dtypes(self) -> DTypes:
        """The dtypes of the weights and of the activations."""
        return self.runtime.dtypes

    @property
    def activations(self) -> dict[str, Buffer]:
        """The activations that the last call of each graph captured, by name."""
        return self.runtime.activations

    @property
    def weights(self) -> Mapping[str, np.ndarray | Buffer]:
        """The weights by name, each in its own dtype, and the scales of int8 weights."""
        return self.runtime.weights

    @property
    def is_multilingual(self) -> bool:
        return self.dims.is_multilingual

    @property
    def num_languages(self) -> int:
        return self.dims.num_languages

    @property
    def decodes_in_graph(self) -> bool:
        """Whether decoders have `greedy`, which they do unless activations are captured."""
        return any(map(self.runtime.has_graph, ("greedy", "step")))

    @property
    def searches_in_graph(self) -> bool:
        """Whether decoders have `top_k_tokens`: on the CPU unless activations are captured."""
        return self.runtime.has_graph("beams")

    def log_mel_spectrogram(self, audio: Audio, padding: int = 0) -> np.ndarray:
        """Compute `maxwhisper.log_mel_spectrogram` with this model's mel filters, on its device.

        Args:
            audio: as in `maxwhisper.log_mel_spectrogram`.
            padding: number of zeros to append, in samples.

        Returns:
            float32 [n_mels, n_frames].
        """
        padded = reflected(audio, padding)
        return scaled(
            self._log_mel_bands(padded)
            if self.runtime.has_graph("log_mel")
            else log_mel_bands(padded, self.dims.n_mels)
        )

    def _log_mel_bands(self, padded: np.ndarray) -> np.ndarray:
        """Compute the bands on the device, in pieces, so that a long recording fits in memory."""
        n_frames = (len(padded) - N_FFT) // HOP_LENGTH
        hops = np.zeros((n_frames + N_AHEAD, HOP_LENGTH), np.float32)
        samples = padded[: hops.size]
        hops.reshape(-1)[: len(samples)] = samples  # a view; `hops.flat` would take 12 ms for 160 s
        starts = range(0, n_frames, _FRAMES_AT_ONCE)
        bands = [
            self.runtime.run("log_mel", self.runtime.to_device(hops[start : start + _FRAMES_AT_ONCE + N_AHEAD]))[0]
            for start in starts
        ]
        return np.concatenate([piece.to(CPU()).to_numpy() for piece in bands], axis=1)

    def embed_audio(self, mel: np.ndarray) -> AudioFeatures:
        """Encode log-mel windows.

        Args:
            mel: float32 [n_audio, n_mels, 3000] or [n_mels, 3000].

        Raises:
            OptionError: if the shape differs.
        """
        window = (self.dims.n_mels, 2 * self.dims.n_audio_ctx)
        if mel.shape[-2:] != window or mel.ndim not in (2, 3):
            raise OptionError(f"a log-mel window has shape {mel.shape}, but this model takes {window}; use pad_or_trim")
        batch = np.ascontiguousarray(mel.reshape(-1, *window), np.float32)
        # For one window, launching kernels takes a GPU's host longer than they run, so they are
        # captured. For many it doesn't, and a captured graph would keep their working memory.
        run = self.runtime.run_again if len(batch) == 1 else self.runtime.run
        (features,) = run("encoder", self.runtime.to_device(batch))
        return AudioFeatures(features, run("cross_kv", features))

    def features(self, array: np.ndarray) -> AudioFeatures:
        """Make the result of `embed_audio` from an array of the encoder's output.

        Args:
            array: float32 [n_audio, n_audio_ctx, n_audio_state].

        Raises:
            OptionError: if the shape differs.
        """
        if array.shape[1:] != (self.dims.n_audio_ctx, self.dims.n_audio_state):
            raise OptionError(
                f"audio features have shape {array.shape}, not [n, {self.dims.n_audio_ctx}, {self.dims.n_audio_state}]"
            )
        converted = convert(array, self.dtypes.activations)
        buffer = converted if isinstance(converted, Buffer) else Buffer.from_numpy(converted)
        on_device = buffer.to(self.device)
        return AudioFeatures(on_device, self.runtime.run("cross_kv", on_device))

    def logits(self, tokens: np.ndarray, audio_features: AudioFeatures | np.ndarray) -> np.ndarray:
        """Compute the logits after each token.

        Args:
            tokens: int [n_audio, n], from the start of the sequence.
            audio_features: of `embed_audio`, or an array as in `features`.

        Returns:
            float32 [n_audio, n, n_vocab].

        Raises:
            OptionError: if the tokens don't fit the features or the model's context.
        """
        audio = audio_features if isinstance(audio_features, AudioFeatures) else self.features(audio_features)
        if len(tokens) != audio.n_audio:
            raise OptionError(f"{len(tokens)} sequences of tokens, but features of {audio.n_audio} windows")
        return self.decoder(audio).logits(np.asarray(tokens)[:, None])[:, 0]

    def decoder(self, audio: AudioFeatures, n_group: int = 1) -> Decoder:
        """Make a decoder with an empty cache, for `n_group` sequences per window."""
        return Decoder(self.runtime, audio, n_group)

    # Further methods of `whisper.model.Whisper`.

    def __call__(self, mel: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Compute `logits` of log-mel windows, float32 [n_audio, n_mels, 3000]."""
        return self.logits(tokens, self.embed_audio(mel))

    def encoder(self, mel: np.ndarray) -> AudioFeatures:
        """Call `embed_audio`."""
        return self.embed_audio(mel)

    def transcribe(self, audio: Audio, **options: Any) -> Transcript:
        """Call `maxwhisper.transcribe`."""
        return transcribe(self, audio, **options)

    def decode(
        self, mel: np.ndarray | AudioFeatures, options: DecodingOptions | None = None, **kwargs: Any
    ) -> DecodingResult | list[DecodingResult]:
        """Call `maxwhisper.decode`."""
        return decode(self, mel, options, **kwargs)

    def detect_language(self, mel: np.ndarray | AudioFeatures, tokenizer: Tokenizer | None = None) -> tuple[Any, Any]:
        """Call `maxwhisper.detect_language`."""
        return detect_language(self, mel, tokenizer)

    # Methods of `torch.nn.Module`. A model is always in the state after `eval()` and
    # `requires_grad_(False)`.

    def cpu(self) -> "Whisper":
        """Move this model to the CPU, as `to`."""
        return self.to("cpu")

    def cuda(self, device: object = "cuda") -> "Whisper":
        """Move this model to a GPU, as `to`."""
        return self.to("cuda" if device is None else device)

    def float(self) -> "Whisper":
        """Change the compute type to "float32", and return this object; raises as `to`."""
        return self._move(self.device, "float32")

    def half(self) -> "Whisper":
        """Change the compute type to "float16", and return this object.

        Raises:
            OptionError: if the model is not on a GPU, and as `to`.
        """
        return self._move(self.device, "float16")

    def eval(self) -> "Whisper":
        return self

    def train(self, mode: bool = True) -> "Whisper":
        """Raise OptionError unless `mode` is False, because graphs can't be trained."""
        if mode:
            raise OptionError(
                "a model whose graphs are compiled can't be trained; train OpenAI's, and load its checkpoint"
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Whisper":
        """Raise OptionError unless `requires_grad` is False, because graphs have no gradients."""
        return self.train(requires_grad)

    def parameters(self) -> Iterator[np.ndarray | Buffer]:
        """Iterate over `weights`, without the encoder's positional embedding, which is computed."""
        return (weight for name, weight in self.weights.items() if name != "encoder.positional_embedding")


_FRAMES_AT_ONCE = 30_000  # five minutes, which take 400 MB on a GPU


def load_model(
    name: str | os.PathLike[str] = "tiny.en",
    device: object = None,
    download_root: str | os.PathLike[str] | None = None,
    in_memory: bool = False,
    *,
    compute_type: str = "auto",
) -> Whisper:
    """Load a model and compile it for a device.

    `tiny.en` comes with this package, and `base` with its extra `base`. Other models are searched
    in the local caches of OpenAI Whisper and Hugging Face, and otherwise downloaded.

    Args:
        name: an official name (`available_models`), or the path of a file or folder.
        device: "cpu" (the default), "gpu" or "cuda", or another name of a device
            (`maxwhisper.engine.devices.find_device`).
        download_root: folder in which OpenAI Whisper has cached its models; `~/.cache/whisper` by
            default.
        in_memory: ignored; it exists for compatibility. Files are mapped into memory.
        compute_type: "float32" computes the same as OpenAI Whisper. "auto" is "int8" on the CPU for
            weights that are stored in 8 bits, and otherwise "float32". On the CPU, "int8" quantizes
            the weights of linear layers to 8 bits, and in the encoder also their inputs. On a GPU,
            "float16" and "bfloat16" are the dtype of weights and activations. These three are
            faster, and occasionally change a word.

    Raises:
        CheckpointError: if the model can't be found or read.
        OptionError: if the device does not exist, or does not support the compute type.
    """
    return Whisper.load(
        partial(load_checkpoint, name, download_root), "cpu" if device is None else device, compute_type
    )
