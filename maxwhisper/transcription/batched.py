"""Transcription of many windows at once, which is not OpenAI Whisper's algorithm.

OpenAI Whisper transcribes a recording window by window: where one ends decides where the next
begins, and the text of one is the prompt of the next. Here recordings are cut beforehand, where
they are quietest, into independent pieces, and many pieces are decoded at once, so that weights are
read once for all of them. The text around a cut may differ.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, zip_longest
from typing import Any

import numpy as np

from maxwhisper.audio import HOP_LENGTH, N_FRAMES, SAMPLE_RATE, Audio, pad_or_trim
from maxwhisper.errors import AudioError, OptionError
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer, get_tokenizer
from maxwhisper.transcript import Segment, Transcript, get_end, text_of, text_tokens
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import AudioInput, language_of
from maxwhisper.transcription.timing import AlignmentInput, WordTiming, assign_words, find_alignments
from maxwhisper.transcription.window import decode_with_fallback, segments_from_result

EARLIEST_CUT = N_FRAMES * 13 // 15  # late, because a short piece costs the encoder as much as a whole window
PAUSE = 30  # frames, as long as a pause between words


def transcribe_batched(
    model: SpeechModel,
    recordings: Iterable[Audio],
    batch_size: int = 8,
    *,
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    initial_prompt: str | None = None,
    word_timestamps: bool = False,
    prepend_punctuations: str = PREPEND_PUNCTUATIONS,
    append_punctuations: str = APPEND_PUNCTUATIONS,
    clip_timestamps: str | Sequence[float] = "0",
    vad_filter: bool = False,
    vad_parameters: object = None,
    audio_track: int | None = None,
    rng: np.random.Generator | None = None,
    **decode_options: Any,
) -> Iterator[Transcript | AudioError]:
    """Transcribe recordings, several windows at a time, and yield transcripts in order.

    The options are those of `maxwhisper.iter_segments` that independent windows can have;
    `initial_prompt` is the prompt of every window.

    Args:
        model: The model.
        recordings: Files, or float samples [n_samples] at 16 kHz.
        batch_size: The number of windows to decode at once.
        temperature: Temperatures to try in order, until the text of a window is acceptable.
        compression_ratio_threshold: Try again if zlib shortens the text more times than this.
        logprob_threshold: Try again if the mean log-probability of the tokens is below this.
        no_speech_threshold: Drop improbable text if its no-speech probability is above this.
        initial_prompt: Text to prompt every window with.
        word_timestamps: Give each segment its `words`.
        prepend_punctuations: Marks to join to the word after them.
        append_punctuations: Marks to join to the word before them.
        clip_timestamps: Parts to transcribe: `start,end,…` in seconds; the last end is optional.
        vad_filter: Skip audio in which Silero's voice activity detector finds no speech.
        vad_parameters: Fields of `transcription.silence.VadOptions`, as a mapping or an object.
        audio_track: The index of each file's sound track, from 0; by default FFmpeg chooses.
        rng: The source of random draws; by default the same sequence each time.
        decode_options: Fields of `maxwhisper.DecodingOptions`.

    Returns:
        An iterator with the transcript of each recording, or an AudioError if it can't be used.

    Raises:
        OptionError: An option can't be used.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size {batch_size} is less than 1")
    options = TranscriptionOptions(
        temperature=temperature,
        compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold,
        no_speech_threshold=no_speech_threshold,
        initial_prompt=initial_prompt,
        word_timestamps=word_timestamps,
        prepend_punctuations=prepend_punctuations,
        append_punctuations=append_punctuations,
        clip_timestamps=clip_timestamps,
        vad_filter=vad_filter,
        vad_parameters=vad_parameters,
        audio_track=audio_track,
        decode_options=decode_options,
    )
    return transcribe_batched_with(options, model, recordings, batch_size, rng=rng)


def transcribe_batched_with(
    options: TranscriptionOptions,
    model: SpeechModel,
    recordings: Iterable[Audio],
    batch_size: int,
    *,
    rng: np.random.Generator | None = None,
) -> Iterator[Transcript | AudioError]:
    """Transcribe recordings as `transcribe_batched`, with options made beforehand.

    Options that need one window after the other have no effect.
    """
    return _BatchedTranscription(model, options, rng or np.random.default_rng(0)).run(recordings, batch_size)


@dataclass
class Recording:
    """A recording in progress."""

    audio: AudioInput
    language: str
    n_left: int = 0  # the number of pieces that are not decoded yet
    decoded: list["DecodedPiece"] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """Part of a recording, at most 30 s long, that is decoded independently of the others."""

    recording: Recording
    clip: int  # the index of the clip that it is part of
    seek: int  # its first frame
    mel: np.ndarray  # float32 [n_mels, n_frames]

    @property
    def n_frames(self) -> int:
        return self.mel.shape[1]

    @property
    def start(self) -> float:
        """When it begins, in seconds."""
        return self.seek * HOP_LENGTH / SAMPLE_RATE

    def follows(self, other: "Piece") -> bool:
        """Tell whether it comes later in the recording; clips may overlap in any order."""
        return self.clip == other.clip or self.seek >= other.seek + other.n_frames

    def after(self, n_frames: int) -> "Piece":
        """Return the rest after so many frames."""
        return replace(self, seek=self.seek + n_frames, mel=self.mel[:, n_frames:])


@dataclass(frozen=True)
class DecodedPiece:
    """A decoded piece: the segments at its start, and their words with `word_timestamps`."""

    piece: Piece
    segments: list[Segment]
    alignment: list[WordTiming]


class _BatchedTranscription:
    """The state of a batched transcription: recordings whose pieces are not all decoded yet."""

    def __init__(self, model: SpeechModel, options: TranscriptionOptions, rng: np.random.Generator) -> None:
        self.model = model
        self.options = options
        self.rng = rng
        self.pending = deque[Recording | AudioError]()  # begun and not yielded yet, in order

    def run(self, recordings: Iterable[Audio], batch_size: int) -> Iterator[Transcript | AudioError]:
        """Yield the transcript of each recording, or the error if it can't be used."""
        new, rests = self._pieces(recordings), list[Piece]()
        while batch := [*rests, *islice(new, max(0, batch_size - len(rests)))]:
            batch, rests = batch[:batch_size], batch[batch_size:]
            rests += self._decode(batch)
            yield from self._finished()
        yield from self._finished()

    def _pieces(self, recordings: Iterable[Audio]) -> Iterator[Piece]:
        """Read recordings one after the other, and cut each into pieces."""
        options = self.options
        for audio in recordings:
            try:
                audio_input = AudioInput.of(self.model, audio, options.clips, options.vad, options.audio_track)
            except AudioError as error:
                self.pending.append(error)
                continue
            language, _ = language_of(self.model, audio_input, options.language)
            recording = Recording(audio_input, language)
            pieces = [
                Piece(recording, i, start + a, audio_input.mel[:, start + a : start + b])
                for i, (start, end) in enumerate(audio_input.clips)
                if start < end
                for a, b in pairwise(cut(audio_input.mel[:, start:end]))
            ]
            recording.n_left = len(pieces)
            self.pending.append(recording)
            yield from pieces

    def _decode(self, batch: Sequence[Piece]) -> list[Piece]:
        """Decode pieces together, and return the rest of each piece that is not complete."""
        mel = np.stack([pad_or_trim(piece.mel, N_FRAMES) for piece in batch])
        features = self.model.embed_audio(mel)
        languages, prompt = [piece.recording.language for piece in batch], self.options.initial_prompt
        results = decode_with_fallback(self.model, mel, features, languages, prompt, self.options, self.rng)

        n_audio_ctx, tokenizers = self.model.dims.n_audio_ctx, [self._tokenizer(language) for language in languages]
        segments, advances = list[list[Segment]](), list[int]()
        for piece, result, tokenizer in zip(batch, results, tokenizers):
            piece_segments, advance = segments_from_result(
                result, piece.seek, piece.n_frames, tokenizer, n_audio_ctx, self.options
            )
            segments.append(piece_segments)
            advances.append(advance)

        alignments = list[list[WordTiming]]([] for _ in batch)
        if self.options.word_timestamps:
            inputs = [
                AlignmentInput(tokenizer, text_tokens(piece_segments, tokenizer.eot), piece.n_frames)
                for piece, piece_segments, tokenizer in zip(batch, segments, tokenizers)
            ]
            alignments = find_alignments(self.model, inputs, features)

        rests = list[Piece]()
        for decoded, advance in zip(map(DecodedPiece, batch, segments, alignments), advances):
            piece = decoded.piece
            piece.recording.decoded.append(decoded)
            if 0 < advance < piece.n_frames:
                rests.append(piece.after(advance))
            else:
                piece.recording.n_left -= 1
        return rests

    def _tokenizer(self, language: str) -> Tokenizer:
        model = self.model
        return get_tokenizer(
            model.is_multilingual, num_languages=model.num_languages, language=language, task=self.options.task
        )

    def _finished(self) -> Iterator[Transcript | AudioError]:
        """Yield the transcripts of complete recordings, up to the first incomplete one."""
        while self.pending and (isinstance(self.pending[0], AudioError) or not self.pending[0].n_left):
            first = self.pending.popleft()
            yield first if isinstance(first, AudioError) else self._transcript(first)

    def _transcript(self, recording: Recording) -> Transcript:
        """Put the segments of a recording's pieces together."""
        tokenizer, timed = self._tokenizer(recording.language), self.options.word_timestamps
        segments, last_speech_timestamp = list[Segment](), 0.0
        in_order = sorted(recording.decoded, key=lambda decoded: (decoded.piece.clip, decoded.piece.seek))
        for decoded, following in zip_longest(in_order, in_order[1:]):
            piece, piece_segments = decoded.piece, decoded.segments
            if timed and piece_segments:
                punctuations = self.options.punctuations
                assign_words(piece_segments, decoded.alignment, tokenizer.eot, punctuations, last_speech_timestamp)
                last_speech_timestamp = get_end(piece_segments) or last_speech_timestamp
            end = following.piece.start if following and following.piece.follows(piece) else np.inf
            keep_within(piece_segments, piece.start, end)
            segments += (s for s in piece_segments if s["text"].strip() and s["start"] < s["end"])
        segments = [{"id": i, **recording.audio.to_recording_time(segment)} for i, segment in enumerate(segments)]
        return {"text": text_of(segments, tokenizer), "segments": segments, "language": recording.language}


def cut(mel: np.ndarray) -> list[int]:
    """Find where to cut a spectrogram, float32 [n_mels, n_frames], into pieces of at most 30 s.

    Each cut is the centre of the quietest 0.3 s in the last 4 s of a window.

    Returns:
        The frames to cut at, including 0 and n_frames.
    """
    loudness, n_frames = mel.mean(axis=0), mel.shape[1]
    cuts = [0]
    while n_frames - cuts[-1] > N_FRAMES:
        earliest = cuts[-1] + EARLIEST_CUT
        around = np.convolve(loudness[earliest : cuts[-1] + N_FRAMES], np.ones(PAUSE), mode="valid")
        cuts.append(earliest + int(np.argmin(around)) + PAUSE // 2)
    return [*cuts, n_frames]


def keep_within(segments: Sequence[Segment], start: float, end: float) -> None:
    """Limit the times of a piece's segments and of their words, in place.

    A segment that has words begins and ends with them. One that lies outside is left without a
    duration.

    Args:
        segments: The segments, in order.
        start: The earliest start of the first, in seconds; each other one starts after the one
            before has ended.
        end: The latest end, in seconds.
    """

    def within(seconds: float) -> float:
        return min(max(seconds, start), end)

    for segment in segments:
        words = segment.get("words", [])
        segment["start"], segment["end"] = within(segment["start"]), within(segment["end"])
        for word in words:
            word["start"], word["end"] = within(word["start"]), within(word["end"])
        if words:
            segment["start"], segment["end"] = words[0]["start"], words[-1]["end"]
        start = segment["end"]
