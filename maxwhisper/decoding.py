"""From logits to tokens, by the rules of OpenAI Whisper's `decoding.py`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from maxwhisper.audio import CHUNK_LENGTH
from maxwhisper.engine.decoder import AudioFeatures, TokenRules
from maxwhisper.errors import OptionError
from maxwhisper.search import BeamSearchDecoder, Candidate, GreedyDecoder, logsumexp, softmax
from maxwhisper.speech_model import SpeechDecoder, SpeechModel
from maxwhisper.tokenizer import Tokenizer, get_tokenizer, language_code
from maxwhisper.utils import compression_ratio


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode a window; names, meaning and defaults as `whisper.DecodingOptions`.

    Raises OptionError for values that can't be used, alone or together.
    """

    task: str = "transcribe"  # or "translate" to English, or "lang_id" to name the language alone
    language: str | None = None  # detected if None
    temperature: float = 0.0  # 0 takes the likeliest token, more samples
    sample_len: int | None = None  # most tokens to sample, half the context by default
    best_of: int | None = None  # independent samples to choose from, if temperature > 0
    beam_size: int | None = None  # sequences that are followed at once, whatever the temperature
    patience: float | None = None  # beams end when `beam_size * patience` sequences have, 1 by default (Kasai et al., 2022)
    length_penalty: float | None = None  # Google NMT's alpha; None divides by the length
    prompt: str | list[int] | None = None  # what was said before
    prefix: str | list[int] | None = None  # what this window starts with
    suppress_tokens: str | Iterable[int] | None = "-1"  # ids, or comma-separated ids; -1 stands for non-speech symbols
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    fp16: bool = True  # taken for compatibility; a model computes in its `compute_type`

    def __post_init__(self) -> None:
        if self.beam_size is not None and self.beam_size < 1:
            raise OptionError(f"beam_size {self.beam_size} follows no sequence; give 1 or more")
        if self.beam_size is not None and self.best_of is not None:
            raise OptionError("beam_size and best_of can't be given together: one searches, the other samples")
        if self.patience is not None and self.beam_size is None:
            raise OptionError("patience needs a beam_size, for it says how many sequences of a beam may end")
        if self.beam_size is not None and not 0.5 < self.beam_size * (self.patience or 1.0) < np.inf:
            raise OptionError(f"patience {self.patience} lets none of {self.beam_size} sequences end; give about 1")
        if not 0 <= self.temperature < np.inf:
            raise OptionError(f"temperature {self.temperature} is not 0 or more")
        if self.best_of is not None and self.best_of < 1:
            raise OptionError(f"best_of {self.best_of} leaves nothing to choose from; give 1 or more")
        if self.best_of is not None and self.temperature == 0:
            raise OptionError("best_of needs a temperature above 0, for greedy decoding gives the same tokens each time")
        if self.length_penalty is not None and not 0 <= self.length_penalty <= 1:
            raise OptionError(f"length_penalty {self.length_penalty} is not between 0 and 1")
        if self.sample_len is not None and self.sample_len < 1:
            raise OptionError(f"sample_len {self.sample_len} leaves no token to sample; give 1 or more")


@dataclass(frozen=True)
class DecodingResult:
    """What was decoded from a window; fields as `whisper.DecodingResult`, but for the audio features."""

    language: str
    language_probs: dict[str, float] | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    avg_logprob: float = np.nan
    no_speech_prob: float = np.nan
    temperature: float = np.nan
    compression_ratio: float = np.nan


class LogitFilter(Protocol):
    """Forbids tokens by setting their logits to -inf, in place.

    logits float32 [n_seq, n_vocab]; tokens int64 [n_seq, n] are all tokens so far, the prompt included.
    """

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None: ...


@dataclass(frozen=True)
class SuppressBlank:
    """No transcript starts with a blank or with the end."""

    tokenizer: Tokenizer
    sample_begin: int

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        if tokens.shape[1] == self.sample_begin:
            logits[:, [*self.tokenizer.encoding.encode_ordinary(" "), self.tokenizer.eot]] = -np.inf


@dataclass(frozen=True)
class SuppressTokens:
    """These tokens never appear."""

    suppress_tokens: list[int]

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        logits[:, self.suppress_tokens] = -np.inf


@dataclass(frozen=True)
class ApplyTimestampRules:
    """Timestamps come in pairs, never decrease, open the transcript, and are chosen where together they are likelier than any text."""

    tokenizer: Tokenizer
    sample_begin: int
    max_initial_timestamp_index: int | None

    def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        begin = self.tokenizer.timestamp_begin
        logits[:, self.tokenizer.no_timestamps] = -np.inf
        for row, sampled in zip(logits, tokens[:, self.sample_begin :]):
            self._pair(row, sampled)
        if tokens.shape[1] == self.sample_begin:
            logits[:, :begin] = -np.inf
            if self.max_initial_timestamp_index is not None:
                logits[:, begin + self.max_initial_timestamp_index + 1 :] = -np.inf
        likelier = logsumexp(logits[:, begin:]) > logits[:, :begin].max(axis=-1)
        logits[likelier, :begin] = -np.inf

    def _pair(self, logits: np.ndarray, sampled: np.ndarray) -> None:
        begin, eot = self.tokenizer.timestamp_begin, self.tokenizer.eot
        last_is_timestamp = len(sampled) >= 1 and sampled[-1] >= begin
        previous_is_timestamp = len(sampled) < 2 or sampled[-2] >= begin
        if last_is_timestamp and previous_is_timestamp:  # a pair is complete: text follows
            logits[begin:] = -np.inf
        elif last_is_timestamp:  # a pair has begun: its other half follows, or the end
            logits[:eot] = -np.inf
        timestamps = sampled[sampled >= begin]
        if len(timestamps):
            # A segment's start may equal the end of the one before; its end must be later, so that transcription moves on.
            opens = last_is_timestamp and not previous_is_timestamp
            logits[begin : timestamps[-1] + (0 if opens else 1)] = -np.inf


def detect_language(model: SpeechModel, mel: np.ndarray | AudioFeatures, tokenizer: Tokenizer | None = None) -> tuple[Any, Any]:
    """The likeliest language of each window, as a token, and the probability of every language, as a dict by code.

    mel: log-mel windows [n_audio, n_mels, 3000] or their features; one window [n_mels, 3000] gives one token and one dict. tokenizer: the
    model's own by default. As `whisper.detect_language`.

    Raises OptionError for English-only models.
    """
    if not model.is_multilingual:
        raise OptionError("this model knows only English, so it can't tell languages apart; use a multilingual one, such as base")
    features = mel if isinstance(mel, AudioFeatures) else model.embed_audio(mel)
    tokenizer = tokenizer or get_tokenizer(True, num_languages=model.num_languages)
    start = np.full((features.n_audio, 1, 1), tokenizer.sot)
    logits = model.decoder(features).logits(start)[:, 0, 0, list(tokenizer.all_language_tokens)]
    tokens = np.array(tokenizer.all_language_tokens)[logits.argmax(axis=-1)]
    probs = [dict(zip(tokenizer.all_language_codes, row)) for row in softmax(logits).tolist()]
    return (tokens[0], probs[0]) if getattr(mel, "ndim", None) == 2 else (tokens, probs)


def likeliest(probs: dict[str, float]) -> str:
    """The language of the highest probability, by code."""
    return max(probs, key=lambda language: probs[language])


class DecodingTask:
    """Decodes windows under one set of options."""

    def __init__(self, model: SpeechModel, options: DecodingOptions, rng: np.random.Generator | None = None) -> None:
        self.model = model
        self.options = options
        self.tokenizer = tokenizer = get_tokenizer(
            model.is_multilingual, num_languages=model.num_languages, language=options.language or "en", task=options.task
        )
        self.n_ctx = model.dims.n_text_ctx
        self.n_group = options.beam_size or options.best_of or 1
        self.sample_len = options.sample_len or self.n_ctx // 2
        self.initial_tokens = self._initial_tokens()
        self.sample_begin = len(self.initial_tokens)
        self.sot_index = self.initial_tokens.index(tokenizer.sot)
        self.rng = rng or np.random.default_rng(0)
        self.logit_filters = self._logit_filters()
        if self.sample_begin > self.n_ctx:
            raise OptionError(f"prompt and prefix make {self.sample_begin} tokens, more than the context of {self.n_ctx}; shorten them")

    def _initial_tokens(self) -> list[int]:
        tokenizer, options = self.tokenizer, self.options

        def as_tokens(text: str | list[int]) -> list[int]:
            return tokenizer.encode(" " + text.strip()) if isinstance(text, str) else list(text)

        tokens = list(tokenizer.sot_sequence_including_notimestamps if options.without_timestamps else tokenizer.sot_sequence)
        if options.prefix:
            # As upstream: at the default sample_len this limit is 0, which keeps the whole prefix.
            tokens += as_tokens(options.prefix)[-(self.n_ctx // 2 - self.sample_len) :]
        if options.prompt:
            tokens = [tokenizer.sot_prev, *as_tokens(options.prompt)[-(self.n_ctx // 2 - 1) :], *tokens]
        return tokens

    def _logit_filters(self) -> list[LogitFilter]:
        options, filters = self.options, list[LogitFilter]()
        if options.suppress_blank:
            filters.append(SuppressBlank(self.tokenizer, self.sample_begin))
        if options.suppress_tokens:
            filters.append(SuppressTokens(self._suppressed(options.suppress_tokens)))
        if not options.without_timestamps:
            index = None
            if options.max_initial_timestamp:
                index = round(options.max_initial_timestamp / (CHUNK_LENGTH / self.model.dims.n_audio_ctx))
            filters.append(ApplyTimestampRules(self.tokenizer, self.sample_begin, index))
        return filters

    def _suppressed(self, asked: str | Iterable[int]) -> list[int]:
        tokenizer, n_vocab = self.tokenizer, self.model.dims.n_vocab
        try:
            tokens = {int(token) for token in (asked.split(",") if isinstance(asked, str) else asked)}
        except ValueError as error:
            raise OptionError(f"suppress_tokens {asked!r} is no comma-separated list of token ids") from error
        if tokens and not -1 <= min(tokens) <= max(tokens) < n_vocab:
            raise OptionError(f"suppress_tokens {asked!r} names tokens that the vocabulary of {n_vocab} lacks")
        if -1 in tokens:
            tokens = tokens - {-1} | set(tokenizer.non_speech_tokens)
        never = (tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm, tokenizer.no_speech)
        return sorted(tokens.union(never))

    def run(self, audio: AudioFeatures, languages: Sequence[str] | None = None) -> list[DecodingResult]:
        """Decode each window of a batch; languages: theirs, where they are known and not one for all."""
        options, n_audio = self.options, audio.n_audio
        tokens = np.tile(self.initial_tokens, (n_audio, 1))
        if options.task == "lang_id":
            _, language_probs = detect_language(self.model, audio)
            return [DecodingResult(likeliest(probs), probs) for probs in language_probs]
        if options.language is None and self.model.is_multilingual and languages is None:
            _, language_probs = detect_language(self.model, audio)
            languages = [likeliest(probs) for probs in language_probs]
        languages = languages or [options.language or "en"] * n_audio
        if self.model.is_multilingual:
            tokens[:, self.sot_index + 1] = [self.tokenizer.to_language_token(language_code(language)) for language in languages]

        candidates, no_speech_probs = self._sample(audio, np.repeat(tokens, self.n_group, axis=0))
        return [self._best(*window) for window in zip(languages, candidates, no_speech_probs)]

    def _token_decoder(self, decoder: SpeechDecoder) -> GreedyDecoder | BeamSearchDecoder:
        options, eot = self.options, self.tokenizer.eot
        if options.beam_size is not None:
            return BeamSearchDecoder(options.beam_size, eot, decoder.rearrange, options.patience)
        return GreedyDecoder(options.temperature, eot, self.rng)

    def _sample(self, audio: AudioFeatures, tokens: np.ndarray) -> tuple[list[list[Candidate]], np.ndarray]:
        """Extend tokens [n_audio * n_group, n] until all have ended: each window's candidates, and its no-speech probability."""
        decoder, rules = self.model.decoder(audio, self.n_group), self._rules()
        token_decoder = self._token_decoder(decoder)
        sum_logprobs = np.zeros(len(tokens))
        shape = (audio.n_audio, self.n_group, -1)
        last = self.sample_begin - 1
        at_sot, logits = decoder.logits(tokens.reshape(shape)[:, :1], rows=[self.sot_index, last])[:, 0].swapaxes(0, 1)
        no_speech_probs = softmax(at_sot)[:, self.tokenizer.no_speech]

        def choose(logits: np.ndarray) -> tuple[np.ndarray, bool]:
            logits = logits.reshape(len(tokens), -1)
            for logit_filter in self.logit_filters:
                logit_filter.apply(logits, tokens)
            return token_decoder.update(tokens, logits, sum_logprobs)

        end = min(self.sample_begin + self.sample_len, self.n_ctx + 1)
        tokens, completed = choose(np.repeat(logits, self.n_group, axis=0))
        while not completed and tokens.shape[1] < end:
            if rules is None:
                tokens, completed = choose(decoder.logits(tokens[:, -1:].reshape(shape)))
            elif isinstance(token_decoder, BeamSearchDecoder):
                tokens, completed = token_decoder.follow(tokens, *decoder.top_k_tokens(tokens.reshape(shape), rules), sum_logprobs)
            else:
                tokens = decoder.greedy(tokens.reshape(shape), sum_logprobs.reshape(shape[:2]), rules, end).reshape(len(tokens), -1)
                completed = True
        return token_decoder.finalize(tokens.reshape(shape), sum_logprobs.reshape(shape[:2]), self.sample_begin), no_speech_probs

    def _rules(self) -> TokenRules | None:
        """What a graph must know to choose tokens by itself; None where it can't: where another than the likeliest may be taken."""
        known = (SuppressBlank, SuppressTokens, ApplyTimestampRules)  # the first of these forbids nothing but the first token
        in_graph = self.model.decodes_in_graph if self.options.beam_size is None else self.model.searches_in_graph
        sampled = self.options.temperature > 0 and self.options.beam_size is None
        if not in_graph or sampled or not all(isinstance(f, known) for f in self.logit_filters):
            return None
        mask, timestamp_begin = np.zeros(self.model.dims.n_vocab, np.float32), self.model.dims.n_vocab
        for logit_filter in self.logit_filters:
            if isinstance(logit_filter, SuppressTokens):
                mask[logit_filter.suppress_tokens] = -np.inf
            elif isinstance(logit_filter, ApplyTimestampRules):
                mask[self.tokenizer.no_timestamps] = -np.inf
                timestamp_begin = self.tokenizer.timestamp_begin
        return TokenRules(mask, self.sample_begin, self.tokenizer.eot, timestamp_begin)

    def _best(self, language: str, candidates: list[Candidate], no_speech_prob: float) -> DecodingResult:
        """The likeliest of a window's candidates, for its length."""
        alpha = self.options.length_penalty
        lengths = np.array([len(candidate.tokens) for candidate in candidates], float)
        penalties = np.maximum(lengths, 1) if alpha is None else ((5 + lengths) / 6) ** alpha
        tokens, sum_logprob = candidates[np.argmax([candidate.sum_logprob for candidate in candidates] / penalties)]
        text = self.tokenizer.decode(tokens).strip()
        return DecodingResult(
            language=language,
            tokens=tokens,
            text=text,
            avg_logprob=sum_logprob / (len(tokens) + 1),
            no_speech_prob=float(no_speech_prob),
            temperature=self.options.temperature,
            compression_ratio=compression_ratio(text),
        )


def decode(
    model: SpeechModel,
    mel: np.ndarray | AudioFeatures,
    options: DecodingOptions | None = None,
    *,
    rng: np.random.Generator | None = None,
    **kwargs: object,
) -> DecodingResult | list[DecodingResult]:
    """Decode 30-second windows: log-mel [n_mels, 3000] to a result, [n_audio, n_mels, 3000] or features to a list of them.

    options, or the fields of `DecodingOptions` as keywords; rng: where sampling draws from, the same sequence each time by default.
    As `whisper.decode`.

    Raises OptionError for options that can't be used.
    """
    options = replace(options or DecodingOptions(), **kwargs)  # type: ignore[arg-type]
    features = mel if isinstance(mel, AudioFeatures) else model.embed_audio(mel)
    results = DecodingTask(model, options, rng).run(features)
    return results[0] if getattr(mel, "ndim", None) == 2 else results
