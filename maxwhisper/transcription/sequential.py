"""Transcription window by window, by the rules of OpenAI Whisper's `transcribe.py`."""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from maxwhisper.audio import FRAMES_PER_SECOND, N_FRAMES, Audio
from maxwhisper.console import listens
from maxwhisper.decoding import detect_language
from maxwhisper.decoding.language import most_probable_language
from maxwhisper.engine.decoder import AudioFeatures
from maxwhisper.errors import WhisperWarning
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer, get_tokenizer
from maxwhisper.transcript import Segment, Transcript, get_end, segment_line, text_of, text_tokens
from maxwhisper.transcription.hallucinations import WindowPosition, skip_hallucinations
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import AudioInput, language_of
from maxwhisper.transcription.segments import single_timestamp_ending
from maxwhisper.transcription.timing import AlignmentInput, assign_words, find_alignments
from maxwhisper.transcription.trace import Trace
from maxwhisper.transcription.window import decode_with_fallback, segments_from_result

# Above this temperature, the text of a window is not reliable enough to prompt the next one.
_MAX_PROMPT_TEMPERATURE = 0.5


@dataclass(frozen=True)
class TranscriptionInfo:
    """The language and the duration of a recording."""

    language: str
    language_probability: float  # 1 if the language was not detected but requested
    duration: float  # in seconds
    duration_after_vad: float  # without the silence that `vad_filter` leaves out


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
    """Transcribe a recording of any length, and yield its segments as they are decoded.

    Args:
        model: The model.
        audio: A file, or float samples [n_samples] at 16 kHz.
        verbose: True prints each segment, False shows a progress bar, None prints nothing.
        temperature: Temperatures to try in order, until the text of a window is acceptable.
        compression_ratio_threshold: Try again if zlib shortens the text more times than this.
        logprob_threshold: Try again if the mean log-probability of the tokens is below this.
        no_speech_threshold: Drop improbable text if its no-speech probability is above this.
        condition_on_previous_text: Prompt each window with the text before it.
        initial_prompt: Text to prompt the first window with.
        carry_initial_prompt: Prompt every window with `initial_prompt`.
        word_timestamps: Give each segment its `words`, and continue at the last word's end.
        prepend_punctuations: Marks to join to the word after them.
        append_punctuations: Marks to join to the word before them.
        clip_timestamps: Parts to transcribe: `start,end,…` in seconds; the last end is optional.
        hallucination_silence_threshold: With `word_timestamps`, skip anomalous words amid silence
            longer than this, in seconds.
        hotwords: Words to expect in every window.
        multilingual: Detect the language of each window.
        language_detection_segments: Detect the language in at most this many windows.
        language_detection_threshold: Stop at a more probable language, else take the commonest one.
        vad_filter: Skip audio in which Silero's voice activity detector finds no speech.
        vad_parameters: Fields of `transcription.silence.VadOptions`, as a mapping or an object.
        audio_track: The index of the file's sound track, from 0; by default FFmpeg chooses.
        rng: The source of random draws; by default the same sequence each time.
        decode_options: Fields of `maxwhisper.DecodingOptions`.

    Returns:
        An iterator of segments (`maxwhisper.transcript.Segment`), and the language and the duration
        of the recording.

    Raises:
        AudioError: The audio can't be used.
        OptionError: An option can't be used.
    """
    options = TranscriptionOptions(
        temperature=temperature,
        compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold,
        no_speech_threshold=no_speech_threshold,
        condition_on_previous_text=condition_on_previous_text,
        initial_prompt=initial_prompt,
        carry_initial_prompt=carry_initial_prompt,
        word_timestamps=word_timestamps,
        prepend_punctuations=prepend_punctuations,
        append_punctuations=append_punctuations,
        clip_timestamps=clip_timestamps,
        hallucination_silence_threshold=hallucination_silence_threshold,
        hotwords=hotwords,
        multilingual=multilingual,
        language_detection_segments=language_detection_segments,
        language_detection_threshold=language_detection_threshold,
        vad_filter=vad_filter,
        vad_parameters=vad_parameters,
        audio_track=audio_track,
        decode_options=decode_options,
    )
    return iter_segments_with(options, model, audio, verbose=verbose, rng=rng)


def iter_segments_with(
    options: TranscriptionOptions,
    model: SpeechModel,
    audio: Audio,
    *,
    verbose: bool | None = None,
    rng: np.random.Generator | None = None,
    trace: Trace | None = None,
) -> tuple[Iterator[Segment], TranscriptionInfo]:
    """Transcribe a recording as `iter_segments`, with options made beforehand."""
    if options.word_timestamps and options.task == "translate":
        warnings.warn("word timestamps may be wrong if speech is translated", WhisperWarning, stacklevel=3)
    audio_input = AudioInput.of(model, audio, options.clips, options.vad, options.audio_track)
    language, probability = language_of(
        model,
        audio_input,
        options.language,
        verbose,
        options.language_detection_segments,
        options.language_detection_threshold,
    )
    seconds = audio_input.content_frames / FRAMES_PER_SECOND
    info = TranscriptionInfo(language, probability, audio_input.duration, seconds)
    transcription = _Transcription(model, audio_input, language, options, rng or np.random.default_rng(0), trace)
    return transcription.segments(verbose), info


def transcribe(model: SpeechModel, audio: Audio, **options: Any) -> Transcript:
    """Transcribe a recording of any length, as `whisper.transcribe`.

    Args:
        model: The model.
        audio: A file, or float samples [n_samples] at 16 kHz.
        options: Those of `iter_segments`.

    Returns:
        The transcript, a dict with `text`, `language` and `segments`.

    Raises:
        AudioError: The audio can't be used.
        OptionError: An option can't be used.
    """
    return _transcript(model, *iter_segments(model, audio, **options))


# Programs and editors look up the signature for the list of options; mypy does not know this
# attribute of functions.
transcribe.__signature__ = inspect.signature(iter_segments).replace(return_annotation=Transcript)  # type: ignore[attr-defined]


def transcribe_with(
    options: TranscriptionOptions,
    model: SpeechModel,
    audio: Audio,
    *,
    verbose: bool | None = None,
    rng: np.random.Generator | None = None,
    trace: Trace | None = None,
) -> Transcript:
    """Transcribe a recording as `transcribe`, with options made beforehand."""
    return _transcript(model, *iter_segments_with(options, model, audio, verbose=verbose, rng=rng, trace=trace))


def _transcript(model: SpeechModel, segments: Iterator[Segment], info: TranscriptionInfo) -> Transcript:
    tokenizer, all_segments = get_tokenizer(model.is_multilingual, num_languages=model.num_languages), list(segments)
    return {"text": text_of(all_segments, tokenizer), "segments": all_segments, "language": info.language}


class _Transcription:
    """The state of a transcription: the text before the next window, and the end of its speech."""

    def __init__(
        self,
        model: SpeechModel,
        audio: AudioInput,
        language: str,
        options: TranscriptionOptions,
        rng: np.random.Generator,
        trace: Trace | None,
    ) -> None:
        self.model = model
        self.audio = audio
        self.language = language
        self.options = options
        self.rng = rng
        self.trace = trace
        self.tokenizer = self._tokenizer(language)
        initial = self._as_prompt(options.initial_prompt)
        hotwords = self._as_prompt(options.hotwords or None)
        carried = options.carry_initial_prompt
        self.static_prompt = [*hotwords, *initial] if carried else hotwords  # tokens to prompt every window with
        self.previous_tokens = [] if carried else initial  # tokens before the next window
        self.last_speech_timestamp = 0.0

    def _tokenizer(self, language: str) -> Tokenizer:
        model = self.model
        return get_tokenizer(
            model.is_multilingual, num_languages=model.num_languages, language=language, task=self.options.task
        )

    def _as_prompt(self, text: str | None) -> list[int]:
        return [] if text is None else self.tokenizer.encode(" " + text.strip())

    def segments(self, verbose: bool | None) -> Iterator[Segment]:
        """Yield segments; a window is decoded when its first segment is requested."""
        n_frames, n_segments = sum(end - start for start, end in self.audio.clips), 0
        hidden = None if verbose is not None and listens(sys.stderr) else True  # None shows it only in a terminal
        with tqdm(total=n_frames, unit="frames", disable=hidden) as progress:
            show = progress.write if verbose and listens(sys.stdout) else None
            for start, end in self.audio.clips:
                seek = start
                while seek < end:
                    segments, after = self._window(seek, min(N_FRAMES, end - seek), show)
                    for segment in segments:
                        yield {"id": n_segments, **self.audio.to_recording_time(segment)}
                        n_segments += 1
                    progress.update(min(end, after) - seek)
                    seek = after

    def _window(self, seek: int, size: int, show: Callable[[str], None] | None) -> tuple[list[Segment], int]:
        """Transcribe a window.

        Args:
            seek: Its first frame.
            size: The number of its frames that hold audio.
            show: Called with a line for each segment; None to show nothing.

        Returns:
            Its segments, and the frame to continue at.
        """
        mel = self.audio.window(seek, size)
        features = self.model.embed_audio(mel)
        language, tokenizer = self._window_language(features)
        (result,) = decode_with_fallback(
            self.model,
            mel[None],
            features,
            [language],
            self._prompt(),
            self.options,
            self.rng,
            self.trace,
        )
        n_audio_ctx = self.model.dims.n_audio_ctx
        segments, advance = segments_from_result(result, seek, size, tokenizer, n_audio_ctx, self.options)
        after = seek + advance
        if not segments:
            return [], after
        if self.options.word_timestamps:
            position = WindowPosition(seek, size, self.audio.content_frames)
            is_fixed = single_timestamp_ending(result.tokens, tokenizer.timestamp_begin)
            timed_segments, after = self._time_words(segments, features, tokenizer, position, after, is_fixed)
            if timed_segments is None:
                return [], after
            segments = timed_segments
        for segment in segments:
            if show:
                show(segment_line(self.audio.to_recording_time(segment)))
            if segment["start"] == segment["end"] or not segment["text"].strip():
                segment.update({"text": "", "tokens": [], "words": []})
        self.previous_tokens += [token for segment in segments for token in segment["tokens"]]
        if not self.options.condition_on_previous_text or result.temperature > _MAX_PROMPT_TEMPERATURE:
            self.previous_tokens.clear()
        return segments, after

    def _window_language(self, features: AudioFeatures) -> tuple[str, Tokenizer]:
        """Return the language of a window, and its tokenizer."""
        if not (self.options.multilingual and self.model.is_multilingual):
            return self.language, self.tokenizer
        language = most_probable_language(detect_language(self.model, features)[1][0])
        return language, self._tokenizer(language)

    def _prompt(self) -> list[int]:
        """Return the prompt of the next window, with as many previous tokens as fit."""
        if not self.static_prompt:
            return list(self.previous_tokens)
        n_left = max(0, self.model.dims.n_text_ctx // 2 - 1 - len(self.static_prompt))
        n_dropped = len(self.previous_tokens) - min(n_left, len(self.previous_tokens))
        return [*self.static_prompt, *self.previous_tokens[n_dropped:]]

    def _time_words(
        self,
        segments: list[Segment],
        features: AudioFeatures,
        tokenizer: Tokenizer,
        position: WindowPosition,
        after: int,
        is_fixed: bool,
    ) -> tuple[list[Segment] | None, int]:
        """Give the segments of a window their words, and leave out those that may be hallucinated.

        Args:
            segments: The segments, changed in place.
            features: The window's audio features.
            tokenizer: The tokenizer of the window's language.
            position: The window's position in the recording.
            after: The frame to continue at by timestamps.
            is_fixed: Continue there wherever the last word ends.

        Returns:
            The segments to keep, and the frame to continue at. None if the window begins with
            silence to skip first.
        """
        eot, last_speech_timestamp = tokenizer.eot, self.last_speech_timestamp
        text = AlignmentInput(tokenizer, text_tokens(segments, eot), position.segment_size)
        (words,) = find_alignments(self.model, [text], features, trace=self.trace)
        assign_words(segments, words, eot, self.options.punctuations, last_speech_timestamp, self.trace)
        end, threshold = get_end(segments), self.options.hallucination_silence_threshold
        if end is not None and end > position.start and not is_fixed:
            after = round(end * FRAMES_PER_SECOND)
            if threshold is not None and position.end - end <= threshold:
                after = position.seek + position.segment_size
        remaining: list[Segment] | None = segments
        if threshold is not None:
            remaining, after = skip_hallucinations(segments, position, after, threshold, last_speech_timestamp)
        if remaining:
            self.last_speech_timestamp = get_end(remaining) or last_speech_timestamp
        return remaining, after
