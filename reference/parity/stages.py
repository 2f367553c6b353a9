"""What happens outside the network, judged under names of the same kind: samples, log-mel, tokens, the way through a recording."""

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
OPUS_RATE = 48_000  # at which FFmpeg decodes it; libsndfile does at the rate that was encoded
# Two decoders of Opus, whose rates differ, and any two resamplers near the ends of a recording and where it is clipped: below this share of
# half the lower rate they differed by 0.004 of the samples at most, on all recordings at hand.
ROUGHLY_PASSED_BAND = 0.85
MAX_ROUGH_DIFFERENCE = 0.02


@dataclass(frozen=True)
class Stage:
    """A step outside the network: whether it passes, and what is to be said of it."""

    name: str
    passes: bool
    says: str = ""


def judge_samples(path: Path, samples: np.ndarray) -> Stage:
    """`audio.samples`: what libsndfile reads of the same file, mixed down and, where it has to be, resampled by soxr.

    Where both must have the same samples, each may be off by one step; else all together by what FFmpeg's resampler is, where it is flat
    (`reference.parity.resampling`), and roughly everywhere.
    """
    name = "audio.samples"
    try:
        channels, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError:
        return Stage(name, True, "libsndfile does not read this format, so nobody witnesses")
    if channels.shape[1] > 2:
        return Stage(
            name, True, f"how {channels.shape[1]} channels are mixed down is FFmpeg's own way, so nobody witnesses"
        )
    witness = librosa.resample(channels, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_vhq", axis=0)
    if abs(len(samples) - len(witness)) > SAMPLE_RATE // 100:
        return Stage(name, False, f"{len(samples)} samples, but libsndfile reads {len(witness)}")
    n = min(len(samples), len(witness))
    samples, witness = samples[:n].astype(np.float64), witness[:n]
    info = soundfile.info(path)
    if rate == SAMPLE_RATE and info.format in LOSSLESS:
        checks = [(float(np.abs(samples - _clipped(witness)).max(initial=0.0)), 1.01 * STEP)]
    else:
        checks = [_rough_check(samples, _clipped(witness), rate)]
        if info.subtype != "OPUS" or rate == OPUS_RATE:
            limit = MARGIN * expected_error(channels.mean(axis=1), rate, channels.shape[1])
            checks.append((passed_error(samples, witness, rate), limit))
    off, limit = next(((off, limit) for off, limit in checks if not off <= limit), checks[-1])
    return Stage(name, off <= limit, f"off by {off:.2g} from libsndfile's, at most {limit:.2g} allowed")


def _clipped(witness: np.ndarray) -> np.ndarray:
    """[n, n_channels] to [n], as 16-bit samples hold it."""
    return witness.mean(axis=1).clip(-1, FULL_SCALE)


def _rough_check(samples: np.ndarray, witness: np.ndarray, rate: int) -> tuple[float, float]:
    """How far samples are off from a witness's everywhere, and how far they may be."""
    n = max(1, len(samples))
    n_passed = int(ROUGHLY_PASSED_BAND * min(1.0, rate / SAMPLE_RATE) * n / 2)
    off, size = (float(np.linalg.norm(np.fft.rfft(x, n)[:n_passed]) / n) for x in (samples - witness, witness))
    return off, 1.01 * STEP + MAX_ROUGH_DIFFERENCE * size


def judge_log_mel(samples: np.ndarray, log_mel: np.ndarray, device: str = "cpu") -> Stage:
    """`log_mel`: the whole spectrogram [n_mels, n_frames] of samples with 30 s of silence behind, as transcription sees it."""
    op = LOG_MELS[len(log_mel)]
    verdict = judge(op, "float32", [np.pad(samples, (0, N_SAMPLES))], [log_mel], device=device).actual
    return Stage("log_mel", verdict.passes, str(verdict))


def judge_tokens(ours: Transcription, theirs: Transcription, eot: int) -> Iterator[Stage]:
    """`decoding.step.K.…`, where a window's first choice is not what OpenAI Whisper's rules make of MAX's own logits: `allowed`, where
    other tokens are forbidden, `token`, where another is chosen, and `beams`, where others are followed; `decoding.candidates` and
    `decoding.rank`, where other sequences are found, or another one of them is taken.
    """
    for i, (a, b) in enumerate(zip(ours.windows, theirs.windows)):
        if a.search is not None:
            yield from (Stage(name, False, f"window {i}: {says}") for name, says in a.search.differences.items())
        elif a.initial_tokens == b.initial_tokens and a.temperature == 0:
            yield from _judge_steps(i, a, b, eot)


def _judge_steps(i: int, ours: Window, theirs: Window, eot: int) -> Iterator[Stage]:
    tokens = [*ours.tokens, eot]
    for step, logits in enumerate(ours.logits):
        allowed = torch.from_numpy(logits.copy())[None]
        before = torch.tensor([[*ours.initial_tokens, *tokens[:step]]])
        for rule in theirs.filters:
            rule.apply(allowed, before)
        if ours.allowed:
            wrong = np.unpackbits(ours.allowed[step], count=len(logits)) != (allowed[0] != -torch.inf).numpy()
            if wrong.any():
                says = (
                    f"window {i}: {wrong.sum()} tokens are forbidden that OpenAI Whisper allows, or the other way round"
                )
                yield Stage(f"decoding.step.{step}.allowed", False, f"{says}; {np.argmax(wrong)} is the first")
                return
        chosen = int(allowed.argmax())
        if chosen != tokens[step]:
            says = f"window {i}: {tokens[step]}, where OpenAI Whisper's rules choose {chosen} from the same logits"
            yield Stage(f"decoding.step.{step}.token", False, says)
            return


def judge_windows(
    ours: Transcription, theirs: Transcription, comparison: Comparison, log_mel_bound: float
) -> Iterator[Stage]:
    """`transcribe.window.I.…`, where the two programs' ways through a recording part, and `transcribe.segments`, what they make of it;
    nothing where nothing differs.
    """
    yield from _judge_ways(ours, theirs, comparison, log_mel_bound)
    if comparison.n_unexplained:
        yield Stage("transcribe.segments", False, "; ".join(comparison.differences[: comparison.n_unexplained]))
    elif comparison.differences:
        yield Stage("transcribe.segments", comparison.passes, "; ".join(comparison.differences))


def _judge_ways(
    ours: Transcription, theirs: Transcription, comparison: Comparison, log_mel_bound: float
) -> Iterator[Stage]:
    for i, (a, b) in enumerate(zip_longest(ours.windows, theirs.windows)):
        here = f"transcribe.window.{i}"
        if a is None or b is None or a.mel is None or b.mel is None:
            yield Stage(f"{here}.seek", False, f"{len(ours.windows)} windows, OpenAI Whisper {len(theirs.windows)}")
        elif np.abs(a.mel - b.mel).max() > 2 * log_mel_bound:
            yield Stage(
                f"{here}.log_mel",
                False,
                f"off by {np.abs(a.mel - b.mel).max():.3g} from the window that OpenAI Whisper looks at",
            )
        elif a.initial_tokens != b.initial_tokens:
            yield Stage(f"{here}.prompt", False, f"{a.initial_tokens}, OpenAI Whisper {b.initial_tokens}")
        elif a.tokens != b.tokens:
            difference = comparison.token_difference
            yield Stage(f"{here}.tokens", difference is not None and difference.is_rounding, str(difference))
        else:
            continue
        return


def log_mel_bound(samples: np.ndarray, n_mels: int, device: str = "cpu") -> float:
    """How far a sound log-mel spectrogram may be from float64, at most."""
    return float(expect(LOG_MELS[n_mels], "float32", [np.pad(samples, (0, N_SAMPLES))], device=device).worst.max())


def log_mel(model: maxwhisper.Whisper, samples: np.ndarray) -> np.ndarray:
    """The spectrogram that transcription cuts its windows from."""
    return model.log_mel_spectrogram(samples, padding=N_SAMPLES)
