"""Audio files become samples, and samples become log-mel spectrograms."""

import os
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import whisper

from maxwhisper import (
    AudioError,
    AudioWarning,
    load_audio,
    log_mel_spectrogram,
    pad_or_trim,
    transcribe,
    transcribe_batched,
)
from maxwhisper.audio import N_FFT, N_SAMPLES, SAMPLE_RATE, mel_filters
from reference.clips import all_clips, packaged_clips
from reference.numerics import definitions
from tests.support.audio import CODECS, chirp, ffmpeg, write_audio
from tests.support.implementations import Implementations


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("kind", CODECS)
def test_every_format_and_rate_gives_the_same_sound(kind: str, rate: int, tmp_path: Path) -> None:
    if kind in ("ogg", "webm") or (rate == 96000 and kind not in ("wav", "flac")):
        rate = 48000  # the only rate of Opus here, and the highest of MP3
    expected = chirp(1.0, SAMPLE_RATE)
    samples = load_audio(write_audio(tmp_path / f"chirp.{kind}", chirp(1.0, rate)[None], rate))
    assert samples.dtype == np.float32
    assert abs(len(samples) - len(expected)) < 0.15 * SAMPLE_RATE  # codecs add padding
    lags = np.correlate(samples, expected[2000:12000], "valid")
    lag = int(lags.argmax())
    assert abs(lag - 2000) < 1500
    matched = samples[lag : lag + 10000]
    assert np.corrcoef(matched, expected[2000:12000])[0, 1] > (0.9999 if kind in ("wav", "flac") else 0.98)


@pytest.mark.parametrize(("layout", "n"), [("stereo", 2), ("5.1", 6), ("7.1", 8)])
def test_channels_are_mixed_down(layout: str, n: int, tmp_path: Path) -> None:
    mono = load_audio(write_audio(tmp_path / "mono.wav", chirp(0.5, 48000)[None], 48000))
    mixed = load_audio(write_audio(tmp_path / "mixed.wav", np.tile(chirp(0.5, 48000), (n, 1)), 48000, layout))
    assert np.corrcoef(mono, mixed)[0, 1] > 0.9999


def test_one_channel_of_two_is_not_dropped(tmp_path: Path) -> None:
    left_only = np.stack([chirp(0.5, 16000), np.zeros(8000)])
    for channels in (left_only, left_only[::-1]):
        samples = load_audio(write_audio(tmp_path / "half.wav", channels, 16000, "stereo"))
        assert np.allclose(samples, chirp(0.5, 16000) / 2, atol=1e-3)  # 16 bits, dithered


def test_lossless_files_at_16_khz_come_out_bit_for_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    integers = rng.integers(-32768, 32767, 5000)
    for kind in ("wav", "flac"):
        samples = load_audio(write_audio(tmp_path / f"noise.{kind}", integers[None] / 32767, 16000))
        assert np.array_equal(samples, (integers / 32768).astype(np.float32)), kind


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_wav_files_written_to_a_pipe_are_whole(size: int, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "piped.wav", chirp(2.0, 16000)[None], 16000)
    whole = load_audio(path)
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:at] + size.to_bytes(4, "little") + data[at + 4 :])
    assert np.array_equal(load_audio(path), whole)


@pytest.mark.parametrize("n_bytes", [4, 5])
def test_chunks_before_a_wav_files_samples_are_skipped(n_bytes: int, tmp_path: Path) -> None:
    """A file that is cut after the chunk still causes a warning."""
    path = write_audio(tmp_path / "tagged.wav", chirp(2.0, 16000)[None], 16000)
    whole = load_audio(path)
    data = path.read_bytes()
    chunk = b"note" + n_bytes.to_bytes(4, "little") + bytes(n_bytes + n_bytes % 2)
    tagged = data[:12] + chunk + data[12:]
    path.write_bytes(tagged)
    assert np.array_equal(load_audio(path), whole)
    path.write_bytes(tagged[: len(tagged) // 2])
    with pytest.warns(AudioWarning, match=r"may be cut short: 2\.0 s by its header, 1\.0 s are there"):
        assert np.array_equal(load_audio(path), whole[: len(load_audio(path))])


@pytest.mark.parametrize("kind", CODECS)
def test_the_shortest_sounds_are_read(kind: str, tmp_path: Path) -> None:
    samples = load_audio(write_audio(tmp_path / f"short.{kind}", chirp(0.1, 48000)[None], 48000))
    assert 0.1 * SAMPLE_RATE <= len(samples) <= 0.2 * SAMPLE_RATE  # codecs fill their last frame


@pytest.mark.parametrize("rates", [(16000, 44100), (44100, 16000)])
def test_joined_files_of_different_rates_are_read_through(rates: tuple[int, int], tmp_path: Path) -> None:
    parts = [write_audio(tmp_path / f"{rate}.mp3", chirp(2.0, rate)[None], rate).read_bytes() for rate in rates]
    (tmp_path / "joined.mp3").write_bytes(b"".join(parts))
    assert len(load_audio(tmp_path / "joined.mp3")) > 3.5 * SAMPLE_RATE


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_video_longer_than_its_sound_is_whole(kind: str, tmp_path: Path) -> None:
    samples = load_audio(write_audio(tmp_path / f"video.{kind}", chirp(1.0, 48000)[None], 48000, with_video=True))
    assert len(samples) == pytest.approx(SAMPLE_RATE, rel=0.1)


def test_librosa_reads_the_same_samples() -> None:
    for name in ("beckett", "en/counting", "ja/pangrama"):
        clip = packaged_clips()[name]
        actual, openai = clip.samples, librosa.load(clip.path, sr=SAMPLE_RATE)[0]
        n = min(len(actual), len(openai))
        assert abs(len(actual) - len(openai)) < 100, clip.name
        assert np.corrcoef(actual[:n], openai[:n])[0, 1] > 0.999, clip.name


# Files that can't be read, or only in part.


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("This is not a sound file. " * 100)
    (tmp_path / "picture.mp3").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    (tmp_path / "folder.wav").mkdir()
    whole = write_audio(tmp_path / "whole.m4a", chirp(20.0, 48000)[None], 48000)
    # The table that says where the samples are is at the end of an m4a.
    (tmp_path / "cut.m4a").write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    whole.unlink()
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:rate=10:duration=1", tmp_path / "mute.mp4")
    return {path.name: path for path in [*tmp_path.iterdir(), tmp_path / "missing.wav", tmp_path / "10:30.wav"]}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("missing.wav", "No such file"),
        ("10:30.wav", "No such file"),
        ("folder.wav", "is a folder"),
        ("empty.wav", "can't be read as audio"),
        ("text.wav", "can't be read as audio"),
        ("picture.mp3", "can't be read as audio|holds no audio"),
        ("mute.mp4", "holds no audio"),
        ("cut.m4a", "can't be read as audio"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(name: str, match: str, bad_files: dict[str, Path]) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        load_audio(bad_files[name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nul\0.wav", "http://localhost:1/talk.mp3", "nosuch:talk.mp3", "x" * 5000])
def test_names_that_are_not_files_are_refused(name: str) -> None:
    with pytest.raises(AudioError, match=r"a NUL|Connection refused|Protocol not found|File name too long"):
        load_audio(name)


def test_an_ffmpeg_that_can_not_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "no/such/ffmpeg")
    with pytest.raises(AudioError, match=r"FFmpeg can't be run .*no/such/ffmpeg.*IMAGEIO_FFMPEG_EXE"):
        load_audio("talk.mp3")


@pytest.mark.parametrize("kind", ["wav", "flac", "webm", "mka"])
def test_the_rest_of_a_cut_file_is_read_with_a_warning(kind: str, tmp_path: Path) -> None:
    path = write_audio(tmp_path / f"cut.{kind}", chirp(20.0, 48000)[None], 48000)
    whole = load_audio(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.warns(AudioWarning, match=rf"cut\.{kind} may be cut short: 20\.0 s by its header, \d\.\d s are there"):
        cut = load_audio(path)
    assert 4 * SAMPLE_RATE < len(cut) < 9 * SAMPLE_RATE
    assert np.array_equal(cut[: 4 * SAMPLE_RATE], whole[: 4 * SAMPLE_RATE])


@pytest.mark.parametrize("kind", ["wav", "aiff", "caf", "mka", "wv"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples_in_files_are_clipped_with_a_warning(value: float, kind: str, tmp_path: Path) -> None:
    samples = np.full(16000, 0.25, "<f4")
    samples[8000] = value
    codec = {"aiff": "pcm_f32be", "wv": "wavpack"}.get(kind, "pcm_f32le")
    path = tmp_path / f"nan.{kind}"
    ffmpeg("-f", "f32le", "-ar", "16000", "-i", "-", "-c:a", codec, path, stdin=samples.tobytes())
    with pytest.warns(AudioWarning, match=r"nan\.\w+ has 1 samples that are NaN or infinite; they are clipped"):
        loaded = load_audio(path)
    assert len(loaded) == 16000
    assert np.all(np.delete(loaded, 8000) == 0.25)


def test_a_file_without_samples_is_silent(tmp_path: Path, tiny_en: Implementations) -> None:
    with wave.open(str(tmp_path / "silent.wav"), "wb") as silent:
        silent.setparams((1, 2, 16000, 0, "NONE", ""))
    assert load_audio(tmp_path / "silent.wav").shape == (0,)
    all_options: list[dict[str, Any]] = [{}, {"vad_filter": True}, {"word_timestamps": True}]
    for options in all_options:
        assert transcribe(tiny_en.model, tmp_path / "silent.wav", **options) == {
            "text": "",
            "segments": [],
            "language": "en",
        }
        (batched,) = transcribe_batched(tiny_en.model, [tmp_path / "silent.wav"], **options)
        assert batched == {"text": "", "segments": [], "language": "en"}


def test_damaged_packets_are_left_out(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "chirp.mp3", chirp(10.0, 16000)[None], 16000)
    whole = load_audio(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    damaged = load_audio(path)
    assert 0.8 * len(whole) < len(damaged) <= len(whole)
    n = len(whole) // 3
    assert np.array_equal(damaged[:n], whole[:n])


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        (np.array([0, np.nan, 0]), "1 samples that are NaN or infinite, the first at 1"),
        (np.array([0, 0, np.inf, -np.inf]), "2 samples that are NaN or infinite, the first at 2"),
        (np.zeros((2, 100), np.float32), r"shape \(2, 100\)"),
        (np.zeros(100, np.int16), "int16"),
        (np.zeros(100, complex), "complex"),
    ],
)
def test_invalid_sample_arrays_are_refused(samples: np.ndarray, match: str) -> None:
    with pytest.raises(AudioError, match=match):
        log_mel_spectrogram(samples, padding=N_SAMPLES)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(AudioError, match=r"^200 samples are too few for a spectrogram; give at least 201, or padding$"):
        log_mel_spectrogram(np.zeros(200, np.float32))


# Log-mel spectrograms.


def test_a_files_spectrogram_is_that_of_its_samples(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "chirp.wav", chirp(1.0, 16000)[None], 16000)
    expected = log_mel_spectrogram(load_audio(path))
    for audio in (path, str(path), load_audio(path).astype(np.float64)):
        assert np.array_equal(log_mel_spectrogram(audio), expected)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("filters", [mel_filters, definitions.mel_filters])
def test_mel_filters_are_openais_and_librosas_bit_for_bit(filters: Callable[[int], np.ndarray], n_mels: int) -> None:
    """Check the filters of `maxwhisper` and of the definitions, which are written independently."""
    assert filters(n_mels).dtype == np.float32
    assert np.array_equal(filters(n_mels), whisper.audio.mel_filters("cpu", n_mels).numpy())
    assert np.array_equal(filters(n_mels), librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=n_mels))


@pytest.mark.parametrize("padding", [0, N_SAMPLES])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_as_exact_as_openais(n_mels: int, padding: int) -> None:
    """The error from float64 is at most twice OpenAI's, and at most 6e-5, on every clip."""
    for clip in all_clips().values():
        truth = definitions.log_mel_spectrogram(clip.samples, n_mels, padding)
        actual = log_mel_spectrogram(clip.samples, n_mels, padding)
        openai = whisper.log_mel_spectrogram(clip.samples, n_mels, padding).numpy()
        assert actual.shape == openai.shape == truth.shape
        assert actual.dtype == np.float32
        error, openai_error = abs(actual - truth).max(), abs(openai - truth).max()
        assert error <= min(2 * openai_error, 6e-5), f"{clip.name}: {error:.2e}, OpenAI {openai_error:.2e}"


def test_the_log_mel_definition_agrees_with_librosa() -> None:
    samples = packaged_clips()["beckett"].samples
    power = librosa.feature.melspectrogram(
        y=samples.astype(np.float64),
        sr=SAMPLE_RATE,
        n_fft=N_FFT,
        hop_length=160,
        n_mels=80,
        pad_mode="reflect",
        dtype=np.float64,
    )
    log_mel = np.log10(np.maximum(power[:, :-1], 1e-10))
    expected = (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
    assert abs(definitions.log_mel_spectrogram(samples, 80) - expected).max() < 1e-6


def test_log_mel_of_161_seconds_takes_less_than_a_quarter_second(rng: np.random.Generator) -> None:
    samples = rng.standard_normal(round(161.5 * SAMPLE_RATE)).astype(np.float32) * 0.1
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        log_mel_spectrogram(samples, padding=N_SAMPLES)
        seconds.append(time.perf_counter() - begin)
    # The minimum is hardly affected by other processes.
    assert min(seconds) < 0.25, f"{min(seconds):.3f} s on {os.cpu_count()} cores"


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("length", [0, 5, 12, 20])
def test_pad_or_trim_is_openais(length: int, axis: int, rng: np.random.Generator) -> None:
    array = rng.standard_normal((12, 12)).astype(np.float32)
    expected = whisper.pad_or_trim(array, length, axis=axis)
    for samples in (array, torch.from_numpy(array)):
        assert np.array_equal(pad_or_trim(samples, length, axis=axis), expected)  # type: ignore[arg-type]


def test_arrays_of_samples_need_no_ffmpeg() -> None:
    script = """
import sys, numpy, maxwhisper
maxwhisper.log_mel_spectrogram(numpy.zeros(400))
assert 'imageio_ffmpeg' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
