"""The recording on which faults are tried: 48 kHz stereo, longer than one window.

Two people speak in turn, one on each channel.
"""

from pathlib import Path

import librosa
import numpy as np
import soundfile

from maxwhisper.audio import SAMPLE_RATE
from reference.clips import packaged_clips

RATE = 48_000
LEFT_AND_RIGHT = (("beckett", "en/counting"), ("beckett", "en/quick_brown_fox"), ("beckett", "en/hello_world"))


def write_recording(folder: Path) -> Path:
    """Write the recording into a folder as a WAV file, and return its path."""
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
