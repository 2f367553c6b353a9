"""Write the weights of the speech detector, and faster-whisper's results for tests of `vad_filter`.

python -m reference.golden.silence weights FILE
    writes `maxwhisper/assets/silero_vad_6.0.safetensors`. FILE is silero_vad/data/silero_vad.jit of
    the wheel silero-vad 6.0.0.
python -m reference.golden.silence answers
    writes `golden/silence.json`: the results of faster-whisper 1.2.1, which must be installed, for
    every available clip and for generated probabilities.
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
SCALE = 10_000  # probabilities of clips are stored as integers, multiplied by this
DIGITS = 10  # generated probabilities are digits, divided by this

CLIP_OPTIONS: list[dict[str, Any]] = [
    {},
    # Defaults of faster-whisper's batched transcription.
    {"min_silence_duration_ms": 160, "max_speech_duration_s": 30},
    {"min_silence_duration_ms": 100, "speech_pad_ms": 30, "min_speech_duration_ms": 250, "max_speech_duration_s": 5},
    {"threshold": 0.7, "neg_threshold": 0.25, "min_silence_duration_ms": 0, "speech_pad_ms": 0},
]
GENERATED_OPTIONS: dict[str, list[Any]] = {
    "threshold": [0.5, 0.3, 0.9],
    "neg_threshold": [None, 0.2, 0.6],
    "min_speech_duration_ms": [0, 40, 250],
    "max_speech_duration_s": [float("inf"), 0.0, 0.3, 0.7, 1.5],
    "min_silence_duration_ms": [0, 64, 100, 300, 2000],
    "speech_pad_ms": [0, 10, 33.3, 400],
}

LICENCE = """Copyright (c) 2020-present Silero Team. MIT License: Permission is hereby granted, free of \
charge, to any person obtaining a copy of this software and associated documentation files (the \
"Software"), to deal in the Software without restriction, including without limitation the rights \
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, \
and to permit persons to whom the Software is furnished to do so, subject to the following \
conditions: The above copyright notice and this permission notice shall be included in all copies \
or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF \
ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, \
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT \
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, \
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER \
DEALINGS IN THE SOFTWARE."""


def write_weights(source: Path) -> None:
    """Write the weights of the 16 kHz detector.

    Args:
        source: Silero's TorchScript file, which holds the detector for 8 kHz, too.
    """
    weights = torch.jit.load(str(source), map_location="cpu").state_dict()
    names = {f"encoder.{i}.{kind}": f"encoder.{i}.reparam_conv.{kind}" for i in range(4) for kind in ("weight", "bias")}
    names |= {f"rnn.{name}": f"decoder.rnn.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    names |= {f"decoder.{kind}": f"decoder.decoder.2.{kind}" for kind in ("weight", "bias")}
    arrays = {name: weights[f"_model.{silero}"].squeeze().contiguous().numpy() for name, silero in names.items()}
    source_of_file = "silero_vad.jit of silero-vad 6.0.0, https://github.com/snakers4/silero-vad"
    written_by = f"python -m reference.golden.silence weights, from {source_of_file}"
    save_file(arrays, WEIGHTS, metadata={"written_by": written_by, "license": LICENCE})
    WEIGHTS.chmod(0o644)


def write_answers() -> None:
    """Write faster-whisper's results for all clips and for generated probabilities."""
    clips, vad = {}, _faster_whisper()
    for name, clip in all_clips().items():
        samples = clip.samples
        parts = [{"options": options, "parts": _parts(vad, samples, options)} for options in CLIP_OPTIONS]
        probabilities = vad.get_vad_model()(np.pad(samples, (0, WINDOW - len(samples) % WINDOW))).ravel()
        clips[name] = {"probabilities": np.rint(probabilities * SCALE).astype(int).tolist(), "answers": parts}
    generated = list(_generate(np.random.default_rng(0), 300))
    text = ",\n  ".join(
        f"{json.dumps(name)}: {json.dumps(answer, separators=(',', ':'))}" for name, answer in clips.items()
    )
    examples = ",\n  ".join(json.dumps(answer, separators=(",", ":")) for answer in generated)
    written_by = f"python -m reference.golden.silence answers, with faster-whisper {version('faster-whisper')}"
    ANSWERS.write_text(
        f'{{\n "written_by": "{written_by}",\n "clips": {{\n  {text}\n }},\n "made_up": [\n  {examples}\n ]\n}}\n'
    )


def _generate(rng: np.random.Generator, n: int) -> Iterator[dict[str, Any]]:
    """Generate probabilities and options, with the segments that faster-whisper derives from them.

    Args:
        rng: source of random numbers.
        n: number of examples.

    Yields:
        The probabilities as a string of digits, the options, and the segments.
    """
    vad = _faster_whisper()
    for _ in range(n):
        n_samples = int(rng.integers(0, 80 * WINDOW))
        levels = rng.integers(0, DIGITS, n_samples // WINDOW + 1)
        runs = np.maximum.accumulate(np.where(rng.random(len(levels)) < 0.4, np.arange(len(levels)), 0))
        digits = levels[runs]
        options = {name: values[rng.integers(len(values))] for name, values in GENERATED_OPTIONS.items()}
        vad.get_vad_model = lambda digits=digits: lambda samples: (digits / DIGITS).astype(np.float32)[:, None]
        parts = _parts(vad, np.zeros(n_samples, np.float32), options)
        yield {"digits": "".join(map(str, digits)), "n_samples": n_samples, "options": options, "parts": parts}


def _parts(vad: Any, samples: np.ndarray, options: dict[str, Any]) -> list[tuple[int, int]]:
    """Return begin and end of faster-whisper's speech segments, in samples."""
    return [(part["start"], part["end"]) for part in vad.get_speech_timestamps(samples, vad.VadOptions(**options))]


def _faster_whisper() -> Any:
    return importlib.import_module("faster_whisper.vad")


def main() -> None:
    """Write the weights or the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("weights").add_argument("file", type=Path)
    commands.add_parser("answers")
    args = parser.parse_args()
    if args.command == "weights":
        write_weights(args.file)
    else:
        write_answers()


if __name__ == "__main__":
    main()
