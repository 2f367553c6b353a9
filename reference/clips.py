"""Recorded speech for tests: packaged clips, and those of the folder in MAXWHISPER_AUDIO."""

import json
import os
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from maxwhisper.audio import load_audio


@dataclass(frozen=True)
class Clip:
    """A recording, its language and, if available, its reference text."""

    name: str
    path: Path
    language: str
    text: str | None = None

    @cached_property
    def samples(self) -> np.ndarray:
        """Samples at 16 kHz: float32 [n_samples]."""
        return load_audio(self.path)


@cache
def packaged_clips() -> dict[str, Clip]:
    """Return the clips that come with packages, by name.

    They are 27 short clips in 9 languages and ten seconds of a person speaking English.
    """
    folder = _package("pytest_audioeval") / "samples" / "audio"
    paths = sorted(folder.glob("*/*.wav"))
    clips = [
        Clip(f"{path.parent.name}/{path.stem}", path, path.parent.name, path.with_suffix(".txt").read_text())
        for path in paths
    ]
    clips.append(Clip("beckett", _package("moonshine_onnx") / "assets" / "beckett.wav", "en"))
    return {clip.name: clip for clip in clips}


def english_speech() -> np.ndarray:
    """Return the packaged English clips joined, 17 seconds: float32 [n_samples]."""
    return np.concatenate([clip.samples for clip in packaged_clips().values() if clip.language == "en"])


@cache
def extra_clips() -> dict[str, Clip]:
    """Return the clips of the folder in MAXWHISPER_AUDIO, by name; none if it is not set.

    The folder has a `manifest.json` that lists them.
    """
    folder = os.environ.get("MAXWHISPER_AUDIO")
    if not folder:
        return {}
    manifest = json.loads((Path(folder) / "manifest.json").read_text())["clips"]
    clips = [Clip(Path(c["file"]).stem, Path(folder, c["file"]), c["language"], c.get("reference")) for c in manifest]
    return {clip.name: clip for clip in clips}


def all_clips() -> dict[str, Clip]:
    """Return all available clips, by name."""
    return packaged_clips() | extra_clips()


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {name}, whose audio the comparison needs, is not installed; run it through nox"
        )
    return Path(spec.submodule_search_locations[0])
