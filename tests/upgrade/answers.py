"""What one side computes under its version of MAX, and how that compares with the reference."""

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from maxwhisper import load_model
from maxwhisper.checkpoint import Checkpoint, load_checkpoint
from reference.clips import packaged_clips
from reference.golden.transcripts import recall, transcript_cases
from reference.ops import TABLE
from reference.ops.inputs import Example
from reference.ops.suite import Suite, snippet
from reference.parity.clip import Programs
from reference.parity.observe import transcribe_with_max, transcribe_with_openai
from reference.parity.transcripts import differences
from reference.parity.window import Window, production_outputs
from tests.speed.sizes import FIXED_SIZE_OPS, real_sizes
from tests.speed.stages import stages
from tests.upgrade.findings import CLIP, DEVICE, MODEL, Activation, Op, Transcript

TURN = 0.05  # seconds


class Answers:
    """What can be asked; whoever asks first pays for what it needs. Of ops, these rows of the table can."""

    def __init__(self, rows: Sequence[str]) -> None:
        self._names = rows
        self._callers: dict[str, Callable[[], object]] = {}

    def versions(self) -> dict[str, str]:
        return {
            "python": platform.python_version(),
            **{name: version(name) for name in ("max", "mojo-compiler", "numpy", "torch")},
        }

    def op(self, name: str, dtype: str, examples: Sequence[Example]) -> Op:
        """A row on these examples: the largest shares of its bounds, what fails first, and a digest of all bits.

        Raises RuntimeError where it does not compile.
        """
        if name in self._broken:
            raise RuntimeError(self._broken[name])
        digest, failure, share, sharp = hashlib.sha256(), "", 0.0, 0.0
        for example in examples:
            given = example.arrays()
            results = self._suite.run_parts(name, dtype, given)
            digest.update(_bits(results[-1]))
            verdict = self._suite.judge(example, given, results).actual
            share, sharp = max(share, verdict.worst_case_ratio), max(sharp, verdict.rms_ratio)
            if not failure and not verdict.passes:
                failure = f"{verdict}\n{snippet(example, DEVICE)}"
        return Op(share, sharp, failure, digest.hexdigest())

    def activations(self) -> dict[str, Activation]:
        """Every activation of tiny.en on a window of speech, and the production graphs' outputs; decoded as OpenAI Whisper did."""
        seen = transcribe_with_openai(self._programs.judge, self._samples, temperature=0.0).windows[0]
        question = self._programs.question(seen)
        window = Window(question, self._programs.instrumented, self._programs.judge, self._programs.truth)
        found = {
            part.name: Activation(
                part.op, part.error.rms, "" if part.passes else str(part), _digest(window.max[part.name])
            )
            for part in window.compare()
        }
        outputs = production_outputs(question, self._programs.model, window)
        return found | {
            part.name: Activation("", part.error.rms, "" if part.passes else str(part), "") for part in outputs
        }

    def transcript(self, name: str) -> Transcript:
        """A clip's tokens, and in what they differ from OpenAI Whisper's, which are kept."""
        case = transcript_cases()[name]
        ours = transcribe_with_max(_model(case.model), case.samples, **case.options)
        theirs = recall(case)
        assert theirs is not None, f"golden/ keeps no transcript of {name}; nox -s golden writes it"
        return Transcript([window.tokens for window in ours.windows], "; ".join(differences(ours, theirs)[:3]))

    def timed(self) -> dict[str, None]:
        """Names of all that `turn` times: rows at tiny.en's sizes, and stages."""
        rows = [name for name, op in self._suite.rows.items() if name not in FIXED_SIZE_OPS and not op.on_host]
        return dict.fromkeys([*rows, *self._stages])

    def turn(self, name: str) -> float:
        """Seconds of a call, after one that wakes all threads."""
        call = self._caller(name)
        call()
        begin, n = time.perf_counter(), 0
        while (spent := time.perf_counter() - begin) < TURN:
            call()
            n += 1
        return spent / n

    @cached_property
    def _broken(self) -> dict[str, str]:
        """Rows that do not compile, and why. All compile together; only where that fails, each alone."""
        try:
            _suite(*self._names)
        except Exception:  # which is said of each row that has one alone
            return {name: problem for name in self._names if (problem := _problem(name))}
        return {}

    @cached_property
    def _suite(self) -> Suite:
        return _suite(*(name for name in self._names if name not in self._broken))

    def _caller(self, name: str) -> Callable[[], object]:
        if name not in self._callers:
            self._callers[name] = self._row(name) if name in TABLE else self._stages[name]
        return self._callers[name]

    def _row(self, name: str) -> Callable[[], object]:
        dtype = TABLE[name].dtypes[0]
        return self._suite.caller(name, dtype, Example(name, dtype, real_sizes(name, self._checkpoint.dims)).arrays())

    @cached_property
    def _stages(self) -> dict[str, Callable[[], object]]:
        both = stages(self._programs.model, self._programs.judge, self._samples)
        return {f"{MODEL} {stage.name}": stage.run_max for stage in both}

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return load_checkpoint(MODEL)

    @cached_property
    def _programs(self) -> Programs:
        return Programs(self._checkpoint, DEVICE)

    @cached_property
    def _samples(self) -> np.ndarray:
        return packaged_clips()[CLIP].samples


@cache
def _model(name: str) -> Any:
    return load_model(name, DEVICE)


@cache
def _suite(*names: str) -> Suite:
    return Suite(DEVICE, {name: TABLE[name] for name in names})


def _problem(name: str) -> str:
    try:
        _suite(name)
    except Exception as error:  # whatever it is, it is what is asked for
        return f"does not compile: {type(error).__name__}: {error}".strip()
    return ""


def _bits(array: np.ndarray) -> bytes:
    return f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(_bits(array)).hexdigest()
