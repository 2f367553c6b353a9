"""Recordings of any length, window by window, by the rules of OpenAI Whisper's `transcribe.py`."""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from maxwhisper.audio import FRAMES_PER_SECOND, N_FRAMES, Audio, check_track
from maxwhisper.console import listens
from maxwhisper.decoding import DecodingOptions, DecodingResult, DecodingTask, detect_language
from maxwhisper.decoding.language import most_probable_language
from maxwhisper.engine.decoder import AudioFeatures
from maxwhisper.errors import OptionError, WhisperWarning
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer, get_tokenizer
from maxwhisper.transcript import Segment, Transcript, get_end, segment_line, text_of
from maxwhisper.transcription.hallucinations import Place, skip_hallucinations
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import Heard, clips_of, language_of
from maxwhisper.transcription.segments import Thresholds, ends_alone, segments_of, split_at_timestamps
from maxwhisper.transcription.silence import VadOptions
from maxwhisper.transcription.timing import add_word_timestamps

# Above this temperature, what was decoded is no good prompt for the next window.
_TRUSTED_TEMPERATURE = 0.5


@dataclass(frozen=True)
class TranscriptionInfo:
    """What is known of a recording before its text: its language, how likely that is (1 where it was given), and its duration in seconds,
    also without the silence that `vad_filter` leaves out.
    """

    language: str
    language_probability: float
    duration: float
    duration_after_vad: float


def iter_segments(
    model: SpeechModel,
    audio: Audio,
    *,
    verbose: bool | None = None,
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    word_timestamps: bool = False,
    prepend_punctuations: str = PREPEND_PUNCTUATIONS,
    append_punctuations: str = APPEND_PUNCTUATIONS,
    clip_timestamps: str | Sequence[float] = "0",
    hallucination_silence_threshold: float | None = None,
    hotwords: str | None = None,
    multilingual: bool = False,
    language_detection_segments: int = 1,
    language_detection_threshold: float = 0.5,
    vad_filter: bool = False,
    vad_parameters: object = None,
    audio_track: int | None = None,
    rng: np.random.Generator | None = None,
    **decode_options: Any,
) -> tuple[Iterator[Segment], TranscriptionInfo]:
    """The segments of a file, or of float samples [n_samples] at 16 kHz, of any length, as they are decoded; and what is known before.

    verbose: True prints segments as they come, False shows only a progress bar, None neither.
    temperature: tried in this order, until the text neither repeats itself more than `compression_ratio_threshold` allows nor is
    on average less likely than `logprob_threshold`. A window whose no-speech probability exceeds `no_speech_threshold`, and whose text
    is no likelier than `logprob_threshold`, is silence.
    condition_on_previous_text: prompt each window with what was said before; initial_prompt: what was said before the first, or, with
    carry_initial_prompt, before each; hotwords: words to be expected, before each.
    word_timestamps: give each segment its `words`, with `start`, `end` and `probability`, marks of `prepend_punctuations` joined to the
    word behind them, those of `append_punctuations` to the one before; and go on from the last word's end.
    hallucination_silence_threshold: with words, leave out text that may not have been said, amid silence longer than this, in seconds.
    clip_timestamps: start, end, start, end, … in seconds of what is to be transcribed; the last end may be left out.
    multilingual: detect the language of each window; language_detection_segments: in how many windows at most the recording's language is
    looked for, until one is likelier than language_detection_threshold; else it is the one most often found.
    vad_filter: leave out what Silero's detector takes for silence; vad_parameters: fields of `silence.VadOptions`, as a mapping or
    as an object that has them, such as faster-whisper's own.
    audio_track: which of a file's sound tracks, counted from 0; by default the one that FFmpeg takes (`maxwhisper.load_audio`).
    rng: where sampling draws from, the same sequence each time by default. The rest are the fields of `DecodingOptions`.

    Returns an iterator of segments, each with `id`, `seek`, `start`, `end`, `text`, `tokens`, `temperature`, `avg_logprob`,
    `compression_ratio` and `no_speech_prob`, times in seconds; and what is known of the recording, at once.

    Raises AudioError where the audio can't be used, OptionError for options that can't.
    """
    attempts = options_for_each(temperature, decode_options)
    check_track(audio_track)
    clips, vad = clips_of(clip_timestamps), VadOptions.of(vad_parameters) if vad_filter else None
    if hallucination_silence_threshold is not None and not hallucination_silence_threshold >= 0:
        raise OptionError(f"hallucination_silence_threshold {hallucination_silence_threshold} is not 0 or more")
    if language_detection_segments < 1:
        raise OptionError(f"language_detection_segments {language_detection_segments} is less than 1")
    if word_timestamps and attempts[0].task == "translate":
        warnings.warn("times of words may be wrong where speech is translated", WhisperWarning, stacklevel=2)
    heard = Heard.of(model, audio, clips, vad, audio_track)
    language, probability = language_of(
        model, heard, attempts[0].language, verbose, language_detection_segments, language_detection_threshold
    )
    info = TranscriptionInfo(language, probability, heard.duration, heard.content_frames / FRAMES_PER_SECOND)
    tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=attempts[0].task)
    initial, hot = ([] if text is None else tokenizer.encode(" " + text.strip()) for text in (initial_prompt, hotwords or None))
    transcription = _Transcription(
        model=model,
        heard=heard,
        language=language,
        tokenizer=tokenizer,
        attempts=attempts,
        thresholds=Thresholds(compression_ratio_threshold, logprob_threshold, no_speech_threshold),
        always_said=[*hot, *initial] if carry_initial_prompt else hot,
        said=[] if carry_initial_prompt else initial,
        condition_on_previous_text=condition_on_previous_text,
        punctuations=(prepend_punctuations, append_punctuations) if word_timestamps else None,
        longest_silence=hallucination_silence_threshold if word_timestamps else None,
        multilingual=multilingual and model.is_multilingual,
        rng=rng or np.random.default_rng(0),
    )
    return transcription.segments(verbose), info


def transcribe(model: SpeechModel, audio: Audio, **options: Any) -> Transcript:
    """Transcribe a file, or float samples [n_samples] at 16 kHz, of any length; as `whisper.transcribe`.

    options: those of `iter_segments`. Returns `text`, `language`, and `segments`, a list of what that yields.

    Raises AudioError where the audio can't be used, OptionError for options that can't.
    """
    found, info = iter_segments(model, audio, **options)
    segments = list(found)
    tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
    return {"text": text_of(segments, tokenizer), "segments": segments, "language": info.language}


# What people look up is the one list of options there is; mypy knows no such attribute of functions.
transcribe.__signature__ = inspect.signature(iter_segments).replace(return_annotation=Transcript)  # type: ignore[attr-defined]


@dataclass
class _Transcription:
    """A recording on its way to text: what was said in one window is the prompt of the next, and where it ended, that one begins."""

    model: SpeechModel
    heard: Heard
    language: str
    tokenizer: Tokenizer
    attempts: Sequence[DecodingOptions]
    thresholds: Thresholds
    always_said: list[int]  # tokens before each window, in front of
    said: list[int]  # what was said in those before, unless it is to be forgotten
    condition_on_previous_text: bool
    punctuations: tuple[str, str] | None  # to prepend, and to append, where words are timed
    longest_silence: float | None  # that is no reason to doubt what was said
    multilingual: bool
    rng: np.random.Generator
    last_speech_timestamp: float = 0.0

    def segments(self, verbose: bool | None) -> Iterator[Segment]:
        """Decodes as far as it is asked for more."""
        n_frames, n_segments = sum(end - start for start, end in self.heard.clips), 0
        hidden = None if verbose is not None and listens(sys.stderr) else True  # None: unless it is a terminal
        with tqdm(total=n_frames, unit="frames", disable=hidden) as progress:
            show = progress.write if verbose and listens(sys.stdout) else None
            for start, end in self.heard.clips:
                seek = start
                while seek < end:
                    found, after = self._window(seek, min(N_FRAMES, end - seek), show)
                    for segment in found:
                        yield {"id": n_segments, **self.heard.restored(segment)}
                        n_segments += 1
                    progress.update(min(end, after) - seek)
                    seek = after

    def _window(self, seek: int, size: int, show: Callable[[str], None] | None) -> tuple[list[Segment], int]:
        """The segments of the window that begins at frame `seek`, of which `size` frames hold audio; and the frame to go on from.

        show: is told each segment's text, if anybody wants to see it.
        """
        audio = self.model.embed_audio(self.heard.window(seek, size))
        language, tokenizer = self._speaker(audio)
        result = self._decode_with_fallback(audio, language)
        if self.thresholds.call_silent(result):
            return [], seek + size
        spans, advance = split_at_timestamps(result.tokens, tokenizer.timestamp_begin, size, self.model.dims.n_audio_ctx)
        segments, after = segments_of(tokenizer, seek, spans, result), seek + advance
        if self.punctuations is not None:
            fixed = ends_alone(result.tokens, tokenizer.timestamp_begin)
            believed, after = self._time_words(segments, audio, tokenizer, Place(seek, size, self.heard.content_frames), after, fixed)
            if believed is None:
                return [], after
            segments = believed
        for segment in segments:
            if show:
                show(segment_line(self.heard.restored(segment)))
            if segment["start"] == segment["end"] or not segment["text"].strip():
                segment.update({"text": "", "tokens": [], "words": []})
        self.said += [token for segment in segments for token in segment["tokens"]]
        if not self.condition_on_previous_text or result.temperature > _TRUSTED_TEMPERATURE:
            self.said.clear()
        return segments, after

    def _speaker(self, audio: AudioFeatures) -> tuple[str, Tokenizer]:
        """The language of a window, and its tokenizer."""
        if not self.multilingual:
            return self.language, self.tokenizer
        language = most_probable_language(detect_language(self.model, audio)[1][0])
        return language, get_tokenizer(True, num_languages=self.model.num_languages, language=language, task=self.tokenizer.task)

    def _decode_with_fallback(self, audio: AudioFeatures, language: str) -> DecodingResult:
        for options in self.attempts:
            (result,) = DecodingTask(self.model, replace(options, prompt=self._prompt(), language=language), self.rng).run(audio)
            if self.thresholds.accept(result):
                break
        return result

    def _prompt(self) -> list[int]:
        if not self.always_said:
            return list(self.said)
        n_left = max(0, self.model.dims.n_text_ctx // 2 - 1 - len(self.always_said))
        return [*self.always_said, *self.said[len(self.said) - min(n_left, len(self.said)) :]]

    def _time_words(
        self, segments: list[Segment], audio: AudioFeatures, tokenizer: Tokenizer, place: Place, after: int, fixed: bool
    ) -> tuple[list[Segment] | None, int]:
        """Segments with words, of those that may be believed, and the frame to go on from; None where a silence is to be skipped first.

        after: where to go on by timestamps; fixed: whatever the last word's end.
        """
        assert self.punctuations is not None
        prepend, append = self.punctuations
        add_word_timestamps(
            segments=segments,
            model=self.model,
            tokenizer=tokenizer,
            mel=audio,
            num_frames=place.segment_size,
            prepend_punctuations=prepend,
            append_punctuations=append,
            last_speech_timestamp=self.last_speech_timestamp,
        )
        end, threshold = get_end(segments), self.longest_silence
        if end is not None and end > place.start and not fixed:
            after = round(end * FRAMES_PER_SECOND)
            if threshold is not None and place.end - end <= threshold:
                after = place.seek + place.segment_size
        believed: list[Segment] | None = segments
        if threshold is not None:
            believed, after = skip_hallucinations(segments, place, after, threshold, self.last_speech_timestamp)
        if believed:
            self.last_speech_timestamp = get_end(believed) or self.last_speech_timestamp
        return believed, after


def options_for_each(temperature: float | Sequence[float], decode_options: dict[str, Any]) -> list[DecodingOptions]:
    """The options of each attempt at a window, one for each temperature.

    Raises OptionError where there is no temperature, or options can't be used.
    """
    temperatures = np.atleast_1d(np.asarray(temperature, float)).tolist()
    if not temperatures:
        raise OptionError("no temperature is given to decode at; give one or several")
    searched = {**decode_options, "best_of": None}  # where nothing is sampled, there is nothing to choose from
    sampled = {**decode_options, "beam_size": None, "patience": None}
    return [DecodingOptions(**(searched if t == 0 else sampled), temperature=t) for t in temperatures]
