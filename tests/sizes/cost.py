"""What a size costs: time to compile and load, memory, a window, a step; beside other programs.

Usage: `python -m tests.sizes.cost [SIZE …] [--rounds N]`. Programs run on the same random weights
and the same samples, with two threads, and take turns.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table

import maxwhisper
from maxwhisper import Whisper
from maxwhisper.checkpoint import Checkpoint, ModelDimensions, load_checkpoint
from maxwhisper.checkpoint.dimensions import SIZES
from maxwhisper.tokenizer import get_tokenizer
from reference.models.openai import N_THREADS, load_openai
from tests.sizes.formats import as_transformers, random_weights, write_ctranslate2, write_transformers
from tests.sizes.window import question
from tests.speed.ceilings import CeilingMeter, Ceilings
from tests.speed.stages import N_STEPS, OpenAI, steps_of_max
from tests.speed.work import Work, cross_kv, decoder, encoder

TOKENS = np.random.default_rng(0).integers(0, 50000, 2 * N_STEPS)
FASTER_IN_INT8 = 4  # 8-bit products a vector instruction makes (VNNI), for each in float32
Timed = Callable[[], object]


def max_stages(model: Whisper, mel: np.ndarray) -> tuple[Timed, Timed]:
    """Return functions that encode a window and that take N_STEPS steps."""
    return lambda: model.embed_audio(mel), steps_of_max(model, model.embed_audio(mel), TOKENS)


def openai_stages(checkpoint: Checkpoint, mel: np.ndarray) -> tuple[Timed, Timed]:
    """Return the same for OpenAI Whisper in float32, with the keys and values of the audio."""
    openai = OpenAI(load_openai(checkpoint), mel)
    return openai.embed_audio, openai.after(TOKENS[:N_STEPS], TOKENS[N_STEPS:, None])


def faster_whisper_stages(folder: Path, dims: ModelDimensions, mel: np.ndarray) -> tuple[Timed, Timed]:
    """Return the same for CTranslate2 in int8, on which faster-whisper runs."""
    import ctranslate2

    model = ctranslate2.models.Whisper(
        str(folder), device="cpu", compute_type="int8", intra_threads=N_THREADS, inter_threads=1
    )
    window = ctranslate2.StorageView.from_array(mel[None])
    features = model.encode(window, to_cpu=False)
    tokenizer = get_tokenizer(dims.is_multilingual, num_languages=dims.num_languages)
    start = tokenizer.sot_sequence_including_notimestamps
    prompt = [*start, *TOKENS[: N_STEPS - len(start)].tolist()]

    def generate(max_length: int) -> tuple[int, float]:
        """Return the number of tokens, about half of `max_length`, and the seconds."""
        options = {"beam_size": 1, "suppress_blank": False, "suppress_tokens": [tokenizer.eot]}
        begin = time.perf_counter()
        (result,) = model.generate(features, [prompt], max_length=max_length, **options)
        return len(result.sequences_ids[0]), time.perf_counter() - begin

    def steps() -> float:
        (n, seconds), (n_more, seconds_of_more) = generate(10), generate(10 + 2 * N_STEPS)
        return N_STEPS * (seconds_of_more - seconds) / (n_more - n)  # without the prompt

    return lambda: model.encode(window, to_cpu=False), steps


def floors(model: Whisper, ceilings: Ceilings) -> tuple[float, float]:
    """Return the roofline times of the encoder, with the audio's keys and values, and of a step."""
    dims, dtypes = model.dims, model.dtypes
    works = [encoder(dims, dtypes), cross_kv(dims, dtypes)]
    if model.compute_type == "int8":
        # Attention weights have 16 bits: values are multiplied by the high and by the low ones.
        works.append(Work(2 * dims.n_audio_layer * dims.n_audio_ctx**2 * dims.n_audio_state, 0))
        works = [replace(work, operations=work.operations // FASTER_IN_INT8) for work in works]
    step = decoder(dims, dtypes, 1, N_STEPS + N_STEPS // 2)
    return (
        sum(ceilings.roofline_seconds(work.operations, work.n_bytes) for work in works),
        ceilings.roofline_seconds(step.operations, step.n_bytes),
    )


def timed(function: Timed) -> float:
    """Return the seconds that a function takes, or that it returns."""
    begin = time.perf_counter()
    result = function()
    return result if isinstance(result, float) else time.perf_counter() - begin


LOAD = """
import sys, time
import numpy as np, maxwhisper
maxwhisper.set_num_threads(2)
begin = time.perf_counter()
model = maxwhisper.load_model(sys.argv[1], compute_type=sys.argv[2])
seconds = time.perf_counter() - begin
mel = np.zeros((model.dims.n_mels, 3000), np.float32)
maxwhisper.decode(model, mel, language="en", sample_len=20)
from tests.speed.worker import peak_megabytes
print(seconds, peak_megabytes())
"""


def load(path: Path, compute_type: str) -> tuple[float, float]:
    """Load a model in a process of its own, and decode; return seconds of loading and peak MB."""
    run = [sys.executable, "-c", LOAD, str(path), compute_type]
    seconds, megabytes = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return float(seconds), float(megabytes)


def cost(name: str, table: Table, meter: CeilingMeter, n_rounds: int, others: bool) -> None:
    """Measure one size, and add its rows."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = random_weights(SIZES[name])
        model = as_transformers(weights)
        write_transformers(folder / "model", model)
        write_ctranslate2(folder / "int8", model, "int8")
        del model, weights
        checkpoint = load_checkpoint(folder / "model")
        mel = question(checkpoint).mel
        costs, programs = {}, {}
        models = {}
        for compute_type in ("float32", "int8"):
            compile_s, _ = load(folder / "model", compute_type)
            costs[compute_type] = (compile_s, *load(folder / "model", compute_type))
            models[compute_type] = Whisper(checkpoint, compute_type=compute_type)
            programs[f"maxwhisper, {compute_type}"] = max_stages(models[compute_type], mel)
        if others:
            programs["OpenAI Whisper, float32"] = openai_stages(checkpoint, mel)
            programs["faster-whisper, int8"] = faster_whisper_stages(folder / "int8", checkpoint.dims, mel)
        seconds = np.empty((n_rounds + 1, len(programs), 2))
        ceilings = []
        for i in range(n_rounds + 1):  # the first one warms up
            ceilings.append(meter.measure())
            for j, stages in enumerate(programs.values()):
                seconds[i, j] = [timed(stage) for stage in stages]
        medians = np.median(seconds[1:], axis=0) / [1, N_STEPS]
        peak = Ceilings(*(float(np.median([getattr(c, k) for c in ceilings[1:]])) for k in ("operations", "bandwidth")))
        for program, (encode, step) in zip(programs, medians):
            compute_type = program.rpartition(" ")[2]
            ours = program.startswith("maxwhisper")
            floor = floors(models[compute_type], peak) if ours else (np.nan, np.nan)
            compile_s, load_s, megabytes = costs[compute_type] if ours else (np.nan,) * 3
            numbers = (compile_s, load_s, megabytes, encode, encode / floor[0], 1e3 * step, step / floor[1])
            table.add_row(
                name, program, *("" if np.isnan(x) else f"{x:.{d}f}" for x, d in zip(numbers, (0, 2, 0, 2, 2, 1, 2)))
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cost", description=__doc__)
    parser.add_argument("name", nargs="*", metavar="SIZE", help=f"only these sizes: {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="leave out the other programs")
    args = parser.parse_args(argv)
    maxwhisper.set_num_threads(N_THREADS)
    meter = CeilingMeter()
    for name in args.name or SIZES:
        table = Table("size", "program", title=f"medians of {args.rounds} rounds")
        for heading in ("compile s", "load s", "peak MB", "window s", "× floor", "step ms", "× floor"):
            table.add_column(heading, justify="right")
        cost(name, table, meter, args.rounds, not args.alone)
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
