"""The recording that faults are tried on: two people in turn, one on each channel, 48 kHz, longer than a window."""

from pathlib import Path

import librosa
import numpy as np
import soundfile

from maxwhisper.audio import SAMPLE_RATE
from reference.clips import packaged_clips

RATE = 48_000
LEFT_AND_RIGHT = (("beckett", "en/counting"), ("beckett", "en/quick_brown_fox"), ("beckett", "en/hello_world"))


def write_recording(folder: Path) -> Path:
    """A wav file in a folder."""
    clips = packaged_clips()
    channels: list[list[np.ndarray]] = [[], []]
    for names in LEFT_AND_RIGHT:
        for channel, name in enumerate(names):
            samples = clips[name].samples
            channels[channel].append(samples)
            channels[1 - channel].append(np.zeros_like(samples))
    stereo = np.stack(
        [librosa.resample(np.concatenate(pieces), orig_sr=SAMPLE_RATE, target_sr=RATE) for pieces in channels], axis=1
    )
    path = folder / "two_people.wav"
    soundfile.write(path, stereo.clip(-1, 1), RATE)
    return path
