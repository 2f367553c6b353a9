"""A Whisper model compiled and ready to run: audio in, features and logits out."""

import base64
import gzip
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from max.driver import CPU, Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession

from maxwhisper.audio import HOP_LENGTH, N_FFT, Audio, log_mel_bands, reflected, scaled
from maxwhisper.checkpoint import Checkpoint, ModelDimensions, load_checkpoint
from maxwhisper.compiled import Target, compile_graphs, cpu_level, graphs_for
from maxwhisper.console import say
from maxwhisper.devices import find_device, require_same_process
from maxwhisper.dtypes import widened
from maxwhisper.errors import OptionError
from maxwhisper.idle import late_timers
from maxwhisper.log_mel import N_AHEAD
from maxwhisper.quantized import as_stored


@dataclass(frozen=True)
class AudioFeatures:
    """What the encoder made of a batch of windows, on the model's device, with what each decoder layer attends to."""

    features: Buffer  # [n_audio, n_audio_ctx, n_audio_state]
    cross_kv: Sequence[Buffer]  # a key and a value for each layer, [n_audio, n_text_head, n_audio_ctx, head_dim] each

    @property
    def n_audio(self) -> int:
        return self.features.shape[0]

    def to_numpy(self) -> np.ndarray:
        """The encoder's output, float32 [n_audio, n_audio_ctx, n_audio_state]."""
        return widened(self.features.to(CPU()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.to_numpy().astype(dtype or np.float32, copy=bool(copy))


@dataclass(frozen=True)
class TokenRules:
    """Which tokens may follow which, as `maxwhisper.ops.next_token` and `likeliest_tokens` take it."""

    mask: np.ndarray  # float32 [n_vocab], -inf for tokens that are never allowed
    sample_begin: int  # how many tokens were not sampled
    eot: int
    timestamp_begin: int  # n_vocab where there are no timestamps

    @property
    def numbers(self) -> np.ndarray:
        """All but the mask, int64 [3]."""
        return np.array([self.sample_begin, self.eot, self.timestamp_begin])


class Whisper:
    """A model's graphs, compiled for one device.

    checkpoint: the weights; device: as in `load_model`; capture: names of activations that graphs return as well (`maxwhisper.graphs`), to
    be found in `activations` after the call that computed it; compute_type: "float32", on the CPU "int8", to round weights to 8 bits, or
    on a GPU "float16" or "bfloat16", to hold and compute everything in that.

    Raises OptionError for a compute type that is none, or a device that is not there, WhisperError where MAX can't compile the graphs, or
    can't run, as in a process that was forked from one where it does. So does whatever computes, in such a process.
    """

    def __init__(self, checkpoint: Checkpoint, device: object = "cpu", capture: Sequence[str] = (), compute_type: str = "float32") -> None:
        self.dims: ModelDimensions = checkpoint.dims
        self.compute_type = compute_type
        self._reload: Callable[[], Checkpoint] | None = None  # where the checkpoint may be had again
        self.alignment_heads = checkpoint.alignment_heads  # layer and head of those that words are timed by
        self.device = find_device(device)
        target, session = Target.of(checkpoint, self.device, cpu_level(), compute_type), InferenceSession(devices=[self.device])
        self.dtypes = target.dtypes
        self.activations: dict[str, Buffer] = {}
        # Held here for as long as the graphs that may read them in place; copies, so that the file's bytes can go.
        self._weights = as_stored(checkpoint.weights, self.dtypes.weights)
        with _notice(f"compiling Whisper's graphs for the {self.device_name}, which takes minutes, but only once…"):
            compiled, self._captured = compile_graphs(target, session, capture) if capture else (graphs_for(target, session), {})
        self._graphs = session.init_all(compiled, weights_registry=self._weights)

    def to(self, device: object) -> "Whisper":
        """The same model on another device, its graphs compiled for that; as `torch.nn.Module.to`, this object itself.

        Raises OptionError where there is no such device, or the model was not made by `load_model`.
        """
        return self._remade(find_device(device), self.compute_type)

    def _remade(self, device: Device, compute_type: str) -> "Whisper":
        """This object, on that device and computing in that; as it was where that can't be had."""
        if (device, compute_type) == (self.device, self.compute_type):
            return self
        if self._reload is None:
            raise OptionError("this model was made of a checkpoint that is gone; make another one for the device")
        made = Whisper(self._reload(), device, compute_type=compute_type)
        made._reload = self._reload
        self.__dict__ = made.__dict__  # in place, as programs don't look at what is returned
        return self

    def set_alignment_heads(self, dump: bytes) -> None:
        """The heads that words are timed by, as OpenAI publishes them: a bool for each of all layers, by gzip and base85."""
        n_head = self.dims.n_text_head
        self.alignment_heads = tuple(divmod(i, n_head) for i, is_one in enumerate(gzip.decompress(base64.b85decode(dump))) if is_one)

    @property
    def device_name(self) -> str:
        """Where it runs: "cpu" or "gpu"."""
        return "cpu" if self.device.is_host else "gpu"

    @property
    def is_multilingual(self) -> bool:
        return self.dims.n_vocab >= 51865

    @property
    def num_languages(self) -> int:
        return self.dims.n_vocab - 51765 - int(self.is_multilingual)

    @property
    def decodes_in_graph(self) -> bool:
        """Whether decoders have `greedy`: where no activations are captured."""
        return not self._graphs.keys().isdisjoint(("greedy", "step"))

    @property
    def searches_in_graph(self) -> bool:
        """Whether decoders have `likeliest`: on the CPU, where no activations are captured."""
        return "beams" in self._graphs

    def log_mel_spectrogram(self, audio: Audio, padding: int = 0) -> np.ndarray:
        """What this model hears, float32 [n_mels, n_frames]: `maxwhisper.log_mel_spectrogram`, on a GPU where the model is on one."""
        padded = reflected(audio, padding)
        return scaled(self._log_mel_bands(padded) if "log_mel" in self._graphs else log_mel_bands(padded, self.dims.n_mels))

    def _log_mel_bands(self, padded: np.ndarray) -> np.ndarray:
        """On the device, some frames at a time, so that a long recording's fit there."""
        n_frames = (len(padded) - N_FFT) // HOP_LENGTH
        hops = np.zeros((n_frames + N_AHEAD, HOP_LENGTH), np.float32)
        some = padded[: hops.size]
        hops.flat[: len(some)] = some
        starts = range(0, n_frames, _FRAMES_AT_ONCE)
        bands = [self._run("log_mel", self._to_device(hops[start : start + _FRAMES_AT_ONCE + N_AHEAD]))[0] for start in starts]
        return np.concatenate([some.to(CPU()).to_numpy() for some in bands], axis=1)

    def embed_audio(self, mel: np.ndarray) -> AudioFeatures:
        """Encode log-mel windows, float32 [n_audio, n_mels, 3000] or [n_mels, 3000].

        Raises OptionError where the shape is another.
        """
        window = (self.dims.n_mels, 2 * self.dims.n_audio_ctx)
        if mel.shape[-2:] != window or mel.ndim not in (2, 3):
            raise OptionError(f"a log-mel window has shape {mel.shape}, but this model takes {window}; use pad_or_trim")
        batch = np.ascontiguousarray(mel.reshape(-1, *window), np.float32)
        (features,) = self._run("encoder", self._to_device(batch))
        return AudioFeatures(features, self._run("cross_kv", features))

    def features(self, array: np.ndarray) -> AudioFeatures:
        """What `embed_audio` returned, of its numbers, float32 [n_audio, n_audio_ctx, n_audio_state].

        Raises OptionError where the shape is another.
        """
        if array.shape[1:] != (self.dims.n_audio_ctx, self.dims.n_audio_state):
            raise OptionError(f"audio features have shape {array.shape}, not [n, {self.dims.n_audio_ctx}, {self.dims.n_audio_state}]")
        held = as_stored({"features": array}, {"features": self.dtypes.activations})["features"]
        on_device = (held if isinstance(held, Buffer) else Buffer.from_numpy(held)).to(self.device)
        return AudioFeatures(on_device, self._run("cross_kv", on_device))

    def logits(self, tokens: np.ndarray, audio_features: AudioFeatures | np.ndarray) -> np.ndarray:
        """What may follow each token, float32 [n_audio, n, n_vocab]. tokens int [n_audio, n], from the first on.

        Raises OptionError where they don't fit the features, or the model's context.
        """
        audio = audio_features if isinstance(audio_features, AudioFeatures) else self.features(audio_features)
        if len(tokens) != audio.n_audio:
            raise OptionError(f"{len(tokens)} sequences of tokens, but features of {audio.n_audio} windows")
        return self.decoder(audio).logits(np.asarray(tokens)[:, None])[:, 0]

    def decoder(self, audio: AudioFeatures, n_group: int = 1) -> "Decoder":
        """A decoder with an empty cache, for `n_group` sequences per window."""
        return Decoder(self, audio, n_group)

    # What programs for OpenAI Whisper call on the model. These modules need this one, so they are imported late.

    def __call__(self, mel: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """`logits` of log-mel windows, float32 [n_audio, n_mels, 3000]."""
        return self.logits(tokens, self.embed_audio(mel))

    def encoder(self, mel: np.ndarray) -> AudioFeatures:
        """`embed_audio`."""
        return self.embed_audio(mel)

    def transcribe(self, audio: Audio, **options: Any) -> dict[str, Any]:
        """`maxwhisper.transcribe`."""
        from maxwhisper.transcribe import transcribe

        return transcribe(self, audio, **options)

    def decode(self, mel: np.ndarray | AudioFeatures, options: Any = None, **kwargs: Any) -> Any:
        """`maxwhisper.decode`."""
        from maxwhisper.decoding import decode

        return decode(self, mel, options, **kwargs)

    def detect_language(self, mel: np.ndarray | AudioFeatures, tokenizer: Any = None) -> Any:
        """`maxwhisper.detect_language`."""
        from maxwhisper.decoding import detect_language

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
        return self._remade(self.device, "float32")

    def half(self) -> "Whisper":
        """This object, computing in "float16", which only a GPU does; raises OptionError elsewhere, and as `to`."""
        return self._remade(self.device, "float16")

    def eval(self) -> "Whisper":
        return self

    def train(self, mode: bool = True) -> "Whisper":
        """Raises OptionError unless `mode` is False: graphs can't be trained."""
        if mode:
            raise OptionError("a model whose graphs are compiled can't be trained; train OpenAI's, and load its checkpoint")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Whisper":
        """Raises OptionError unless `requires_grad` is False: graphs have no gradients."""
        return self.train(requires_grad)

    def parameters(self) -> Iterator[np.ndarray | Buffer]:
        """The weights as they are held, each in its own dtype, int8 ones with their scales."""
        return (weight for name, weight in self._weights.items() if name != "encoder.positional_embedding")  # which is computed

    def _run(self, graph: str, *inputs: Buffer) -> list[Buffer]:
        require_same_process()
        with late_timers():
            outputs = self._graphs[graph].execute(*inputs)
        names = self._captured.get(graph, [])
        n_own = len(outputs) - len(names)
        self.activations.update(zip(names, outputs[n_own:]))
        return outputs[:n_own]

    def _to_device(self, array: np.ndarray) -> Buffer:
        require_same_process()
        return Buffer.from_numpy(array).to(self.device)


class Decoder:
    """Decodes token after token, remembering keys and values of those it has seen.

    What sequences have in common is held once: a table says in which slot of the cache each position of a sequence lies.
    """

    def __init__(self, model: Whisper, audio: AudioFeatures, n_group: int) -> None:
        dims = model.dims
        n_slots = audio.n_audio * n_group
        shape = (n_slots, dims.n_text_head, dims.n_text_ctx, dims.n_text_state // dims.n_text_head)
        self._model = model
        self._cross_kv = audio.cross_kv
        # Not of `Buffer.zeros`, which goes on zeroing while a graph writes: `tests/test_max_defects.py`, `zeros_are_zero_at_once`.
        self._self_kv = [self._zeros(shape, model.dtypes.activations) for _ in range(2 * dims.n_text_layer)]
        self._slots = np.tile(np.arange(n_slots).reshape(audio.n_audio, n_group, 1), dims.n_text_ctx)
        self.n_past = 0

    def _zeros(self, shape: Sequence[int], dtype: DType) -> Buffer:
        return Buffer.from_numpy(np.zeros(shape, f"u{dtype.size_in_bytes}")).view(dtype).to(self._model.device)

    def logits(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """Feed the tokens that come next and return what may follow them, float32 [n_audio, n_group, n_rows, n_vocab].

        tokens: int [n_audio, n_group, n], or [n_audio, 1, n] where all of a group's are the same; rows: for which of the n tokens logits
        are wanted, all by default.

        Raises OptionError where the tokens would not fit the model's context.
        """
        (logits,) = self._feed("decoder", tokens, rows)
        return logits

    def alignment(self, tokens: np.ndarray, rows: Sequence[int], heads: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """`logits`, and what these heads of cross-attention make of each token and frame, before softmax: float32
        [n_audio, n_heads, n, n_audio_ctx].

        heads: layer and head; a group must have one sequence.
        """
        numbers = np.array([layer * self._model.dims.n_text_head + head for layer, head in heads])
        logits, scores = self._feed("alignment", tokens, rows, numbers)
        return logits, scores

    def _feed(self, graph: str, tokens: np.ndarray, rows: Sequence[int] | None, *others: np.ndarray) -> list[np.ndarray]:
        n = tokens.shape[-1]
        if not 0 < n <= self._model.dims.n_text_ctx - self.n_past:
            raise OptionError(f"{n} tokens after {self.n_past} do not fit a context of {self._model.dims.n_text_ctx}")
        positions = np.arange(self.n_past, self.n_past + n)
        wanted = positions - self.n_past if rows is None else np.asarray(rows, np.int64)
        n_different = tokens.shape[1]
        inputs = (np.ascontiguousarray(self._slots[:, :n_different]), np.ascontiguousarray(tokens, np.int64), positions, wanted, *others)
        on_device = (self._model._to_device(array) for array in inputs)
        outputs = self._model._run(graph, *on_device, *self._self_kv, *self._cross_kv)
        self._slots[:, n_different:, positions] = self._slots[:, :1, positions]
        self.n_past += n
        return [output.to(CPU()).to_numpy() for output in outputs]

    def rearrange(self, sources: np.ndarray) -> None:
        """Let each sequence go on from what another one of its group has seen. sources: int [n_audio, n_group], places in the group."""
        self._slots[..., : self.n_past] = np.take_along_axis(self._slots, sources[..., None], axis=1)[..., : self.n_past]

    def greedy(self, tokens: np.ndarray, sum_logprobs: np.ndarray, rules: TokenRules, end: int) -> np.ndarray:
        """Append the likeliest tokens until all sequences have ended or are `end` tokens long; returns them all.

        tokens: int [n_audio, n_group, n], of which the last has not been fed yet; sum_logprobs: float64 [n_audio, n_group], added to in
        place.
        """
        n, n_ctx = tokens.shape[-1], self._model.dims.n_text_ctx
        room = np.zeros((*tokens.shape[:2], n_ctx + 1), np.int64)
        room[..., :n] = tokens
        arrays = (self._slots, room, sum_logprobs.copy(), rules.mask, rules.numbers, np.array([n]), np.array([end]))
        slots, written, sums, mask, numbers, n_tokens, limit = map(self._model._to_device, arrays)
        kept = (*self._self_kv, *self._cross_kv)
        if "greedy" in self._model._graphs:
            (n_tokens,) = self._model._run("greedy", slots, written, sums, mask, numbers, n_tokens, limit, *kept)
        else:
            self._take_steps(end - n, slots, written, sums, n_tokens, mask, numbers, *kept)
        n = int(n_tokens.to(CPU()).to_numpy()[0])
        sum_logprobs[:] = sums.to(CPU()).to_numpy()
        self.n_past = n - 1
        return written.to(CPU()).to_numpy()[..., :n]

    def likeliest(self, tokens: np.ndarray, rules: TokenRules) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens that may follow each sequence, int64 [n_seq, n_group + 1], and their log-probabilities, float32.

        tokens: int [n_audio, n_group, n], all so far, of which the last has not been fed yet; only where `searches_in_graph`.
        """
        inputs = map(self._model._to_device, (self._slots, np.ascontiguousarray(tokens, np.int64), rules.mask, rules.numbers))
        found, logprobs = self._model._run("beams", *inputs, *self._self_kv, *self._cross_kv)
        self.n_past = tokens.shape[-1]
        return found.to_numpy(), logprobs.to_numpy()

    def _take_steps(self, n_most: int, *inputs: Buffer) -> None:
        """Steps of which none waits for the one before: the device has all that they need, and is asked now and then if all has ended."""
        for i in range(n_most):
            (n_unfinished,) = self._model._run("step", *inputs)
            if i % _STEPS_UNASKED == _STEPS_UNASKED - 1 and not n_unfinished.to(CPU()).to_numpy()[0]:
                break


_FRAMES_AT_ONCE = 30_000  # five minutes; a GPU needs 400 MB for them
_STEPS_UNASKED = 8  # some are in vain where a text ends, which costs less than to wait for each


def load_model(
    name: str | os.PathLike[str] = "tiny.en",
    device: object = None,
    download_root: str | os.PathLike[str] | None = None,
    in_memory: bool = False,
    *,
    compute_type: str = "float32",
) -> Whisper:
    """Load a model by its official name, or from a file or folder, and compile it for a device: "cpu", the default, "gpu" or "cuda", or
    what else names one (`maxwhisper.devices.find_device`).

    `tiny.en` comes with this package, `base` with its extra `base`; others are looked for in the local caches of OpenAI Whisper and
    Hugging Face, and downloaded where the network allows. compute_type: "float32" computes what OpenAI Whisper does; on the CPU "int8"
    rounds the weights of linear layers to 8 bits, and in the encoder what they are multiplied with, too; on a GPU "float16" and "bfloat16"
    hold and compute all in that. Those are faster, and now and then give another word. in_memory: taken for compatibility; weights always
    are.

    Raises CheckpointError where the model can't be found or read, OptionError for a device that is not there, or another compute type.
    """
    reload = partial(load_checkpoint, name, download_root)
    model = Whisper(reload(), "cpu" if device is None else device, compute_type=compute_type)
    model._reload = reload
    return model


@contextmanager
def _notice(message: str, after: float = 3.0) -> Iterator[None]:
    """Print a message if what is done takes long: compiled graphs come from MAX's cache in no time, or are compiled in minutes."""
    timer = threading.Timer(after, say, (message, "stderr"))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
