"""Decode windows: from audio features to text, by the rules of OpenAI Whisper's `decoding.py`."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from maxwhisper.audio import CHUNK_LENGTH
from maxwhisper.decoding.language import detect_language, most_probable_language
from maxwhisper.decoding.options import DecodingOptions, DecodingResult
from maxwhisper.decoding.rules import ApplyTimestampRules, LogitFilter, SuppressBlank, SuppressTokens
from maxwhisper.decoding.search import BeamSearchDecoder, Candidate, GreedyDecoder, softmax
from maxwhisper.decoding.trace import DecodingStep, DecodingTrace
from maxwhisper.engine.decoder import AudioFeatures, TokenRules
from maxwhisper.errors import OptionError
from maxwhisper.speech_model import SpeechDecoder, SpeechModel
from maxwhisper.tokenizer import get_tokenizer, language_code


class DecodingTask:
    """Decodes windows with one set of options.

    Args:
        model: The model.
        options: How to decode.
        rng: The source of random draws; by default, the same sequence each time.
        trace: Receives each step.

    Raises:
        OptionError: The options don't fit the model.
    """

    def __init__(
        self,
        model: SpeechModel,
        options: DecodingOptions,
        rng: np.random.Generator | None = None,
        *,
        trace: DecodingTrace | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.trace = trace
        self.tokenizer = tokenizer = get_tokenizer(
            model.is_multilingual,
            num_languages=model.num_languages,
            language=options.language or "en",
            task=options.task,
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
            raise OptionError(
                f"prompt and prefix make {self.sample_begin} tokens, more than the context of {self.n_ctx}; "
                "shorten them"
            )

    def _initial_tokens(self) -> list[int]:
        tokenizer, options = self.tokenizer, self.options

        def as_tokens(text: str | list[int]) -> list[int]:
            return tokenizer.encode(" " + text.strip()) if isinstance(text, str) else list(text)

        tokens = list(
            tokenizer.sot_sequence_including_notimestamps if options.without_timestamps else tokenizer.sot_sequence
        )
        if options.prefix:
            # As in OpenAI Whisper, the limit is 0 with the default sample_len, so that the slice
            # keeps the whole prefix.
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

    def _suppressed(self, suppress_tokens: str | Iterable[int]) -> list[int]:
        """Resolve the option `suppress_tokens`, and add special tokens that no text contains."""
        tokenizer, n_vocab = self.tokenizer, self.model.dims.n_vocab
        try:
            tokens = {
                int(token)
                for token in (suppress_tokens.split(",") if isinstance(suppress_tokens, str) else suppress_tokens)
            }
        except ValueError as error:
            raise OptionError(
                f"suppress_tokens {suppress_tokens!r} is not a comma-separated list of token ids"
            ) from error
        if tokens and not -1 <= min(tokens) <= max(tokens) < n_vocab:
            raise OptionError(
                f"suppress_tokens {suppress_tokens!r} contains tokens that the vocabulary of {n_vocab} lacks"
            )
        if -1 in tokens:
            tokens = tokens - {-1} | set(tokenizer.non_speech_tokens)
        never = (
            tokenizer.transcribe,
            tokenizer.translate,
            tokenizer.sot,
            tokenizer.sot_prev,
            tokenizer.sot_lm,
            tokenizer.no_speech,
        )
        return sorted(tokens.union(never))

    def run(self, audio: AudioFeatures, languages: Sequence[str] | None = None) -> list[DecodingResult]:
        """Decode each window of a batch.

        Args:
            audio: The windows' audio features.
            languages: The language of each window; by default that of the options, or else
                detected.
        """
        options = self.options
        if options.task == "lang_id":
            _, language_probs = detect_language(self.model, audio)
            return [DecodingResult(most_probable_language(probs), probs) for probs in language_probs]
        if options.language is None and self.model.is_multilingual and languages is None:
            _, language_probs = detect_language(self.model, audio)
            languages = [most_probable_language(probs) for probs in language_probs]
        languages = languages or [options.language or "en"] * audio.n_audio
        if self.trace is not None:
            self.trace.begin(options, self.tokenizer)
        candidates, no_speech_probs = self._sample(audio, np.repeat(self.prompts(languages), self.n_group, axis=0))
        results = [self._best(*window) for window in zip(languages, candidates, no_speech_probs)]
        if self.trace is not None:
            self.trace.end(candidates, results)
        return results

    def prompts(self, languages: Sequence[str]) -> np.ndarray:
        """Return the initial tokens of each window, by its language, int64 [n_audio, n]."""
        tokens = np.tile(self.initial_tokens, (len(languages), 1))
        if self.model.is_multilingual:
            tokens[:, self.sot_index + 1] = [
                self.tokenizer.to_language_token(language_code(language)) for language in languages
            ]
        return tokens

    def _token_decoder(self, decoder: SpeechDecoder) -> GreedyDecoder | BeamSearchDecoder:
        options, eot = self.options, self.tokenizer.eot
        if options.beam_size is not None:
            return BeamSearchDecoder(options.beam_size, eot, decoder.rearrange, options.patience)
        return GreedyDecoder(options.temperature, eot, self.rng)

    def _sample(self, audio: AudioFeatures, tokens: np.ndarray) -> tuple[list[list[Candidate]], np.ndarray]:
        """Extend tokens, int64 [n_audio * n_group, n], until all sequences have ended.

        Returns:
            Each window's candidates, and its no-speech probability, float32 [n_audio].
        """
        decoder, rules = self.model.decoder(audio, self.n_group), self._rules()
        token_decoder = self._token_decoder(decoder)
        sum_logprobs = np.zeros(len(tokens))
        shape = (audio.n_audio, self.n_group, -1)
        last = self.sample_begin - 1
        at_sot, logits = decoder.logits(tokens.reshape(shape)[:, :1], rows=[self.sot_index, last])[:, 0].swapaxes(0, 1)
        no_speech_probs = softmax(at_sot)[:, self.tokenizer.no_speech]

        def choose(logits: np.ndarray) -> tuple[np.ndarray, bool]:
            return self._choose(token_decoder, tokens, logits.reshape(len(tokens), -1), sum_logprobs)

        end = min(self.sample_begin + self.sample_len, self.n_ctx + 1)
        tokens, completed = choose(np.repeat(logits, self.n_group, axis=0))
        while not completed and tokens.shape[1] < end:
            if rules is None:
                tokens, completed = choose(decoder.logits(tokens[:, -1:].reshape(shape)))
            elif isinstance(token_decoder, BeamSearchDecoder):
                tokens, completed = token_decoder.follow(
                    tokens, *decoder.top_k_tokens(tokens.reshape(shape), rules), sum_logprobs
                )
            else:
                tokens = decoder.greedy(tokens.reshape(shape), sum_logprobs.reshape(shape[:2]), rules, end).reshape(
                    len(tokens), -1
                )
                completed = True
        return token_decoder.finalize(
            tokens.reshape(shape), sum_logprobs.reshape(shape[:2]), self.sample_begin
        ), no_speech_probs

    def _choose(
        self,
        token_decoder: GreedyDecoder | BeamSearchDecoder,
        tokens: np.ndarray,
        logits: np.ndarray,
        sum_logprobs: np.ndarray,
    ) -> tuple[np.ndarray, bool]:
        """Filter logits, and extend tokens as `GreedyDecoder.update`."""
        before = (logits.copy(), sum_logprobs.copy()) if self.trace is not None else None
        for logit_filter in self.logit_filters:
            logit_filter.apply(logits, tokens)
        next_tokens, completed = token_decoder.update(tokens, logits, sum_logprobs)
        if self.trace is not None and before is not None:
            unfiltered, sums = before
            sources = token_decoder.sources if isinstance(token_decoder, BeamSearchDecoder) else None
            self.trace.step(DecodingStep(tokens, unfiltered, logits, sums, next_tokens, sum_logprobs.copy(), sources))
        return next_tokens, completed

    def _rules(self) -> TokenRules | None:
        """Return the token rules for in-graph decoding.

        None if decoding must run on the host: with sampling, custom filters, captured activations
        or a trace.
        """
        supported = (SuppressBlank, SuppressTokens, ApplyTimestampRules)  # SuppressBlank affects only the first token
        in_graph = self.model.decodes_in_graph if self.options.beam_size is None else self.model.searches_in_graph
        sampled = self.options.temperature > 0 and self.options.beam_size is None
        if (
            self.trace is not None
            or not in_graph
            or sampled
            or not all(isinstance(f, supported) for f in self.logit_filters)
        ):
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
        """Choose the candidate with the highest log-probability after the length penalty."""
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


def compression_ratio(text: str) -> float:
    """Return how many times shorter zlib makes the text: repetitive text has a high ratio."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def decode(
    model: SpeechModel,
    mel: np.ndarray | AudioFeatures,
    options: DecodingOptions | None = None,
    *,
    rng: np.random.Generator | None = None,
    **kwargs: object,
) -> DecodingResult | list[DecodingResult]:
    """Decode 30-second windows, as `whisper.decode`.

    Args:
        model: The model.
        mel: A log-mel window, float32 [n_mels, 3000], or a batch of them [n_audio, n_mels, 3000],
            or audio features.
        options: How to decode.
        rng: The source of random draws; by default, the same sequence each time.
        kwargs: Fields of `DecodingOptions`, which override those of `options`.

    Returns:
        The result for a single window, else a list of results.

    Raises:
        OptionError: The options can't be used.
    """
    options = replace(options or DecodingOptions(), **kwargs)  # type: ignore[arg-type]
    features = mel if isinstance(mel, AudioFeatures) else model.embed_audio(mel)
    results = DecodingTask(model, options, rng).run(features)
    return results[0] if getattr(mel, "ndim", None) == 2 else results
