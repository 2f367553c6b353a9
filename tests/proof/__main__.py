"""`nox -s proof`: everything that is proven, and how fast it is, in one process and some minutes; for a machine that is lent, with a GPU.

Every part goes on where another one fails. A short table comes last, and everything is in `report/proof.json`.
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
from reference.ops.composed import Composed
from reference.ops.fuzz import fuzz
from reference.ops.inputs import Example
from reference.ops.suite import suite
from reference.parity.clip import Programs, compare_clip
from reference.parity.observe import transcribe_with_max
from reference.parity.transcripts import differences
from tests.faults.recording import write_recording
from tests.faults.table import CONTROLS, FAULTS
from tests.faults.trial import Trials
from tests.speed.baseline import machine
from tests.speed.sizes import FIXED_SIZE_OPS, real_sizes
from tests.speed.stages import stages
from tests.speed.interleaved import InterleavedTiming
from tests.speed.counterparts import pytorch_caller, torch_device

MODEL = "tiny.en"
REPORT = Path("report/proof.json")
# One of each comparison that catches faults, and one that must be let alone.
PLANTED = (
    "tanh GELU",
    "mask off by one",
    "a residual missing",
    "cache written one position off",
    "the decoder's block in its parts",
)
ROUNDS = 5
GREEDY: dict[str, Any] = {"language": "en", "temperature": 0.0}
MAX_OTHER_WORDS = 0.05  # in halves


@dataclass(frozen=True)
class Line:
    """One thing that was seen: whether it passes, what there is to say, and numbers by name."""

    part: str
    name: str
    passes: bool
    says: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


class Proof:
    """What the parts share, made when it is first needed."""

    def __init__(self, device: str, n_examples: int, recording: Path | None, folder: Path) -> None:
        self.device, self.n_examples, self._recording, self._folder = device, n_examples, recording, folder

    @cached_property
    def programs(self) -> Programs:
        return Programs(load_checkpoint(MODEL), self.device)

    @cached_property
    def samples(self) -> np.ndarray:
        """What is transcribed for time, float32 [n_samples]."""
        if self._recording:
            return Clip(self._recording.name, self._recording, "en").samples
        return english_speech()

    def ops(self) -> Iterator[Line]:
        """Every row on examples that are always the same."""
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
        """Every activation of a window in situ, the production graphs' outputs, and all stages around them."""
        report = compare_clip(packaged_clips()["beckett"], self.programs, lambda compared, n: compared)
        inside: list[Any] = [part for window in report.windows for part in (*window.activations, *window.outputs)]
        for part in (*report.before, *inside, *report.after):
            yield Line("activations", part.name, part.passes, "" if part.passes else str(part))

    def transcripts(self) -> Iterator[Line]:
        """Tokens, times and text as OpenAI Whisper's, which are kept."""
        model_of = cache(lambda name: maxwhisper.load_model(name, self.device))
        for case in transcript_cases().values():
            found = ["nothing is kept for these samples"]
            if theirs := recall(case):
                found = differences(transcribe_with_max(model_of(case.model), case.samples, **case.options), theirs)
            yield Line("transcripts", case.name, not found, "; ".join(found[:3]))

    def faults(self) -> Iterator[Line]:
        """Some planted faults: caught, and the right name blamed; and a control that is let alone."""
        planted = [{**FAULTS, **CONTROLS}[name] for name in PLANTED]
        trials = Trials(planted, write_recording(self._folder), self.device)
        for fault in planted:
            outcome = trials.run(fault)
            yield Line("faults", outcome.name, outcome.is_as_expected, f"blamed {outcome.blamed or 'nothing'}")

    def op_speed(self) -> Iterator[Line]:
        """Every row at the model's sizes, beside PyTorch on the same device."""
        compiled, dims = suite(self.device), load_checkpoint(MODEL).dims
        for name in compiled.rows:
            if name in FIXED_SIZE_OPS or TABLE[name].on_host or (self.device == "gpu" and issubclass(TABLE[name], Composed)):
                continue  # PyTorch computes a composed row on the CPU
            dtype = TABLE[name].dtypes[0]
            arrays = Example(name, dtype, real_sizes(name, dims)).arrays()
            turns = InterleavedTiming(
                compiled.caller(name, dtype, arrays), pytorch_caller(TABLE[name], arrays, torch_device(self.device))
            )
            yield self._timed("op speed", name, turns)

    def halves(self) -> Iterator[Line]:
        """The same samples in half precision, which a GPU has: words beside those of float32; speed beside OpenAI Whisper's float16."""
        if self.device != "gpu":
            return
        normal = EnglishTextNormalizer()
        words = normal(self._transcribe(self.programs.model)["text"])
        for compute_type in HALF_DTYPES:
            model = maxwhisper.load_model(MODEL, self.device, compute_type=compute_type)
            other = jiwer.wer(words, normal(self._transcribe(model)["text"]))
            yield Line(
                "halves",
                f"words in {compute_type}",
                other <= MAX_OTHER_WORDS,
                f"{other:.1%} others",
                {"other words": other},
            )
            yield self._timed(
                "halves", f"file in {compute_type}", InterleavedTiming(partial(self._transcribe, model), self._openai(fp16=True))
            )
            yield self._timed(
                "halves", f"file in {compute_type}, batched", InterleavedTiming(self._batched(model), self._openai(fp16=True))
            )

    def model_speed(self) -> Iterator[Line]:
        """The model's stages beside OpenAI Whisper's on the same device; and all samples by either."""
        model = self.programs.model
        for stage in stages(model, self.judge, self.samples):
            yield self._timed("model speed", stage.name, InterleavedTiming(stage.run_max, stage.run_openai), stage.n)
        yield self._timed("model speed", "file, batched", InterleavedTiming(self._batched(model), self._openai(fp16=False)))
        if self.device == "gpu":
            yield self._timed(
                "model speed", "file, beside float16", InterleavedTiming(partial(self._transcribe, model), self._openai(fp16=True))
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

    def _timed(self, part: str, name: str, turns: InterleavedTiming, n: int = 1) -> Line:
        found = turns.take(ROUNDS)
        ours, theirs = float(np.median(turns.seconds)) / n, float(np.median(turns.twin_seconds)) / n
        numbers = {"seconds": ours, "PyTorch's seconds": theirs, "ratio": found}
        if name.startswith("file"):
            numbers["times real time"] = len(self.samples) / SAMPLE_RATE / ours
        return Line(
            part, name, True, f"{1e6 * ours:,.0f} µs, PyTorch {1e6 * theirs:,.0f} µs, ratio {found:.2f}", numbers
        )


PARTS: dict[str, Callable[[Proof], Iterator[Line]]] = {
    "ops": Proof.ops,
    "activations": Proof.activations,
    "transcripts": Proof.transcripts,
    "faults": Proof.faults,
    "op speed": Proof.op_speed,
    "model speed": Proof.model_speed,
    "halves": Proof.halves,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Go through all parts, print what fails and a table, write the report; 0 where everything passes, else 1."""
    parser = argparse.ArgumentParser(prog="nox -s proof --", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--examples", type=int, default=25, metavar="N", help="of each op and dtype (%(default)s)")
    parser.add_argument(
        "--audio", type=Path, help="what is transcribed for time; by default, people speaking English for two minutes"
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="where everything that was seen goes (%(default)s)")
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
            lines += _go_on(part, PARTS[part](proof))
            seconds[part] = time.perf_counter() - begin
            _write(args.report, args.device, lines, seconds)  # what is known so far, should the machine be taken away
    for line in lines:
        if not line.passes:
            print(f"{line.part}: {line.name}: {line.says}\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(_table(lines, seconds))
    print(f"{args.report} to process")
    return int(not all(line.passes for line in lines))


def _go_on(part: str, lines: Iterator[Line]) -> Iterator[Line]:
    """A part's lines; one more where it breaks off."""
    try:
        yield from tqdm(lines, desc=part, unit="line", disable=None, leave=False)
    except Exception as error:  # whatever it is, the other parts are still to be seen
        yield Line(part, "broke off", False, f"{type(error).__name__}: {error}")


def _table(lines: Sequence[Line], seconds: dict[str, float]) -> Table:
    table = Table("part", "passed", "", title="proof")
    for part, spent in seconds.items():
        own = [line for line in lines if line.part == part]
        says = "\n".join(f"{line.name}: {line.says}" for line in own if line.numbers and part != "ops")
        table.add_row(f"{part}\n{spent:.0f} s", f"{sum(line.passes for line in own)} of {len(own)}", says)
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
