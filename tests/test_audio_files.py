"""Files are read as by OpenAI Whisper, with the samples that FFmpeg decodes.

The tests vary containers, codecs, channel counts, tracks and headers.
"""

import os
import re
import struct
import warnings
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whisper

from maxwhisper import AudioError, AudioWarning, OptionError, cli, load_audio, transcribe, transcribe_batched
from maxwhisper.audio import SAMPLE_RATE
from reference.clips import all_clips
from tests.support.audio import FFMPEG, LAYOUTS, chirp, ffmpeg, write_audio, write_caf, write_padded_wav
from tests.support.implementations import Implementations


@pytest.fixture(autouse=True)
def openai_uses_our_ffmpeg(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put maxwhisper's FFmpeg first in PATH, so that OpenAI Whisper uses it, too."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(FFMPEG)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def load_without_warnings(path: Path) -> np.ndarray:
    """Load a file, and fail if that causes a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_audio(path)


@pytest.mark.parametrize("name", all_clips())
def test_clips_give_the_samples_that_openai_whisper_reads(name: str) -> None:
    clip = all_clips()[name]
    assert np.array_equal(load_without_warnings(clip.path), whisper.load_audio(str(clip.path)))


# By container and codec, the correlation with the original that must be exceeded.
EXACT, LOSSY, CRUDE = 0.9999, 0.98, 0.9
CODECS = {
    ("wav", "pcm_s16le"): EXACT,
    ("wav", "pcm_s24le"): EXACT,
    ("wav", "pcm_s32le"): EXACT,
    ("wav", "pcm_f32le"): EXACT,
    ("wav", "pcm_f64le"): EXACT,
    ("wav", "pcm_u8"): LOSSY,
    ("w64", "pcm_s16le"): EXACT,
    ("aiff", "pcm_s24be"): EXACT,
    ("au", "pcm_s16be"): EXACT,
    ("caf", "pcm_s16be"): EXACT,
    ("mov", "pcm_s16le"): EXACT,
    ("flac", "flac"): EXACT,
    ("ogg", "flac"): EXACT,
    ("mka", "flac"): EXACT,
    ("mka", "pcm_f32le"): EXACT,
    ("wv", "wavpack"): EXACT,
    ("tta", "tta"): EXACT,
    ("m4a", "alac"): EXACT,
    ("m4a", "aac"): LOSSY,
    ("mp4", "aac"): LOSSY,
    ("aac", "aac"): LOSSY,
    ("ts", "aac"): LOSSY,
    ("ogg", "libvorbis"): LOSSY,
    ("ogg", "libopus"): LOSSY,
    ("webm", "libopus"): LOSSY,
    ("mka", "ac3"): LOSSY,
    ("mka", "eac3"): LOSSY,
    ("mp3", "libmp3lame"): LOSSY,
    ("mp2", "mp2"): LOSSY,
    ("wma", "wmav2"): LOSSY,
    ("wav", "adpcm_ima_wav"): CRUDE,
    ("wav", "adpcm_ms"): CRUDE,
    ("wav", "pcm_mulaw"): LOSSY,
}
MAX_CHANNELS = {  # by codec
    "libmp3lame": 2,
    "mp2": 2,
    "wmav2": 2,
    "adpcm_ima_wav": 2,
    "adpcm_ms": 2,
    "ac3": 6,
    "eac3": 6,
    "tta": 8,
    "flac": 8,
    "libopus": 8,
    "alac": 8,
    "aac": 8,
}
NO_ENCODER = {("aac", "aac", 8), ("ts", "aac", 8)}
KINDS = [
    (kind, codec, n)
    for kind, codec in CODECS
    for n in LAYOUTS
    if n <= MAX_CHANNELS.get(codec, 16) and (kind, codec, n) not in NO_ENCODER
]


def test_files_of_every_format_are_generated() -> None:
    assert len(KINDS) >= 60
    assert {n for _, _, n in KINDS} == LAYOUTS.keys()


@pytest.mark.parametrize(("kind", "codec", "n_channels"), KINDS)
def test_every_format_gives_the_samples_that_openai_whisper_reads(
    kind: str, codec: str, n_channels: int, tmp_path: Path
) -> None:
    path, sound = tmp_path / f"chirp.{kind}", np.tile(chirp(1.0, 48000), (n_channels, 1)) / 2
    write_audio(path, sound, 48000, LAYOUTS[n_channels], options=("-c:a", codec, "-strict", "-2"))
    samples = load_without_warnings(path)
    assert np.array_equal(samples, whisper.load_audio(str(path)))
    assert abs(len(samples) - SAMPLE_RATE) < 0.15 * SAMPLE_RATE  # codecs add padding
    expected = chirp(1.0, SAMPLE_RATE)[2000:12000]
    lags = np.correlate(samples, expected, "valid")
    aligned = samples[(lag := int(lags.argmax())) : lag + len(expected)]
    assert np.corrcoef(aligned, expected)[0, 1] > CODECS[kind, codec]


@pytest.mark.parametrize("n", [9, 11, 13, 15, 20, 64])
def test_channels_of_unknown_layout_are_averaged(n: int, tmp_path: Path, rng: np.random.Generator) -> None:
    """FFmpeg refuses such files, and so does OpenAI Whisper."""
    integers = rng.integers(-(2**15), 2**15, (n, 1600))
    path = tmp_path / "many.wav"
    ffmpeg("-f", "s16le", "-ar", "16000", "-ac", str(n), "-i", "-", path, stdin=integers.T.astype("<i2").tobytes())
    with pytest.raises(RuntimeError, match="Rematrix is needed"):
        whisper.load_audio(str(path))
    with pytest.warns(AudioWarning, match=rf"many\.wav has {n} channels of unknown layout; their mean is used"):
        samples = load_audio(path)
    # One unit allows for rounding to 16 bits, and of swresample's coefficients.
    assert np.abs(samples * 2**15 - integers.mean(axis=0)).max() <= 1.0


@pytest.mark.parametrize("labels", [(2, 1), (3, 1, 2), (3, 1, 2, 5, 6, 4), (1, 3, 2, 5, 6, 4)])
def test_channels_in_an_unusual_order_are_read(
    labels: tuple[int, ...], tmp_path: Path, rng: np.random.Generator
) -> None:
    """Labels 1 to 6 are Core Audio's left, right, centre, low frequencies, left and right surround.

    Films have the centre as second channel.
    """
    channels = rng.integers(-2000, 2000, (len(labels), 1600))
    path = write_caf(tmp_path / "film.caf", channels, 16000, labels)
    samples = load_without_warnings(path)
    assert np.array_equal(samples, whisper.load_audio(str(path)))
    # FFmpeg's gains, which it then divides by their sum.
    gain = {1: 1 / np.sqrt(2), 2: 1 / np.sqrt(2), 3: 1.0, 4: 0.0, 5: 0.5, 6: 0.5}
    gains = np.array([gain[label] for label in labels])
    expected = gains @ channels / gains.sum()
    assert np.abs(samples * 2**15 - expected).max() < 2.0


# Several sound tracks.


def write_tracks(path: Path, *tracks: tuple[float, int, str]) -> Path:
    """Write a file with several sound tracks, each a tone of half a second.

    Args:
        path: Where to write the file.
        tracks: The frequency in Hz, the number of channels and FFmpeg's disposition of each track.
    """
    inputs = [
        option
        for hz, _, _ in tracks
        for option in ("-f", "lavfi", "-i", f"sine=frequency={hz}:duration=0.5:sample_rate=16000")
    ]
    maps = [option for i in range(len(tracks)) for option in ("-map", f"{i}:a")]
    dispositions = [
        option
        for i, (_, n, disposition) in enumerate(tracks)
        for option in (f"-ac:a:{i}", str(n), f"-disposition:a:{i}", disposition)
    ]
    passthrough = ("-c:a", "flac", "-default_mode", "passthrough") if path.suffix == ".mkv" else ()
    ffmpeg(*inputs, *maps, *dispositions, *passthrough, path)
    return path


def pitch(samples: np.ndarray) -> float:
    """Return the strongest frequency, in Hz."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * SAMPLE_RATE / len(samples))


@pytest.mark.parametrize(
    ("tracks", "selected"),
    [
        (((400, 1, "0"), (800, 1, "0")), 0),
        (((400, 1, "0"), (800, 2, "0")), 1),
        (((400, 2, "0"), (800, 1, "0"), (1200, 2, "0")), 0),
        (((400, 2, "0"), (800, 1, "default")), 1),
        (((400, 1, "default"), (800, 6, "0")), 0),
    ],
)
@pytest.mark.parametrize("kind", ["mkv", "mov"])
def test_the_track_that_ffmpeg_selects_is_read(
    kind: str, tracks: tuple[tuple[float, int, str], ...], selected: int, tmp_path: Path
) -> None:
    path = write_tracks(tmp_path / f"film.{kind}", *tracks)
    samples = load_without_warnings(path)
    assert np.array_equal(samples, whisper.load_audio(str(path)))
    if kind == "mkv":  # in a mov without a default track, FFmpeg makes the first one the default
        assert pitch(samples) == pytest.approx(tracks[selected][0], abs=5)


def test_any_track_can_be_selected(tmp_path: Path) -> None:
    path = write_tracks(tmp_path / "film.mkv", (400, 1, "default"), (800, 2, "0"), (1200, 1, "0"))
    for track, hz in enumerate((400, 800, 1200)):
        assert pitch(load_audio(path, track=track)) == pytest.approx(hz, abs=5)
    with pytest.raises(AudioError, match=r"film\.mkv has no sound track 3, only 3, counted from 0; choose one of them"):
        load_audio(path, track=3)
    silent = tmp_path / "mute.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:rate=10:duration=1", silent)
    for requested in (None, 0):
        with pytest.raises(AudioError, match=r"mute\.mp4 holds no audio"):
            load_audio(silent, track=requested)


@pytest.mark.parametrize("track", [-1, 1.5, "1", True])
def test_an_invalid_track_number_is_refused_before_any_work(
    track: Any, tiny_en: Implementations, tmp_path: Path
) -> None:
    calls: list[Callable[[], object]] = [partial(load_audio, tmp_path, track=track)]
    transcribers: list[Callable[..., object]] = [transcribe, transcribe_batched]
    calls += [partial(function, tiny_en.model, [], audio_track=track) for function in transcribers]
    for call in calls:
        with pytest.raises(OptionError, match=rf"audio_track {track!r} is not a track number"):
            call()


def test_a_negative_track_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maxwhisper.cli.load_model", None)
    assert cli.main(["transcribe", "talk.mp3", "--audio_track", "-1", "-o", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == "maxwhisper: audio_track -1 is not a track number; 0 is the first, None takes the default one\n"
    )


def test_tracks_of_different_lengths_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "film.m4a"
    tones = [("-f", "lavfi", "-i", f"sine=duration={seconds}:sample_rate=16000") for seconds in (2, 20)]
    ffmpeg(*tones[0], *tones[1], "-map", "0:a", "-map", "1:a", path)
    assert len(load_without_warnings(path)) == 2 * SAMPLE_RATE


def test_a_track_that_can_not_be_decoded_is_skipped(tmp_path: Path) -> None:
    """An iPhone's track of spatial audio is an example."""
    path = write_tracks(tmp_path / "film.mov", (400, 2, "default"), (800, 1, "0"))
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"zzzz", 1).replace(b"esds", b"zzzz", 1))
    with pytest.warns(AudioWarning, match=r"film\.mov has a sound track that can't be decoded; track 1 is read"):
        assert pitch(load_audio(path)) == pytest.approx(800, abs=5)


# Timestamps and durations.

JUMP = "asetpts=PTS+gte(T\\,1)*20/TB"
LATE = "asetpts=PTS+5/TB"


@pytest.mark.parametrize("kind", ["mka", "webm", "m4a", "mp4", "ts", "ogg"])
@pytest.mark.parametrize("stamps", [JUMP, LATE])
def test_files_with_jumping_timestamps_are_read_whole(kind: str, stamps: str, tmp_path: Path) -> None:
    path, plain = tmp_path / f"jump.{kind}", tmp_path / f"plain.{kind}"
    fragmented = ("-movflags", "frag_keyframe+empty_moov") if kind == "mp4" else ()
    write_audio(plain, chirp(2.0, 48000)[None], 48000, options=fragmented)
    write_audio(path, chirp(2.0, 48000)[None], 48000, options=("-af", stamps, *fragmented))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = load_audio(path)
    assert np.array_equal(samples, whisper.load_audio(str(path)))
    assert abs(len(samples) - len(load_audio(plain))) <= 0.1 * SAMPLE_RATE
    assert all(
        re.search(r"may be cut short: 2\d\.\d s by its header, [12]\.\d s are there$", str(w.message)) for w in caught
    )


def test_a_wrong_duration_in_a_webm_causes_a_warning(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "clock.webm", chirp(2.0, 48000)[None], 48000)
    whole, data = load_without_warnings(path), path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, eight bytes
    path.write_bytes(data[:at] + struct.pack(">d", 60_000.0) + data[at + 8 :])
    with pytest.warns(AudioWarning, match=r"clock\.webm may be cut short: 60\.0 s by its header, 2\.0 s are there"):
        assert np.array_equal(load_audio(path), whole)


def test_samples_before_ffmpeg_fails_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    """FFmpeg fails if two thirds of all packets are damaged.

    OpenAI Whisper then transcribes nothing.
    """
    path = write_audio(tmp_path / "damaged.m4a", chirp(20.0, 48000)[None], 48000)
    whole, data = load_without_warnings(path), bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    damaged = begin + (end - begin) // 8
    data[damaged:end] = b"\xff" * (end - damaged)
    path.write_bytes(data)
    with pytest.raises(RuntimeError):
        whisper.load_audio(str(path))
    with pytest.warns(AudioWarning) as caught:
        samples = load_audio(path)
    assert np.array_equal(samples[:SAMPLE_RATE], whole[:SAMPLE_RATE])
    seconds = f"{len(samples) / SAMPLE_RATE:.1f} s"
    messages = (
        f"may be cut short: 20.0 s by its header, {seconds} are there",
        f"is damaged: FFmpeg gave up after {seconds}",
    )
    assert [str(warning.message) for warning in caught] == [f"{path} {message}" for message in messages]


@pytest.mark.parametrize("size", [10**9, 2**30])
def test_a_wrong_size_in_a_wav_causes_a_warning(size: int, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "stream.wav", chirp(2.0, 16000)[None], 16000)
    whole, data = load_without_warnings(path), path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:at] + struct.pack("<I", size) + data[at + 4 :])
    with pytest.warns(AudioWarning, match=r"stream\.wav may be cut short: \d{5}\.\d s by its header, 2\.0 s are there"):
        assert np.array_equal(load_audio(path), whole)


@pytest.mark.parametrize(("n_bits", "n_valid"), [(16, 12), (24, 20), (32, 16), (32, 20), (32, 24), (32, 28), (32, 32)])
def test_integers_that_do_not_fill_their_containers_are_read(n_bits: int, n_valid: int, tmp_path: Path) -> None:
    """FFmpeg reads 24 bits in 32 as floating-point numbers."""
    path = write_padded_wav(tmp_path / "padded.wav", chirp(1.0, 16000), 16000, n_bits, n_valid)
    expected = np.round(chirp(1.0, 16000) * (2 ** (n_valid - 1) - 1)) / 2 ** (n_valid - 1)
    assert np.abs(load_without_warnings(path) - expected).max() <= 2**-15


@pytest.mark.parametrize("kind", ["mp3", "aac", "ts", "ac3", "mp2"])
def test_a_stream_that_is_joined_midway_is_read(kind: str, tmp_path: Path) -> None:
    """A recording of a broadcast may begin so."""
    path = tmp_path / f"broadcast.{kind}"
    write_audio(
        path, chirp(4.0, 48000)[None], 48000, options=("-c:a", {"mp3": "libmp3lame", "ts": "aac"}.get(kind, kind))
    )
    path.write_bytes(path.read_bytes()[path.stat().st_size // 4 :])
    samples = load_without_warnings(path)
    assert np.array_equal(samples, whisper.load_audio(str(path)))
    assert 2.5 * SAMPLE_RATE < len(samples) < 3.5 * SAMPLE_RATE


@pytest.mark.parametrize("kind", ["mp3", "aac", "ts", "ogg", "flac"])
@pytest.mark.parametrize("second", [(48000, "mono"), (48000, "stereo"), (24000, "mono")])
def test_files_that_were_joined_are_read_through(second: tuple[int, str], kind: str, tmp_path: Path) -> None:
    paths = list[Path]()
    for rate, layout in ((48000, "mono"), second):
        sound = np.tile(chirp(2.0, rate), (2 if layout == "stereo" else 1, 1))
        codec = {"mp3": "libmp3lame", "ogg": "libvorbis", "flac": "flac"}.get(kind, "aac")
        paths.append(write_audio(tmp_path / f"{len(paths)}.{kind}", sound, rate, layout, options=("-c:a", codec)))
    joined = tmp_path / f"joined.{kind}"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = load_audio(joined)
    assert np.array_equal(samples, whisper.load_audio(str(joined)))
    # FFmpeg may stop after the first part of joined FLAC and Ogg files.
    assert len(samples) > (1.9 if kind in ("flac", "ogg") else 3.6) * SAMPLE_RATE


# All formats in one run.


@pytest.fixture
def odd_files(tmp_path: Path, rng: np.random.Generator) -> tuple[list[Path], list[Path]]:
    """Write unusual files of one second. Return those that can be read, and those that can't."""
    folder, sound = tmp_path / "in", chirp(1.0, 48000)[None]
    folder.mkdir()
    readable = [
        write_audio(folder / f"8ch-{codec}.{kind}", np.tile(sound / 2, (8, 1)), 48000, "7.1", options=("-c:a", codec))
        for kind, codec in (("m4a", "aac"), ("ogg", "libopus"), ("mka", "libvorbis"), ("wv", "wavpack"))
    ]
    readable += [
        write_audio(
            folder / f"jump{i}-{kind}.{kind}", sound, 48000, options=("-af", f"asetpts=PTS+gte(T\\,{start})*20/TB")
        )
        for kind in ("m4a", "webm", "mka")
        for i, start in enumerate((0, 0.5))
    ]
    readable.append(write_caf(folder / "film.caf", rng.integers(-99, 99, (6, 16000)), 16000, (3, 1, 2, 5, 6, 4)))
    readable.append(write_padded_wav(folder / "padded.wav", chirp(1.0, 16000), 16000, 32, 24))
    readable.append(write_tracks(folder / "tracks.mkv", (400, 1, "default"), (800, 2, "0")))
    for kind in ("wav", "flac", "webm"):
        readable.append(write_audio(folder / f"cut-{kind}.{kind}", sound, 48000))
        readable[-1].write_bytes(readable[-1].read_bytes()[: readable[-1].stat().st_size // 2])
    ffmpeg("-f", "f32le", "-ar", "16000", "-i", "-", folder / "nan.wav", stdin=np.full(16000, np.nan, "<f4").tobytes())
    ffmpeg("-f", "s16le", "-ar", "16000", "-i", "-", folder / "silent.wav")
    readable += [folder / "nan.wav", folder / "silent.wav"]
    (folder / "text.mp3").write_text("This is not a sound file.")
    (folder / "noise.ogg").write_bytes(rng.bytes(20_000))
    (folder / "empty.m4a").touch()
    (folder / "folder.flac").mkdir()
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:rate=10:duration=1", folder / "mute.mp4")
    return readable, [
        folder / name for name in ("text.mp3", "noise.ogg", "empty.m4a", "folder.flac", "mute.mp4", "missing.wav")
    ]


@pytest.mark.parametrize("batched", [(), ("--batch_size", "8")])
def test_all_readable_files_of_a_run_are_written(
    batched: tuple[str, ...],
    odd_files: tuple[list[Path], list[Path]],
    tiny_en: Implementations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("maxwhisper.cli.load_model", lambda *_, **__: tiny_en.model)
    readable, bad = odd_files
    mixed = [str(path) for pair in zip_longest(readable, bad) for path in pair if path]
    fast = ("--beam_size", "None", "--temperature_increment_on_fallback", "None", "--verbose", "False")
    assert cli.main(["transcribe", *mixed, "-o", str(tmp_path / "out"), "-f", "txt", *fast, *batched]) == 1
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {path.stem for path in readable}
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("maxwhisper: ") for line in lines), lines
    for path in bad:
        assert sum(str(path) in line for line in lines) == 1, path
    assert {line.split(": ")[1] for line in lines if "may be cut short" in line} == {"warning"}


# File names, and open files.


@pytest.mark.parametrize(
    "name", ["10:30.flac", "a:b.flac", "-i.flac", "file:x.flac", "50% off?#.flac", "ü ñ 名.flac", "'q\".flac"]
)
def test_any_file_name_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_audio(tmp_path / "plain.flac", chirp(0.5, 16000)[None], 16000).rename(name)
    assert len(load_audio(name)) == 8000


def test_an_open_file_is_read(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "talk.m4a", chirp(0.5, 16000)[None], 16000)
    with path.open("rb") as file:
        assert np.array_equal(load_audio(file), load_audio(path))
    with pytest.raises(AudioError, match=r"talk\.m4a can't be read .*give a file that is open for reading bytes"):
        load_audio(file)
    with (
        path.open(encoding="latin-1") as text,
        pytest.raises(AudioError, match="give a file that is open for reading bytes"),
    ):
        load_audio(text)  # type: ignore[arg-type]
    assert np.array_equal(load_audio(os.fsencode(path)), load_audio(path))  # type: ignore[arg-type]


def test_reasons_are_found_in_coloured_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AV_LOG_FORCE_COLOR", "1")
    with pytest.raises(AudioError, match=r"\(No such file or directory\)"):
        load_audio(tmp_path / "missing.wav")


def test_a_wav_cut_after_its_header_causes_a_warning(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "cut.wav", chirp(2.0, 16000)[None], 16000)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"data") + 8])
    with pytest.warns(AudioWarning, match=r"cut\.wav may be cut short: 2\.0 s by its header, 0\.0 s are there"):
        assert len(load_audio(path)) == 0


def test_a_pipe_is_read(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "talk.wav", chirp(0.5, 16000)[None], 16000)
    reading, writing = os.pipe()
    os.write(writing, path.read_bytes())
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert np.array_equal(load_audio(pipe), load_audio(path))
