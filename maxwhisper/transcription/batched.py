"""Many windows at once, of one recording or of many: not OpenAI Whisper's algorithm.

OpenAI's goes through a recording window by window, for where one ends says where the next begins, and what was said in one is the prompt
of the next. Here recordings are cut beforehand, where they are quietest, into pieces that know nothing of each other, and many pieces are
decoded at once, so that weights are read once for all. A sentence that is cut in two may read otherwise.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, zip_longest
from typing import Any

import numpy as np

from maxwhisper.audio import HOP_LENGTH, N_FRAMES, SAMPLE_RATE, Audio, check_track, pad_or_trim
from maxwhisper.decoding import DecodingOptions, DecodingResult, DecodingTask
from maxwhisper.engine.decoder import AudioFeatures
from maxwhisper.errors import AudioError, OptionError
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer, get_tokenizer
from maxwhisper.transcript import Segment, Transcript, get_end, text_of, text_tokens
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.recording import Clip, Heard, clips_of, language_of
from maxwhisper.transcription.segments import Thresholds, segments_of, split_at_timestamps
from maxwhisper.transcription.sequential import options_for_each
from maxwhisper.transcription.silence import VadOptions
from maxwhisper.transcription.timing import Spoken, WordTiming, find_alignments, place_words

EARLIEST_CUT = N_FRAMES * 13 // 15  # late, for a piece costs the encoder as much as a whole window
PAUSE = 30  # frames, as long as a pause between words


@dataclass(frozen=True)
class Piece:
    """Some frames of a recording, log-mel [n_mels, n_frames], of at most 30 s; clip: in which of the parts that are asked for."""

    recording: int
    clip: int
    seek: int
    mel: np.ndarray
    language: str

    @property
    def start(self) -> float:
        """When it begins, in seconds."""
        return self.seek * HOP_LENGTH / SAMPLE_RATE

    def follows(self, other: "Piece") -> bool:
        """Whether it is of what comes later in the recording; clips may come in any order, and overlap."""
        return self.clip == other.clip or self.seek >= other.seek + other.mel.shape[1]

    def after(self, n_frames: int) -> "Piece":
        """What is left behind so many frames."""
        return replace(self, seek=self.seek + n_frames, mel=self.mel[:, n_frames:])


@dataclass
class Recording:
    """A recording under way: how many pieces are still to be decoded, and what was found in the others."""

    heard: Heard
    language: str
    n_left: int
    found: list[tuple[Piece, list[Segment], list[WordTiming]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Settings:
    """What is the same for all recordings."""

    attempts: Sequence[DecodingOptions]
    thresholds: Thresholds
    punctuations: tuple[str, str] | None  # to prepend, and to append, where words are timed
    clips: Sequence[Clip]
    vad: VadOptions | None
    audio_track: int | None
    rng: np.random.Generator


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
    """Transcribe files, or float samples [n_samples] at 16 kHz, `batch_size` windows at a time, and yield results in their order.

    Arguments and results are those of `transcribe`, but for what pieces that know nothing of each other can't have: every one has the same
    prompt, `initial_prompt`. Where a recording can't be used there is an AudioError in place of its transcript; the others are done.

    Raises OptionError for options that can't be used.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size {batch_size} is less than 1")
    check_track(audio_track)
    settings = _Settings(
        attempts=options_for_each(temperature, {**decode_options, "prompt": initial_prompt}),
        thresholds=Thresholds(compression_ratio_threshold, logprob_threshold, no_speech_threshold),
        punctuations=(prepend_punctuations, append_punctuations) if word_timestamps else None,
        clips=clips_of(clip_timestamps),
        vad=VadOptions.of(vad_parameters) if vad_filter else None,
        audio_track=audio_track,
        rng=rng or np.random.default_rng(0),
    )
    return _transcribe(model, recordings, batch_size, settings)


def _transcribe(model: SpeechModel, recordings: Iterable[Audio], batch_size: int, settings: _Settings) -> Iterator[Transcript | AudioError]:
    under_way, failed = dict[int, Recording](), dict[int, AudioError]()  # those that are begun and not yielded yet
    task = settings.attempts[0].task

    def pieces() -> Iterator[Piece]:
        for i, recording in enumerate(recordings):
            try:
                heard = Heard.of(model, recording, settings.clips, settings.vad, settings.audio_track)
            except AudioError as error:
                failed[i] = error
                continue
            language, _ = language_of(model, heard, settings.attempts[0].language)
            cuts = [[start + at for at in cut(heard.mel[:, start:end])] if start < end else [] for start, end in heard.clips]
            found = [Piece(i, k, a, heard.mel[:, a:b], language) for k, some in enumerate(cuts) for a, b in pairwise(some)]
            under_way[i] = Recording(heard, language, len(found))
            yield from found

    def finished() -> Iterator[Transcript | AudioError]:
        for i in sorted([*under_way, *failed]):
            if i in failed:
                yield failed.pop(i)
            elif under_way[i].n_left:
                return
            else:
                recording = under_way.pop(i)
                yield _transcript(recording, tokenizer_for(recording.language), settings.punctuations)

    def tokenizer_for(language: str) -> Tokenizer:
        return get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=task)

    new, rests = pieces(), list[Piece]()
    while batch := [*rests, *islice(new, max(0, batch_size - len(rests)))]:
        batch, rests = batch[:batch_size], batch[batch_size:]
        features, results = _decode(model, batch, settings)
        found = list[list[Segment]]()
        for piece, result in zip(batch, results):
            n_frames = advance = piece.mel.shape[1]
            segments = list[Segment]()
            if not settings.thresholds.call_silent(result):
                tokenizer = tokenizer_for(piece.language)
                spans, advance = split_at_timestamps(result.tokens, tokenizer.timestamp_begin, n_frames, model.dims.n_audio_ctx)
                segments = segments_of(tokenizer, piece.seek, spans, result)
            found.append(segments)
            if 0 < advance < n_frames:
                rests.append(piece.after(advance))
            else:
                under_way[piece.recording].n_left -= 1
        nothing = list[list[WordTiming]]([] for _ in batch)
        alignments = _align(model, features, batch, found, tokenizer_for) if settings.punctuations else nothing
        for piece, segments, alignment in zip(batch, found, alignments):
            under_way[piece.recording].found.append((piece, segments, alignment))
        yield from finished()
    yield from finished()


def cut(mel: np.ndarray) -> list[int]:
    """The frames where windows of a log-mel spectrogram [n_mels, n_frames] begin, and its end: at most 30 s apart, and in the middle
    of the quietest 0.3 s of what a cut may be in, the last 4 s of a window.
    """
    loudness, n_frames = mel.mean(axis=0), mel.shape[1]
    cuts = [0]
    while n_frames - cuts[-1] > N_FRAMES:
        earliest = cuts[-1] + EARLIEST_CUT
        around = np.convolve(loudness[earliest : cuts[-1] + N_FRAMES], np.ones(PAUSE), mode="valid")
        cuts.append(earliest + int(np.argmin(around)) + PAUSE // 2)
    return [*cuts, n_frames]


def _decode(model: SpeechModel, batch: Sequence[Piece], settings: _Settings) -> tuple[AudioFeatures, list[DecodingResult]]:
    """Decode pieces together; those whose text is no good again, at the next temperature. Also returns the features of them all."""
    features, results, todo = _embed(model, batch), dict[int, DecodingResult](), list(range(len(batch)))
    for options in settings.attempts:
        some = features if len(todo) == len(batch) else _embed(model, [batch[i] for i in todo])
        again = DecodingTask(model, options, settings.rng).run(some, [batch[i].language for i in todo])
        results |= dict(zip(todo, again))
        todo = [i for i in todo if not settings.thresholds.accept(results[i])]
        if not todo:
            break
    return features, [results[i] for i in range(len(batch))]


def _embed(model: SpeechModel, pieces: Sequence[Piece]) -> AudioFeatures:
    return model.embed_audio(np.stack([pad_or_trim(piece.mel, N_FRAMES) for piece in pieces]))


def _align(
    model: SpeechModel,
    features: AudioFeatures,
    batch: Sequence[Piece],
    found: Sequence[Sequence[Segment]],
    tokenizer_for: Callable[[str], Tokenizer],
) -> list[list[WordTiming]]:
    """The words of each piece's segments."""
    spoken = []
    for piece, segments in zip(batch, found):
        tokenizer = tokenizer_for(piece.language)
        spoken.append(Spoken(tokenizer, text_tokens(segments, tokenizer.eot), piece.mel.shape[1]))
    return find_alignments(model, spoken, features)


def _transcript(recording: Recording, tokenizer: Tokenizer, punctuations: tuple[str, str] | None) -> Transcript:
    segments, last_speech_timestamp = list[Segment](), 0.0
    pieces = sorted(recording.found, key=lambda found: (found[0].clip, found[0].seek))
    for (piece, some, alignment), following in zip_longest(pieces, pieces[1:]):
        if punctuations is not None and some:
            place_words(some, alignment, tokenizer.eot, punctuations, last_speech_timestamp)
            last_speech_timestamp = get_end(some) or last_speech_timestamp
        keep_within(some, piece.start, following[0].start if following and following[0].follows(piece) else np.inf)
        segments += (segment for segment in some if segment["text"].strip() and segment["start"] < segment["end"])
    segments = [{"id": i, **recording.heard.restored(segment)} for i, segment in enumerate(segments)]
    return {"text": text_of(segments, tokenizer), "segments": segments, "language": recording.language}


def keep_within(segments: Sequence[Segment], start: float, end: float) -> None:
    """Cut off, in place, what of a piece's segments and their words is before `start` or after `end`, in seconds, or in the segment before.

    A segment that has words begins and ends with them. One that lies outside altogether is left without a duration.
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
