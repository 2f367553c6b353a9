"""The input of a transcription: a recording's spectrogram, its clips, and its language."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maxwhisper.audio import FRAMES_PER_SECOND, N_FRAMES, N_SAMPLES, SAMPLE_RATE, Audio, as_samples, pad_or_trim
from maxwhisper.console import say
from maxwhisper.decoding import detect_language
from maxwhisper.decoding.language import most_probable_language
from maxwhisper.errors import OptionError
from maxwhisper.languages import LANGUAGES
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import get_tokenizer, language_code
from maxwhisper.transcript import Segment
from maxwhisper.transcription.silence import Speech, VadOptions, find_speech

Clip = tuple[float, float]  # start and end in seconds, the end perhaps infinite


@dataclass(frozen=True)
class AudioInput:
    """A recording as a model takes it."""

    mel: np.ndarray  # log-mel spectrogram, float32 [n_mels, content_frames + 3000], so that the last window is complete
    clips: Sequence[tuple[int, int]]  # the first frame of each part to transcribe, and the one after its last
    duration: float  # of the recording, in seconds
    speech: Speech | None  # the parts that hold speech and are joined, if silence is left out

    @classmethod
    def of(
        cls, model: SpeechModel, audio: Audio, clips: Sequence[Clip], vad: VadOptions | None, track: int | None = None
    ) -> "AudioInput":
        """Read a recording and compute its spectrogram.

        Args:
            model: The model.
            audio: A file, or float samples [n_samples] at 16 kHz.
            clips: Start and end, in seconds, of each part to transcribe.
            vad: The options of voice activity detection; None to keep silence.
            track: The index of the file's sound track.

        Raises:
            AudioError: The audio can't be read or used.
        """
        samples, speech = as_samples(audio, track), None
        duration = len(samples) / SAMPLE_RATE
        if vad is not None:
            speech = find_speech(samples, vad).within(_counted(clips, SAMPLE_RATE, len(samples)))
            samples, clips = speech.joined(samples), [(0.0, np.inf)]
        mel = model.log_mel_spectrogram(samples, padding=N_SAMPLES)
        return cls(mel, _counted(clips, FRAMES_PER_SECOND, mel.shape[-1] - N_FRAMES), duration, speech)

    @property
    def content_frames(self) -> int:
        return self.mel.shape[-1] - N_FRAMES

    def window(self, seek: int, size: int) -> np.ndarray:
        """Return `size` frames from frame `seek` on, padded to a window, float32 [n_mels, 3000]."""
        return pad_or_trim(self.mel[:, seek : seek + size], N_FRAMES)

    def to_recording_time(self, segment: Segment) -> Segment:
        """Return a segment with times of the recording before silence was left out."""
        return self.speech.restore(segment) if self.speech else segment


def _counted(clips: Sequence[Clip], rate: int, n: int) -> list[tuple[int, int]]:
    """Convert clips from seconds to samples or frames, of which the recording has n."""
    return [(round(start * rate), round(min(end * rate, n))) for start, end in clips]


def clips_of(timestamps: str | Sequence[float]) -> list[Clip]:
    """Parse the option `clip_timestamps`.

    Args:
        timestamps: Starts and ends in seconds, as numbers or comma-separated; the last end may be
            left out.

    Returns:
        Pairs of start and end.

    Raises:
        OptionError: They are not such numbers.
    """
    try:
        times = (
            [float(time) for time in (timestamps.split(",") if isinstance(timestamps, str) else timestamps)]
            if len(timestamps)
            else [0.0]
        )
    except ValueError as error:
        raise OptionError(f"clip_timestamps {timestamps!r} is not a list of numbers separated by commas") from error
    if len(times) % 2:
        times.append(np.inf)
    clips = list(zip(times[::2], times[1::2]))
    if not all(0 <= start < end for start, end in clips):
        raise OptionError(
            f"clip_timestamps {timestamps!r} is not start,end,start,end,… in seconds, each end later than its start"
        )
    return clips


def language_of(
    model: SpeechModel,
    audio: AudioInput,
    requested: str | None,
    verbose: bool | None = None,
    n_windows: int = 1,
    threshold: float = 0.5,
) -> tuple[str, float]:
    """Return the language of a recording, and its probability.

    Args:
        model: The model.
        audio: The recording.
        requested: The language, by code or name; None to detect it.
        verbose: Unless None, print the detected language.
        n_windows: The number of windows to detect it in, at most.
        threshold: Take the language of the first window in which it is more probable than this; if
            there is none, the most frequent language.

    Raises:
        OptionError: The model does not know the language.
    """
    if not model.is_multilingual:
        if requested is not None and language_code(requested) != "en":
            raise OptionError(f"this model knows only English, not {requested!r}; use a multilingual one, such as base")
        return requested or "en", 1.0
    if requested is not None:
        get_tokenizer(True, num_languages=model.num_languages).to_language_token(language_code(requested))
        return requested, 1.0
    detected = list[tuple[str, float]]()
    for seek in range(0, max(1, min(audio.content_frames, n_windows * N_FRAMES)), N_FRAMES):
        _, probs = detect_language(model, audio.window(seek, N_FRAMES))
        language = most_probable_language(probs)
        probability = probs[language]
        if probability > threshold:
            break
        detected.append((language, probability))
    else:
        language = Counter(language for language, _ in detected).most_common(1)[0][0]
        probability = max(probability for code, probability in detected if code == language)
    if verbose is not None:
        say(f"Detected language: {LANGUAGES[language].title()}")
    return language, probability
