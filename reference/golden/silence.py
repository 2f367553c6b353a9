"""What tests of `vad_filter` need of others: `python -m reference.golden.silence weights FILE`, or `… answers`.

weights: writes `maxwhisper/assets/silero_vad_6.0.safetensors`; FILE is silero_vad/data/silero_vad.jit of the wheel silero-vad 6.0.0.
answers: writes `golden/silence.json`, what faster-whisper 1.2.1, which must be installed, says of every clip at hand.
"""

import argparse
import importlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from maxwhisper.transcription.silero import WEIGHTS, WINDOW
from reference.clips import all_clips

ANSWERS = Path(__file__).parents[2] / "golden" / "silence.json"
SCALE = 10_000  # of kept probabilities of clips, which are whole numbers
DIGITS = 10  # of those that are made up, which are digits

CLIP_OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "min_silence_duration_ms": 160,
        "max_speech_duration_s": 30,
    },  # faster-whisper's own when it goes through a recording by batches
    {"min_silence_duration_ms": 100, "speech_pad_ms": 30, "min_speech_duration_ms": 250, "max_speech_duration_s": 5},
    {"threshold": 0.7, "neg_threshold": 0.25, "min_silence_duration_ms": 0, "speech_pad_ms": 0},
]
MADE_UP_OPTIONS: dict[str, list[Any]] = {
    "threshold": [0.5, 0.3, 0.9],
    "neg_threshold": [None, 0.2, 0.6],
    "min_speech_duration_ms": [0, 40, 250],
    "max_speech_duration_s": [float("inf"), 0.0, 0.3, 0.7, 1.5],
    "min_silence_duration_ms": [0, 64, 100, 300, 2000],
    "speech_pad_ms": [0, 10, 33.3, 400],
}

LICENCE = """Copyright (c) 2020-present Silero Team. MIT License: \
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the \
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, \
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to \
the following conditions: The above copyright notice and this permission notice shall be included in all copies or substantial portions \
of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE \
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS \
BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN \
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def write_weights(source: Path) -> None:
    """Keep what the detector for 16 kHz needs of Silero's file."""
    weights = torch.jit.load(str(source), map_location="cpu").state_dict()
    names = {f"encoder.{i}.{kind}": f"encoder.{i}.reparam_conv.{kind}" for i in range(4) for kind in ("weight", "bias")}
    names |= {f"rnn.{name}": f"decoder.rnn.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    names |= {f"decoder.{kind}": f"decoder.decoder.2.{kind}" for kind in ("weight", "bias")}
    kept = {ours: weights[f"_model.{theirs}"].squeeze().contiguous().numpy() for ours, theirs in names.items()}
    written_by = "python -m reference.golden.silence weights, from silero_vad.jit of silero-vad 6.0.0, https://github.com/snakers4/silero-vad"
    save_file(kept, WEIGHTS, metadata={"written_by": written_by, "license": LICENCE})
    WEIGHTS.chmod(0o644)


def write_answers() -> None:
    """Ask faster-whisper about clips, and about probabilities that are made up."""
    clips, vad = {}, _faster_whisper()
    for name, clip in all_clips().items():
        samples = clip.samples
        parts = [{"options": options, "parts": _parts(vad, samples, options)} for options in CLIP_OPTIONS]
        probabilities = vad.get_vad_model()(np.pad(samples, (0, WINDOW - len(samples) % WINDOW))).ravel()
        clips[name] = {"probabilities": np.rint(probabilities * SCALE).astype(int).tolist(), "answers": parts}
    made_up = list(_made_up(np.random.default_rng(0), 300))
    text = ",\n  ".join(
        f"{json.dumps(name)}: {json.dumps(answer, separators=(',', ':'))}" for name, answer in clips.items()
    )
    others = ",\n  ".join(json.dumps(answer, separators=(",", ":")) for answer in made_up)
    written_by = f"python -m reference.golden.silence answers, with faster-whisper {version('faster-whisper')}"
    ANSWERS.write_text(
        f'{{\n "written_by": "{written_by}",\n "clips": {{\n  {text}\n }},\n "made_up": [\n  {others}\n ]\n}}\n'
    )


def _made_up(rng: np.random.Generator, n: int) -> Iterator[dict[str, Any]]:
    """Probabilities that rise and fall, as digits, and what faster-whisper makes of them with options that meet in every way."""
    vad = _faster_whisper()
    for _ in range(n):
        n_samples = int(rng.integers(0, 80 * WINDOW))
        levels = rng.integers(0, DIGITS, n_samples // WINDOW + 1)
        runs = np.maximum.accumulate(np.where(rng.random(len(levels)) < 0.4, np.arange(len(levels)), 0))
        digits = levels[runs]
        options = {name: values[rng.integers(len(values))] for name, values in MADE_UP_OPTIONS.items()}
        vad.get_vad_model = lambda digits=digits: lambda samples: (digits / DIGITS).astype(np.float32)[:, None]
        parts = _parts(vad, np.zeros(n_samples, np.float32), options)
        yield {"digits": "".join(map(str, digits)), "n_samples": n_samples, "options": options, "parts": parts}


def _parts(vad: Any, samples: np.ndarray, options: dict[str, Any]) -> list[tuple[int, int]]:
    return [(part["start"], part["end"]) for part in vad.get_speech_timestamps(samples, vad.VadOptions(**options))]


def _faster_whisper() -> Any:
    return importlib.import_module("faster_whisper.vad")


def main() -> None:
    """Write one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("weights").add_argument("file", type=Path)
    commands.add_parser("answers")
    asked = parser.parse_args()
    if asked.command == "weights":
        write_weights(asked.file)
    else:
        write_answers()


if __name__ == "__main__":
    main()
