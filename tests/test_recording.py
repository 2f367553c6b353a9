"""Clips, languages, prompts and options of transcribing one recording."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maxwhisper import OptionError, iter_segments, transcribe
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.cli import main
from maxwhisper.tokenizer import get_tokenizer
from maxwhisper.transcription.recording import AudioInput, clips_of, language_of
from reference.clips import packaged_clips
from reference.parity.observe import transcribe_with_max
from tests.support.implementations import Implementations

LONG = np.concatenate([clip.samples for clip in packaged_clips().values() if clip.language == "en"] * 4)


@pytest.mark.parametrize(
    ("timestamps", "clips"),
    [
        ("0", [(0, np.inf)]),
        ("", [(0, np.inf)]),
        ([], [(0, np.inf)]),
        ("1.5,2", [(1.5, 2)]),
        ([3, 4, 1], [(3, 4), (1, np.inf)]),
        (np.array([3.0, 4.0]), [(3, 4)]),
    ],
)
def test_clip_timestamps_are_parsed(timestamps: Any, clips: list[tuple[float, float]]) -> None:
    assert clips_of(timestamps) == clips


@pytest.mark.parametrize("timestamps", ["x", "2,1", "-1", "1,1", "nan,3"])
def test_invalid_clips_are_named(timestamps: str) -> None:
    with pytest.raises(OptionError, match=timestamps):
        clips_of(timestamps)


def test_a_clip_that_ends_after_the_recording_ends_with_it(tiny_en: Implementations) -> None:
    samples = packaged_clips()["en/counting"].samples
    whole = transcribe(tiny_en.model, samples, temperature=0.0)
    assert transcribe(tiny_en.model, samples, temperature=0.0, clip_timestamps="0,1000") == whole
    assert transcribe(tiny_en.model, samples, temperature=0.0, clip_timestamps="100,1000")["segments"] == []


def test_segments_are_yielded_as_they_are_decoded(tiny_en: Implementations, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = list[np.ndarray]()
    embed = tiny_en.model.embed_audio

    def embed_audio(mel: np.ndarray) -> Any:
        windows.append(mel)
        return embed(mel)

    monkeypatch.setattr(tiny_en.model, "embed_audio", embed_audio)
    segments, info = iter_segments(tiny_en.model, LONG, temperature=0.0)
    assert (info.language, info.language_probability, info.duration) == ("en", 1.0, len(LONG) / SAMPLE_RATE)
    assert info.duration_after_vad == pytest.approx(info.duration, abs=0.01)
    assert windows == []
    first = next(segments)
    assert len(windows) == 1
    assert [first, *segments] == transcribe(tiny_en.model, LONG, temperature=0.0)["segments"]


def prompts(implementations: Implementations, **options: Any) -> list[list[int]]:
    windows = transcribe_with_max(implementations.model, LONG, temperature=0.0, **options).windows
    assert len(windows) > 2
    return [window.initial_tokens for window in windows]


def test_hotwords_stand_before_every_window(tiny_en: Implementations) -> None:
    tokenizer = get_tokenizer(False)
    hot = tokenizer.encode(" Samuel Beckett")
    for tokens in prompts(tiny_en, hotwords="Samuel Beckett"):
        assert tokens[: 1 + len(hot)] == [tokenizer.sot_prev, *hot]
    unconditioned = prompts(tiny_en, hotwords="Samuel Beckett", condition_on_previous_text=False)
    assert {tuple(tokens) for tokens in unconditioned} == {(tokenizer.sot_prev, *hot, tokenizer.sot)}


@pytest.mark.parametrize("n_words", [3, 200, 223, 400])
def test_carried_prompts_leave_room_for_earlier_text(n_words: int, tiny_en: Implementations) -> None:
    """Earlier text gets the rest of the 223 tokens."""
    tokenizer = get_tokenizer(False)
    for tokens in prompts(tiny_en, initial_prompt=" so" * n_words, carry_initial_prompt=True):
        assert tokens[0] == tokenizer.sot_prev and tokens[-1] == tokenizer.sot
        assert len(tokens) <= 225
        assert tokens[1 : 1 + min(n_words, 223)] == tokenizer.encode(" so") * min(n_words, 223)


def one_window_each(*names: str) -> np.ndarray:
    """Return clips, each repeated to fill one window, joined: float32 [n_samples]."""
    return np.concatenate([np.resize(packaged_clips()[name].samples, 30 * SAMPLE_RATE) for name in names])


def clip_in(language: str) -> str:
    return next(name for name, clip in packaged_clips().items() if clip.language == language)


def test_each_window_has_its_language(base: Implementations) -> None:
    samples = one_window_each(clip_in("fr"), clip_in("es"))
    tokenizer = get_tokenizer(True)
    for multilingual, languages in ((True, {"fr", "es"}), (False, {"fr"})):
        windows = transcribe_with_max(base.model, samples, temperature=0.0, multilingual=multilingual).windows
        tokens = {window.initial_tokens[window.initial_tokens.index(tokenizer.sot) + 1] for window in windows}
        assert tokens == {tokenizer.to_language_token(language) for language in languages}


def test_the_language_is_detected_from_several_windows(base: Implementations) -> None:
    audio = AudioInput.of(base.model, one_window_each(clip_in("fr"), clip_in("es"), clip_in("es")), [(0, np.inf)], None)
    language, probability = language_of(base.model, audio, None, n_windows=3)
    assert language == "fr" and probability > 0.5
    # If no window reaches the threshold, the majority decides.
    assert language_of(base.model, audio, None, n_windows=3, threshold=1.0)[0] == "es"
    assert language_of(base.model, audio, None, n_windows=1, threshold=1.0)[0] == "fr"
    assert language_of(base.model, audio, "German") == ("German", 1.0)
    with pytest.raises(OptionError, match="does not know language 'yue'"):  # new in large-v3
        iter_segments(base.model, LONG, language="yue")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"language_detection_segments": 0}, "language_detection_segments 0"),
        ({"hallucination_silence_threshold": -1.0}, "hallucination_silence_threshold -1"),
        ({"vad_filter": True, "vad_parameters": {"threshold": 7}}, "threshold 7"),
    ],
)
def test_unusable_recording_options_are_named(options: dict[str, Any], match: str, tiny_en: Implementations) -> None:
    with pytest.raises(OptionError, match=match):
        iter_segments(tiny_en.model, LONG, **options)


def test_word_times_of_translations_cause_a_warning(tiny_en: Implementations) -> None:
    with pytest.warns(UserWarning, match="if speech is translated"):
        iter_segments(tiny_en.model, LONG[:SAMPLE_RATE], task="translate", word_timestamps=True)


def test_the_command_line_names_unusable_options_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in (
        ("--hallucination_silence_threshold", "-1"),
        ("--clip_timestamps", "2,1"),
        ("--audio_track", "-1"),
    ):
        assert main(["transcribe", "missing.wav", "--model", "missing", option, value, "-o", str(tmp_path)]) == 1
        assert f"{option[2:]} " in capsys.readouterr().err
