"""A Whisper model ready to run: the front door, with the names that OpenAI Whisper's model has."""

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
from maxwhisper.engine.quantization import as_stored
from maxwhisper.engine.runtime import Runtime
from maxwhisper.errors import OptionError
from maxwhisper.tokenizer import Tokenizer
from maxwhisper.transcript import Transcript
from maxwhisper.transcription.sequential import transcribe


class Whisper:
    """A model: `runtime` holds its compiled graphs and weights on one device.

    checkpoint: the weights; device: as in `load_model`; capture: names of activations that graphs return as well
    (`maxwhisper.engine.graphs`), to be found in `activations` after the call that computed them; compute_type: as in
    `load_model`; backend: as in `Runtime`.

    Raises OptionError for a compute type that is none, or a device that is not there, WhisperError where MAX can't compile the graphs, or
    can't run, as in a process that was forked from one where it does. So does whatever computes, in such a process.
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
        self.alignment_heads = checkpoint.alignment_heads  # layer and head of those that words are timed by
        self.runtime = Runtime(checkpoint, device, capture, compute_type, backend)
        self._reload: Callable[[], Checkpoint] | None = None  # where the checkpoint may be had again

    @classmethod
    def load(cls, reload: Callable[[], Checkpoint], device: object, compute_type: str) -> "Whisper":
        """A model that can be moved to other devices, for `reload` gives its checkpoint whenever it is asked."""
        model = cls(reload(), device, compute_type=compute_type)
        model._reload = reload
        return model

    def to(self, device: object) -> "Whisper":
        """The same model on another device, its graphs compiled for that; as `torch.nn.Module.to`, this object itself.

        Raises OptionError where there is no such device, or the model was not made by `load_model`.
        """
        return self._moved(find_device(device), self.compute_type)

    def _moved(self, device: Device, compute_type: str) -> "Whisper":
        """This object, on that device and computing in that; as it was where that can't be had."""
        if (device, compute_type) != (self.device, self.compute_type):
            if self._reload is None:
                raise OptionError("this model was made of a checkpoint that is gone; make another one for the device")
            self.runtime = Runtime(self._reload(), device, compute_type=compute_type)
        return self

    def set_alignment_heads(self, dump: bytes) -> None:
        """The heads that words are timed by, as OpenAI publishes them: a bool for each of all layers, by gzip and base85."""
        n_head = self.dims.n_text_head
        self.alignment_heads = tuple(
            divmod(i, n_head) for i, is_one in enumerate(gzip.decompress(base64.b85decode(dump))) if is_one
        )

    @property
    def device(self) -> Device:
        """Where it runs, as MAX names it."""
        return self.runtime.device

    @property
    def device_name(self) -> str:
        """Where it runs: "cpu" or "gpu"."""
        return "cpu" if self.device.is_host else "gpu"

    @property
    def compute_type(self) -> str:
        """What it computes in, as `load_model` takes it."""
        return self.runtime.compute_type

    @property
    def dtypes(self) -> DTypes:
        """What its graphs hold weights in, and what they compute in."""
        return self.runtime.dtypes

    @property
    def activations(self) -> dict[str, Buffer]:
        """What was captured by the last calls of each graph, by name."""
        return self.runtime.activations

    @property
    def weights(self) -> Mapping[str, np.ndarray | Buffer]:
        """The weights as they are held, each in its own dtype, int8 ones with their scales."""
        return self.runtime.weights

    @property
    def is_multilingual(self) -> bool:
        return self.dims.is_multilingual

    @property
    def num_languages(self) -> int:
        return self.dims.num_languages

    @property
    def decodes_in_graph(self) -> bool:
        """Whether decoders have `greedy`: where no activations are captured."""
        return any(map(self.runtime.has_graph, ("greedy", "step")))

    @property
    def searches_in_graph(self) -> bool:
        """Whether decoders have `likeliest`: on the CPU, where no activations are captured."""
        return self.runtime.has_graph("beams")

    def log_mel_spectrogram(self, audio: Audio, padding: int = 0) -> np.ndarray:
        """What this model hears, float32 [n_mels, n_frames]: `maxwhisper.log_mel_spectrogram`, on a GPU where the model is on one."""
        padded = reflected(audio, padding)
        return scaled(
            self._log_mel_bands(padded)
            if self.runtime.has_graph("log_mel")
            else log_mel_bands(padded, self.dims.n_mels)
        )

    def _log_mel_bands(self, padded: np.ndarray) -> np.ndarray:
        """On the device, some frames at a time, so that a long recording's fit there."""
        n_frames = (len(padded) - N_FFT) // HOP_LENGTH
        hops = np.zeros((n_frames + N_AHEAD, HOP_LENGTH), np.float32)
        some = padded[: hops.size]
        hops.flat[: len(some)] = some
        starts = range(0, n_frames, _FRAMES_AT_ONCE)
        bands = [
            self.runtime.run("log_mel", self.runtime.to_device(hops[start : start + _FRAMES_AT_ONCE + N_AHEAD]))[0]
            for start in starts
        ]
        return np.concatenate([some.to(CPU()).to_numpy() for some in bands], axis=1)

    def embed_audio(self, mel: np.ndarray) -> AudioFeatures:
        """Encode log-mel windows, float32 [n_audio, n_mels, 3000] or [n_mels, 3000].

        Raises OptionError where the shape is another.
        """
        window = (self.dims.n_mels, 2 * self.dims.n_audio_ctx)
        if mel.shape[-2:] != window or mel.ndim not in (2, 3):
            raise OptionError(f"a log-mel window has shape {mel.shape}, but this model takes {window}; use pad_or_trim")
        batch = np.ascontiguousarray(mel.reshape(-1, *window), np.float32)
        (features,) = self.runtime.run("encoder", self.runtime.to_device(batch))
        return AudioFeatures(features, self.runtime.run("cross_kv", features))

    def features(self, array: np.ndarray) -> AudioFeatures:
        """What `embed_audio` returned, of its numbers, float32 [n_audio, n_audio_ctx, n_audio_state].

        Raises OptionError where the shape is another.
        """
        if array.shape[1:] != (self.dims.n_audio_ctx, self.dims.n_audio_state):
            raise OptionError(
                f"audio features have shape {array.shape}, not [n, {self.dims.n_audio_ctx}, {self.dims.n_audio_state}]"
            )
        held = as_stored({"features": array}, {"features": self.dtypes.activations})["features"]
        on_device = (held if isinstance(held, Buffer) else Buffer.from_numpy(held)).to(self.device)
        return AudioFeatures(on_device, self.runtime.run("cross_kv", on_device))

    def logits(self, tokens: np.ndarray, audio_features: AudioFeatures | np.ndarray) -> np.ndarray:
        """What may follow each token, float32 [n_audio, n, n_vocab]. tokens int [n_audio, n], from the first on.

        Raises OptionError where they don't fit the features, or the model's context.
        """
        audio = audio_features if isinstance(audio_features, AudioFeatures) else self.features(audio_features)
        if len(tokens) != audio.n_audio:
            raise OptionError(f"{len(tokens)} sequences of tokens, but features of {audio.n_audio} windows")
        return self.decoder(audio).logits(np.asarray(tokens)[:, None])[:, 0]

    def decoder(self, audio: AudioFeatures, n_group: int = 1) -> Decoder:
        """A decoder with an empty cache, for `n_group` sequences per window."""
        return Decoder(self.runtime, audio, n_group)

    # What programs for OpenAI Whisper call on the model.

    def __call__(self, mel: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """`logits` of log-mel windows, float32 [n_audio, n_mels, 3000]."""
        return self.logits(tokens, self.embed_audio(mel))

    def encoder(self, mel: np.ndarray) -> AudioFeatures:
        """`embed_audio`."""
        return self.embed_audio(mel)

    def transcribe(self, audio: Audio, **options: Any) -> Transcript:
        """`maxwhisper.transcribe`."""
        return transcribe(self, audio, **options)

    def decode(
        self, mel: np.ndarray | AudioFeatures, options: DecodingOptions | None = None, **kwargs: Any
    ) -> DecodingResult | list[DecodingResult]:
        """`maxwhisper.decode`."""
        return decode(self, mel, options, **kwargs)

    def detect_language(self, mel: np.ndarray | AudioFeatures, tokenizer: Tokenizer | None = None) -> tuple[Any, Any]:
        """`maxwhisper.detect_language`."""
        return detect_language(self, mel, tokenizer)

    # What is left of `torch.nn.Module`. A model is always as `eval` and `requires_grad_(False)` make one.

    def cpu(self) -> "Whisper":
        """`to` the CPU."""
        return self.to("cpu")

    def cuda(self, device: object = "cuda") -> "Whisper":
        """`to` a GPU."""
        return self.to("cuda" if device is None else device)

    def float(self) -> "Whisper":
        """This object, computing in "float32"; raises as `to`."""
        return self._moved(self.device, "float32")

    def half(self) -> "Whisper":
        """This object, computing in "float16", which only a GPU does; raises OptionError elsewhere, and as `to`."""
        return self._moved(self.device, "float16")

    def eval(self) -> "Whisper":
        return self

    def train(self, mode: bool = True) -> "Whisper":
        """Raises OptionError unless `mode` is False: graphs can't be trained."""
        if mode:
            raise OptionError(
                "a model whose graphs are compiled can't be trained; train OpenAI's, and load its checkpoint"
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Whisper":
        """Raises OptionError unless `requires_grad` is False: graphs have no gradients."""
        return self.train(requires_grad)

    def parameters(self) -> Iterator[np.ndarray | Buffer]:
        """The weights as they are held, each in its own dtype, int8 ones with their scales."""
        return (
            weight for name, weight in self.weights.items() if name != "encoder.positional_embedding"
        )  # which is computed


_FRAMES_AT_ONCE = 30_000  # five minutes; a GPU needs 400 MB for them


def load_model(
    name: str | os.PathLike[str] = "tiny.en",
    device: object = None,
    download_root: str | os.PathLike[str] | None = None,
    in_memory: bool = False,
    *,
    compute_type: str = "float32",
) -> Whisper:
    """Load a model by its official name, or from a file or folder, and compile it for a device: "cpu", the default, "gpu" or "cuda", or
    what else names one (`maxwhisper.engine.devices.find_device`).

    `tiny.en` comes with this package, `base` with its extra `base`; others are looked for in the local caches of OpenAI Whisper and
    Hugging Face, and downloaded where the network allows. compute_type: "float32" computes what OpenAI Whisper does; on the CPU "int8"
    rounds the weights of linear layers to 8 bits, and in the encoder what they are multiplied with, too; on a GPU "float16" and "bfloat16"
    hold and compute all in that. Those are faster, and now and then give another word. in_memory: taken for compatibility; weights always
    are.

    Raises CheckpointError where the model can't be found or read, OptionError for a device that is not there, or another compute type.
    """
    return Whisper.load(
        partial(load_checkpoint, name, download_root), "cpu" if device is None else device, compute_type
    )
