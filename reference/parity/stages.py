"""Judgement of the stages outside the network: samples, log-mel, tokens, sequence of windows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch

import maxwhisper
from maxwhisper.audio import N_SAMPLES, SAMPLE_RATE
from reference.ops.judge import expect, judge
from reference.ops.log_mel import LOG_MELS
from reference.parity.resampling import FULL_SCALE, MARGIN, STEP, expected_error, passed_error
from reference.parity.transcripts import Comparison, Transcription, Window

LOSSLESS = ("WAV", "WAVEX", "FLAC", "AIFF")
OPUS_RATE = 48_000  # Hz; FFmpeg decodes Opus at this rate, libsndfile at the rate of the encoder's input
# For two Opus decoders at different rates, and for any two resamplers near the ends of a recording
# or near clipped samples. Below this share of half the lower rate, they differed by at most 0.004
# of the samples on all available recordings.
ROUGHLY_PASSED_BAND = 0.85
MAX_ROUGH_DIFFERENCE = 0.02


@dataclass(frozen=True)
class Stage:
    """The verdict on a stage outside the network."""

    name: str
    passes: bool
    says: str = ""  # message


def judge_samples(path: Path, samples: np.ndarray) -> Stage:
    """Judge `audio.samples`: compare them with libsndfile's, mixed down and resampled by soxr.

    A lossless file at 16 kHz needs no resampling, and each sample may differ by one step. For other
    files, all samples together may differ by FFmpeg's typical error in the passband
    (`reference.parity.resampling`), and by a larger tolerance at almost all frequencies.

    Args:
        path: the audio file.
        samples: as `load_audio` returns them: [n].
    """
    name = "audio.samples"
    try:
        channels, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError:
        return Stage(name, True, "not compared: libsndfile does not read this format")
    if channels.shape[1] > 2:
        return Stage(name, True, f"not compared: FFmpeg mixes down {channels.shape[1]} channels in its own way")
    reference = librosa.resample(channels, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_vhq", axis=0)
    if abs(len(samples) - len(reference)) > SAMPLE_RATE // 100:
        return Stage(name, False, f"{len(samples)} samples, but libsndfile reads {len(reference)}")
    n = min(len(samples), len(reference))
    samples, reference = samples[:n].astype(np.float64), reference[:n]
    info = soundfile.info(path)
    if rate == SAMPLE_RATE and info.format in LOSSLESS:
        checks = [(float(np.abs(samples - _clipped(reference)).max(initial=0.0)), 1.01 * STEP)]
    else:
        checks = [_rough_check(samples, _clipped(reference), rate)]
        if info.subtype != "OPUS" or rate == OPUS_RATE:
            limit = MARGIN * expected_error(channels.mean(axis=1), rate, channels.shape[1])
            checks.append((passed_error(samples, reference, rate), limit))
    error, limit = next(((error, limit) for error, limit in checks if not error <= limit), checks[-1])
    return Stage(name, error <= limit, f"off by {error:.2g} from libsndfile's, at most {limit:.2g} allowed")


def _clipped(reference: np.ndarray) -> np.ndarray:
    """Mix [n, n_channels] down to [n], clipped to the range of 16-bit samples."""
    return reference.mean(axis=1).clip(-1, FULL_SCALE)


def _rough_check(samples: np.ndarray, reference: np.ndarray, rate: int) -> tuple[float, float]:
    """Return the error of samples at almost all frequencies, and its limit."""
    n = max(1, len(samples))
    n_passed = int(ROUGHLY_PASSED_BAND * min(1.0, rate / SAMPLE_RATE) * n / 2)
    error, size = (float(np.linalg.norm(np.fft.rfft(x, n)[:n_passed]) / n) for x in (samples - reference, reference))
    return error, 1.01 * STEP + MAX_ROUGH_DIFFERENCE * size


def judge_log_mel(samples: np.ndarray, log_mel: np.ndarray, device: str = "cpu") -> Stage:
    """Judge `log_mel`: the spectrogram of a whole recording, as used by transcription.

    Args:
        samples: [n] at 16 kHz.
        log_mel: spectrogram [n_mels, n_frames] of the samples, followed by 30 s of silence.
        device: "cpu" or "gpu": the device that computed it.
    """
    op = LOG_MELS[len(log_mel)]
    verdict = judge(op, "float32", [np.pad(samples, (0, N_SAMPLES))], [log_mel], device=device).actual
    return Stage("log_mel", verdict.passes, str(verdict))


def judge_tokens(actual: Transcription, expected: Transcription, eot: int) -> Iterator[Stage]:
    """Apply OpenAI Whisper's rules to MAX's own logits, and yield the first step that disagrees.

    In each window, the first disagreement of the steps is one of

    - `decoding.step.K.allowed`: different tokens are masked,
    - `decoding.step.K.token`: a different token is chosen,
    - `decoding.step.K.beams`: different beams are followed.

    Beam search may also end in `decoding.candidates`, different final candidates, and
    `decoding.rank`, a different choice among them.

    Args:
        actual: MAX's transcription.
        expected: OpenAI Whisper's transcription of the same samples.
        eot: the token of end of text.
    """
    for i, (a, b) in enumerate(zip(actual.windows, expected.windows)):
        if a.search is not None:
            yield from (Stage(name, False, f"window {i}: {message}") for name, message in a.search.differences.items())
        elif a.initial_tokens == b.initial_tokens and a.temperature == 0:
            yield from _judge_steps(i, a, b, eot)


def _judge_steps(i: int, actual: Window, expected: Window, eot: int) -> Iterator[Stage]:
    tokens = [*actual.tokens, eot]
    for step, logits in enumerate(actual.logits):
        allowed = torch.from_numpy(logits.copy())[None]
        before = torch.tensor([[*actual.initial_tokens, *tokens[:step]]])
        for rule in expected.filters:
            rule.apply(allowed, before)
        if actual.allowed:
            wrong = np.unpackbits(actual.allowed[step], count=len(logits)) != (allowed[0] != -torch.inf).numpy()
            if wrong.any():
                count = f"{wrong.sum()} tokens are masked only by MAX or only by OpenAI Whisper"
                first = f"the first is {np.argmax(wrong)}"
                yield Stage(f"decoding.step.{step}.allowed", False, f"window {i}: {count}; {first}")
                return
        chosen = int(allowed.argmax())
        if chosen != tokens[step]:
            message = f"window {i}: {tokens[step]}, but OpenAI Whisper's rules choose {chosen} from the same logits"
            yield Stage(f"decoding.step.{step}.token", False, message)
            return


def judge_windows(
    actual: Transcription, expected: Transcription, comparison: Comparison, log_mel_bound: float
) -> Iterator[Stage]:
    """Compare the sequences of windows, and the segments; yield only stages that differ.

    The first window I that differs is `transcribe.window.I.seek`, `.log_mel`, `.prompt` or
    `.tokens`. Different segments are `transcribe.segments`.

    Args:
        actual: MAX's transcription.
        expected: OpenAI Whisper's transcription of the same samples.
        comparison: the result of `reference.parity.transcripts.compare` for them.
        log_mel_bound: worst-case error of a log-mel spectrogram, see `log_mel_bound`.
    """
    yield from _judge_sequence(actual, expected, comparison, log_mel_bound)
    if comparison.n_unexplained:
        yield Stage("transcribe.segments", False, "; ".join(comparison.differences[: comparison.n_unexplained]))
    elif comparison.differences:
        yield Stage("transcribe.segments", comparison.passes, "; ".join(comparison.differences))


def _judge_sequence(
    actual: Transcription, expected: Transcription, comparison: Comparison, log_mel_bound: float
) -> Iterator[Stage]:
    for i, (a, b) in enumerate(zip_longest(actual.windows, expected.windows)):
        name = f"transcribe.window.{i}"
        if a is None or b is None or a.mel is None or b.mel is None:
            yield Stage(f"{name}.seek", False, f"{len(actual.windows)} windows, OpenAI Whisper {len(expected.windows)}")
        elif np.abs(a.mel - b.mel).max() > 2 * log_mel_bound:
            yield Stage(
                f"{name}.log_mel",
                False,
                f"off by {np.abs(a.mel - b.mel).max():.3g} from OpenAI Whisper's window",
            )
        elif a.initial_tokens != b.initial_tokens:
            yield Stage(f"{name}.prompt", False, f"{a.initial_tokens}, OpenAI Whisper {b.initial_tokens}")
        elif a.tokens != b.tokens:
            difference = comparison.token_difference
            yield Stage(f"{name}.tokens", difference is not None and difference.is_rounding, str(difference))
        else:
            continue
        return


def log_mel_bound(samples: np.ndarray, n_mels: int, device: str = "cpu") -> float:
    """Return the largest worst-case bound of a recording's log-mel spectrogram."""
    return float(expect(LOG_MELS[n_mels], "float32", [np.pad(samples, (0, N_SAMPLES))], device=device).worst.max())


def log_mel(model: maxwhisper.Whisper, samples: np.ndarray) -> np.ndarray:
    """Compute the spectrogram from which transcription takes its windows."""
    return model.log_mel_spectrogram(samples, padding=N_SAMPLES)
