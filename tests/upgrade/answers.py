"""Compute results under one version of MAX, and compare them with the reference."""

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

MIN_SECONDS = 0.05  # of a timing


class Answers:
    """Answers to all questions about one version of MAX. Models and ops are compiled on first use.

    Args:
        rows: the rows of the table of ops that questions may be about.
    """

    def __init__(self, rows: Sequence[str]) -> None:
        self._names = rows
        self._callers: dict[str, Callable[[], object]] = {}

    def versions(self) -> dict[str, str]:
        """Return the versions of Python and of the packages that compute."""
        return {
            "python": platform.python_version(),
            **{name: version(name) for name in ("max", "mojo-compiler", "numpy", "torch")},
        }

    def op(self, name: str, dtype: str, examples: Sequence[Example]) -> Op:
        """Run a row on examples and judge the results.

        Args:
            name: a row of the table of ops.
            dtype: "float32", "float16" or "bfloat16".
            examples: its inputs.

        Returns:
            The largest ratios of errors to bounds, the first failure, and a digest of all bits.

        Raises:
            RuntimeError: if the row does not compile.
        """
        if name in self._broken:
            raise RuntimeError(self._broken[name])
        digest, failure, worst_case_ratio, rms_ratio = hashlib.sha256(), "", 0.0, 0.0
        for example in examples:
            inputs = example.arrays()
            results = self._suite.run_parts(name, dtype, inputs)
            digest.update(_bits(results[-1]))
            verdict = self._suite.judge(example, inputs, results).actual
            worst_case_ratio = max(worst_case_ratio, verdict.worst_case_ratio)
            rms_ratio = max(rms_ratio, verdict.rms_ratio)
            if not failure and not verdict.passes:
                failure = f"{verdict}\n{snippet(example, DEVICE)}"
        return Op(worst_case_ratio, rms_ratio, failure, digest.hexdigest())

    def activations(self) -> dict[str, Activation]:
        """Judge all activations of tiny.en on a window, and the production graphs' outputs.

        The decoder gets the tokens that OpenAI Whisper decoded.
        """
        openai_window = transcribe_with_openai(self._programs.judge, self._samples, temperature=0.0).windows[0]
        question = self._programs.question(openai_window)
        window = Window(question, self._programs.instrumented, self._programs.judge, self._programs.truth)
        activations = {
            part.name: Activation(
                part.op, part.error.rms, "" if part.passes else str(part), _digest(window.max[part.name])
            )
            for part in window.compare()
        }
        outputs = production_outputs(question, self._programs.model, window)
        return activations | {
            part.name: Activation("", part.error.rms, "" if part.passes else str(part), "") for part in outputs
        }

    def transcript(self, name: str) -> Transcript:
        """Transcribe a clip, and compare its tokens with OpenAI Whisper's stored ones."""
        case = transcript_cases()[name]
        actual = transcribe_with_max(_model(case.model), case.samples, **case.options)
        openai = recall(case)
        assert openai is not None, f"golden/ has no transcript of {name}; write it with nox -s golden"
        return Transcript([window.tokens for window in actual.windows], "; ".join(differences(actual, openai)[:3]))

    def timed_names(self) -> dict[str, None]:
        """Return the names that `seconds_per_call` accepts: rows at tiny.en's sizes, and stages."""
        rows = [name for name, op in self._suite.rows.items() if name not in FIXED_SIZE_OPS and not op.on_host]
        return dict.fromkeys([*rows, *self._stages])

    def seconds_per_call(self, name: str) -> float:
        """Return the mean time of calls for MIN_SECONDS, after one call that wakes all threads."""
        call = self._caller(name)
        call()
        begin, n = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < MIN_SECONDS:
            call()
            n += 1
        return elapsed / n

    @cached_property
    def _broken(self) -> dict[str, str]:
        """Rows that do not compile, and why. Rows compile one by one only if all together fail."""
        try:
            _suite(*self._names)
        except Exception:  # _problem finds the failing rows
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
        all_stages = stages(self._programs.model, self._programs.judge, self._samples)
        return {f"{MODEL} {stage.name}": stage.run_max for stage in all_stages}

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
    except Exception as error:  # any failure to compile is the result
        return f"does not compile: {type(error).__name__}: {error}".strip()
    return ""


def _bits(array: np.ndarray) -> bytes:
    return f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(_bits(array)).hexdigest()
