"""Run all comparisons in short form, and speed measurements, in one process and a few minutes.

This is for a GPU machine that is available for a short time. If a part fails, the other parts still
run. It prints a short table and writes everything to `report/proof.json`.
Usage: `nox -s proof [-- --device gpu]`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jiwer
import numpy as np
import whisper
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from whisper.normalizers import EnglishTextNormalizer

import maxwhisper
from maxwhisper.audio import SAMPLE_RATE
from maxwhisper.checkpoint import load_checkpoint
from maxwhisper.engine.devices import find_device
from maxwhisper.engine.dtypes import HALF_DTYPES
from reference.clips import Clip, english_speech, packaged_clips
from reference.golden.transcripts import recall, transcript_cases
from reference.models.openai import load_openai
from reference.ops import TABLE
from reference.ops.fuzz import fuzz
from reference.ops.inputs import Example
from reference.ops.suite import suite
from reference.parity.clip import Programs, compare_clip
from reference.parity.observe import transcribe_with_max
from reference.parity.transcripts import differences
from tests.faults.all_faults import CONTROLS, FAULTS
from tests.faults.recording import write_recording
from tests.faults.trial import Trials
from tests.speed.baseline import machine
from tests.speed.counterparts import pytorch_caller, torch_device
from tests.speed.interleaved import InterleavedTiming
from tests.speed.sizes import FIXED_SIZE_OPS, calls_at_once, real_sizes
from tests.speed.stages import stages

MODEL = "tiny.en"
REPORT = Path("report/proof.json")
# A fault for each comparison that catches faults, and one control.
PLANTED = (
    "tanh GELU",
    "mask off by one",
    "a residual missing",
    "cache written one position off",
    "the decoder's block in its parts",
)
ROUNDS = 5
GREEDY: dict[str, Any] = {"language": "en", "temperature": 0.0}
MAX_WORD_ERROR_RATE = 0.05  # in half precision, relative to float32


@dataclass(frozen=True)
class Line:
    """A result."""

    part: str
    name: str
    passes: bool
    says: str = ""  # details for a reader
    numbers: dict[str, float] = field(default_factory=dict)


class Proof:
    """All parts, and the models and samples that they share, which are loaded on first use."""

    def __init__(self, device: str, n_examples: int, recording: Path | None, folder: Path) -> None:
        self.device, self.n_examples, self._recording, self._folder = device, n_examples, recording, folder

    @cached_property
    def programs(self) -> Programs:
        """The model on MAX, in OpenAI Whisper and in float64."""
        return Programs(load_checkpoint(MODEL), self.device)

    @cached_property
    def samples(self) -> np.ndarray:
        """The recording for speed measurements, float32 [n_samples] at 16 kHz."""
        if self._recording:
            return Clip(self._recording.name, self._recording, "en").samples
        return english_speech()

    def ops(self) -> Iterator[Line]:
        """Judge every row of the table of ops on a fixed set of examples."""
        compiled = suite(self.device)
        for name, op in compiled.rows.items():
            for dtype in op.dtypes:
                try:
                    tally = fuzz(compiled, name, dtype, self.n_examples)
                except AssertionError as error:
                    yield Line("ops", f"{name}.{dtype}", False, str(error))
                else:
                    shares = {
                        "worst case": tally.worst_case.ratio,
                        "rms": tally.rms.ratio,
                        "PyTorch's rms": tally.pytorch_rms.ratio,
                    }
                    yield Line("ops", f"{name}.{dtype}", True, f"{tally.n_examples} examples", shares)

    def activations(self) -> Iterator[Line]:
        """Compare activations of a clip in situ, the production graphs' outputs and the stages."""
        report = compare_clip(packaged_clips()["beckett"], self.programs, lambda compared, n: compared)
        in_windows: list[Any] = [part for window in report.windows for part in (*window.activations, *window.outputs)]
        for part in (*report.before, *in_windows, *report.after):
            yield Line("activations", part.name, part.passes, "" if part.passes else str(part))

    def transcripts(self) -> Iterator[Line]:
        """Compare tokens, times and text with OpenAI Whisper's transcripts, stored in `golden/`."""
        load = cache(lambda name: maxwhisper.load_model(name, self.device))
        for case in transcript_cases().values():
            messages = ["golden/ has no transcript of these samples"]
            if openai := recall(case):
                messages = differences(transcribe_with_max(load(case.model), case.samples, **case.options), openai)
            yield Line("transcripts", case.name, not messages, "; ".join(messages[:3]))

    def faults(self) -> Iterator[Line]:
        """Plant faults, which must be caught with the right name blamed, and a control."""
        planted = [{**FAULTS, **CONTROLS}[name] for name in PLANTED]
        trials = Trials(planted, write_recording(self._folder), self.device)
        for fault in planted:
            outcome = trials.run(fault)
            yield Line("faults", outcome.name, outcome.is_as_expected, f"blamed {outcome.blamed or 'nothing'}")

    def op_speed(self) -> Iterator[Line]:
        """Time every row at the model's sizes against PyTorch on the same device."""
        compiled, dims = suite(self.device), load_checkpoint(MODEL).dims
        for name in compiled.rows:
            if name in FIXED_SIZE_OPS or TABLE[name].on_host:
                continue
            dtype, n = TABLE[name].dtypes[0], calls_at_once(self.device)
            arrays = Example(name, dtype, real_sizes(name, dims)).arrays()
            timing = InterleavedTiming(
                compiled.caller(name, dtype, arrays, n),
                pytorch_caller(TABLE[name], arrays, torch_device(self.device), n),
            )
            yield self._measure("op speed", name, timing, n)

    def half_precision(self) -> Iterator[Line]:
        """Transcribe in half precision, on a GPU only.

        Words are compared with those of float32, and the time with OpenAI Whisper's in float16.
        """
        if self.device != "gpu":
            return
        normalize = EnglishTextNormalizer()
        words = normalize(self._transcribe(self.programs.model)["text"])
        for compute_type in HALF_DTYPES:
            model = maxwhisper.load_model(MODEL, self.device, compute_type=compute_type)
            error_rate = jiwer.wer(words, normalize(self._transcribe(model)["text"]))
            yield Line(
                "halves",
                f"words in {compute_type}",
                error_rate <= MAX_WORD_ERROR_RATE,
                f"{error_rate:.1%} of words differ",
                {"other words": error_rate},
            )
            yield self._measure(
                "halves",
                f"file in {compute_type}",
                InterleavedTiming(partial(self._transcribe, model), self._openai(fp16=True)),
            )
            yield self._measure(
                "halves",
                f"file in {compute_type}, batched",
                InterleavedTiming(self._batched(model), self._openai(fp16=True)),
            )

    def model_speed(self) -> Iterator[Line]:
        """Time the model's stages, and whole files, against OpenAI Whisper on the same device."""
        model = self.programs.model
        for stage in stages(model, self.judge, self.samples):
            yield self._measure("model speed", stage.name, InterleavedTiming(stage.run_max, stage.run_openai), stage.n)
        yield self._measure(
            "model speed", "file, batched", InterleavedTiming(self._batched(model), self._openai(fp16=False))
        )
        if self.device == "gpu":
            yield self._measure(
                "model speed",
                "file, OpenAI in float16",
                InterleavedTiming(partial(self._transcribe, model), self._openai(fp16=True)),
            )

    @cached_property
    def judge(self) -> whisper.Whisper:
        """OpenAI Whisper on the same device."""
        return load_openai(load_checkpoint(MODEL)).to(torch_device(self.device))

    def _transcribe(self, model: maxwhisper.Whisper) -> Any:
        return maxwhisper.transcribe(model, self.samples, condition_on_previous_text=False, **GREEDY)

    def _batched(self, model: maxwhisper.Whisper) -> Callable[[], object]:
        return lambda: list(maxwhisper.transcribe_batched(model, [self.samples], 8, without_timestamps=True, **GREEDY))

    def _openai(self, fp16: bool) -> Callable[[], object]:
        return lambda: whisper.transcribe(
            self.judge, self.samples, fp16=fp16, condition_on_previous_text=False, **GREEDY
        )

    def _measure(self, part: str, name: str, timing: InterleavedTiming, n: int = 1) -> Line:
        ratio = timing.measure(ROUNDS)
        seconds, pytorch_seconds = (float(np.median(each)) / n for each in (timing.seconds, timing.counterpart_seconds))
        numbers = {"seconds": seconds, "PyTorch's seconds": pytorch_seconds, "ratio": ratio}
        if name.startswith("file"):
            numbers["times real time"] = len(self.samples) / SAMPLE_RATE / seconds
        says = f"{1e6 * seconds:,.0f} µs, PyTorch {1e6 * pytorch_seconds:,.0f} µs, ratio {ratio:.2f}"
        return Line(part, name, True, says, numbers)


PARTS: dict[str, Callable[[Proof], Iterator[Line]]] = {
    "ops": Proof.ops,
    "activations": Proof.activations,
    "transcripts": Proof.transcripts,
    "faults": Proof.faults,
    "op speed": Proof.op_speed,
    "model speed": Proof.model_speed,
    "halves": Proof.half_precision,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts, print failures and a table, and write the report.

    Returns:
        0 if everything passes, else 1.
    """
    parser = argparse.ArgumentParser(prog="nox -s proof --", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"], help="where MAX runs (%(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"the parts to run, by default all: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--examples", type=int, default=25, metavar="N", help="number of examples of each op and dtype (%(default)s)"
    )
    parser.add_argument(
        "--audio", type=Path, help="the recording to time; by default, seventeen seconds of people speaking English"
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="file for all results, as JSON (%(default)s)")
    args = parser.parse_args(argv)
    lines, seconds = list[Line](), dict[str, float]()
    with TemporaryDirectory() as folder:
        proof = Proof(args.device, args.examples, args.audio, Path(folder))
        try:
            find_device(args.device), proof.samples
        except maxwhisper.WhisperError as error:
            print(f"proof: {error}", file=sys.stderr)
            return 1
        for part in args.only:
            begin = time.perf_counter()
            lines += _run(part, PARTS[part](proof))
            seconds[part] = time.perf_counter() - begin
            _write(args.report, args.device, lines, seconds)  # after each part, in case the run is cut off
    for line in lines:
        if not line.passes:
            print(f"{line.part}: {line.name}: {line.says}\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(_table(lines, seconds))
    print(f"wrote {args.report}")
    return int(not all(line.passes for line in lines))


def _run(part: str, lines: Iterator[Line]) -> Iterator[Line]:
    """Yield a part's lines. If it raises, the last line has the error."""
    try:
        yield from tqdm(lines, desc=part, unit="line", disable=None, leave=False)
    except Exception as error:  # the other parts still run
        yield Line(part, "error", False, f"{type(error).__name__}: {error}")


def _table(lines: Sequence[Line], seconds: dict[str, float]) -> Table:
    table = Table("part", "passed", "", title="proof")
    for part, part_seconds in seconds.items():
        part_lines = [line for line in lines if line.part == part]
        says = "\n".join(f"{line.name}: {line.says}" for line in part_lines if line.numbers and part != "ops")
        n_passed = sum(line.passes for line in part_lines)
        table.add_row(f"{part}\n{part_seconds:.0f} s", f"{n_passed} of {len(part_lines)}", says)
    return table


def _write(path: Path, device: str, lines: Sequence[Line], seconds: dict[str, float]) -> None:
    versions = {package: version(package) for package in ("max", "torch", "openai-whisper")}
    document = {
        "device": device,
        "machine": machine("cpu") | (machine("gpu") if device == "gpu" else {}),
        "versions": versions,
        "seconds": seconds,
        "lines": [asdict(line) for line in lines],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
