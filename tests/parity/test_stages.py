"""Stages outside the network: correct results pass in any format, and mistakes are named."""

from itertools import product
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from maxwhisper import load_audio, log_mel_spectrogram
from maxwhisper.audio import N_SAMPLES
from reference.clips import all_clips, packaged_clips
from reference.parity.stages import judge_log_mel, judge_samples, judge_tokens
from reference.parity.transcripts import Transcription, Window

NOISE = 0.3 * np.random.default_rng(0).standard_normal((44100, 2))


@pytest.mark.parametrize(
    ("name", "samples", "rate"),
    [
        ("loud.wav", 6 * NOISE[:, 0], 16000),
        ("mono.flac", NOISE[:, 0].clip(-1, 0.99), 16000),
        ("stereo.mp3", NOISE, 16000),
        ("stereo.wav", NOISE, 44100),
        ("telephone.wav", NOISE[:, 0], 8000),
        ("surround.wav", np.tile(NOISE, 3), 48000),
        ("silent.wav", 0 * NOISE, 44100),
        ("stereo.ogg", NOISE, 48000),
        ("odd.wav", NOISE, 44056),
        ("fast.flac", NOISE, 192000),
        ("clipped.wav", 3 * NOISE, 44100),
        ("short.wav", NOISE[:300], 44100),
        ("empty.wav", NOISE[:0], 44100),
    ],
)
def test_any_audio_format_passes(name: str, samples: np.ndarray, rate: int, tmp_path: Path) -> None:
    path = tmp_path / name
    soundfile.write(path, samples, rate, subtype="FLOAT" if name == "loud.wav" else None)
    stage = judge_samples(path, load_audio(path))
    assert stage.passes, stage


def test_mistakes_with_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, NOISE, 44100)
    samples = load_audio(path)
    assert judge_samples(path, samples).passes
    assert not judge_samples(
        path, np.interp(np.arange(len(samples)) * 48 / 44.1, np.arange(len(samples)), samples)
    ).passes
    assert not judge_samples(path, 1.05 * samples).passes
    assert not judge_samples(path, np.roll(samples, 3)).passes
    one_channel = tmp_path / "left.wav"
    soundfile.write(one_channel, NOISE[:, 0], 44100)
    assert not judge_samples(path, load_audio(one_channel)).passes


FAINT = np.random.default_rng(1).uniform(-1e-4, 1e-4, 60 * 44100)


def speech_with_noise(rate: int) -> np.ndarray:
    """Return speech with noise at all frequencies, as a microphone adds.

    Without noise, every third sample would be correct resampling from 48 kHz.
    """
    speech = librosa.resample(packaged_clips()["en/counting"].samples, orig_sr=16000, target_sr=rate)
    return speech + 0.01 * np.random.default_rng(2).standard_normal(len(speech))


RATES = (8000, 11025, 22050, 44100, 48000, 96000)


@pytest.mark.parametrize(
    ("name", "rate"), [*product(("mono.wav", "stereo.flac"), RATES), *product(["mono.mp3"], RATES[:-1])]
)
def test_linear_interpolation_and_faint_noise_fail_at_any_rate(name: str, rate: int, tmp_path: Path) -> None:
    path, mono = tmp_path / name, speech_with_noise(rate)
    soundfile.write(path, np.stack([0.5 * mono, mono], axis=1) if "stereo" in name else mono, rate)
    samples = load_audio(path)
    stage = judge_samples(path, samples)
    assert stage.passes, stage
    stored = soundfile.read(path, always_2d=True)[0].mean(axis=1)
    interpolated = np.interp(np.arange(len(samples)) * rate / 16000, np.arange(len(stored)), stored)
    for wrong in (interpolated.astype(np.float32), samples + FAINT[: len(samples)]):
        stage = judge_samples(path, wrong)
        assert not stage.passes, stage


def test_every_clip_passes_and_fails_with_faint_noise() -> None:
    for clip in all_clips().values():
        samples = clip.samples
        stage = judge_samples(clip.path, samples)
        assert stage.passes, (clip.name, stage)
        noise = np.resize(FAINT, len(samples))
        assert not judge_samples(clip.path, samples + noise).passes, clip.name


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mistakes_with_the_log_mel_are_named(n_mels: int) -> None:
    samples = packaged_clips()["en/counting"].samples
    log_mel = log_mel_spectrogram(samples, n_mels, padding=N_SAMPLES)
    assert judge_log_mel(samples, log_mel).passes
    for wrong in (log_mel * 1.001, np.roll(log_mel, 1, axis=1), np.maximum(log_mel, log_mel.max() - 1.5)):
        stage = judge_log_mel(samples, wrong)
        assert stage.name == "log_mel"
        assert not stage.passes


def test_a_token_that_the_rules_forbid_is_named() -> None:
    class Forbid:
        def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
            logits[:, 3] = -np.inf

    logits = [np.array([0, 1, 2, 3], np.float32)] * 2
    theirs = Transcription({}, [Window([9], [2], 0.0, filters=[Forbid()])])
    (stage,) = judge_tokens(Transcription({}, [Window([9], [2, 3], 0.0, logits=logits)]), theirs, eot=2)
    assert stage.name == "decoding.step.1.token"
    assert stage.says == "window 0: 3, but OpenAI Whisper's rules choose 2 from the same logits"
    assert list(judge_tokens(Transcription({}, [Window([9], [2], 0.0, logits=logits)]), theirs, eot=2)) == []


def test_different_forbidden_tokens_are_named_whatever_token_is_chosen() -> None:
    class Forbid:
        def apply(self, logits: np.ndarray, tokens: np.ndarray) -> None:
            logits[:, 3] = -np.inf

    logits = [np.array([0, 1, 9, 3], np.float32)] * 2
    theirs = Transcription({}, [Window([9], [2], 0.0, filters=[Forbid()])])
    allowed = [np.packbits([1, 1, 1, 0]), np.packbits([1, 0, 1, 0])]
    (stage,) = judge_tokens(Transcription({}, [Window([9], [2], 0.0, logits=logits, allowed=allowed)]), theirs, eot=2)
    assert stage.name == "decoding.step.1.allowed"
    assert stage.says == "window 0: 1 tokens are masked only by MAX or only by OpenAI Whisper; the first is 1"
