"""Recorded speech: what packages bring, and, where MAXWHISPER_AUDIO names a folder with a manifest, what lies there."""

import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from maxwhisper.audio import load_audio


@dataclass(frozen=True)
class Clip:
    """A recording, the language spoken in it, and what was said where that is known."""

    name: str
    path: Path
    language: str
    text: str | None = None

    @property
    def samples(self) -> np.ndarray:
        """float32 [n_samples] at 16 kHz."""
        return load_audio(self.path)


@cache
def packaged_clips() -> dict[str, Clip]:
    """27 short clips of 9 languages, and ten seconds of a person speaking English; by name."""
    folder = _package("pytest_audioeval") / "samples" / "audio"
    paths = sorted(folder.glob("*/*.wav"))
    clips = [
        Clip(f"{path.parent.name}/{path.stem}", path, path.parent.name, path.with_suffix(".txt").read_text())
        for path in paths
    ]
    clips.append(Clip("beckett", _package("moonshine_onnx") / "assets" / "beckett.wav", "en"))
    return {clip.name: clip for clip in clips}


def english_speech() -> np.ndarray:
    """Two minutes of people speaking English, the packaged clips one after the other: float32 [n_samples]."""
    return np.concatenate([clip.samples for clip in packaged_clips().values() if clip.language == "en"])


@cache
def extra_clips() -> dict[str, Clip]:
    """The clips of the folder that MAXWHISPER_AUDIO names; none where it is not set."""
    folder = os.environ.get("MAXWHISPER_AUDIO")
    if not folder:
        return {}
    manifest = json.loads((Path(folder) / "manifest.json").read_text())["clips"]
    clips = [Clip(Path(c["file"]).stem, Path(folder, c["file"]), c["language"], c.get("reference")) for c in manifest]
    return {clip.name: clip for clip in clips}


def all_clips() -> dict[str, Clip]:
    """Every clip at hand, by name."""
    return packaged_clips() | extra_clips()


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {name}, whose audio the comparison needs, is not installed; run it through nox"
        )
    return Path(spec.submodule_search_locations[0])
