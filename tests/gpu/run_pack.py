"""On the GPU machine: load the graphs of a pack, time the model's stages, run `tests.proof`.

A part that fails leaves the others alone. Results are written after each part.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import maxwhisper
from maxwhisper.engine.decoder import TokenRules
from tests.gpu.ahead import jobs, reading
from tests.proof import __main__ as proof

EXAMPLES = 10
N_STEPS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; return 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.run_pack", description=__doc__)
    parser.add_argument("--device", default="gpu", choices=["cpu", "gpu"])
    parser.add_argument("--graphs", type=Path, required=True, help="the folder with compiled graphs")
    parser.add_argument("--report", type=Path, default=Path("results.json"))
    args = parser.parse_args(argv)
    begin, results, made = time.perf_counter(), dict[str, Any](), dict[str, Any]()

    def attempt(name: str, run: Callable[[], object]) -> None:
        start = time.perf_counter()
        try:
            results[name] = run()
        except Exception as error:  # the others still run
            results[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {results[name]}"[:500])
        results[f"{name}: seconds"] = round(time.perf_counter() - start, 2)
        args.report.write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")

    def load(name: str) -> str:
        path = args.graphs / f"{name}.mef"
        with reading(path):
            made[name] = jobs(args.device)[name](args.device)
        return "loaded"

    for name in jobs(args.device):
        if (args.graphs / f"{name}.mef").exists():
            attempt(f"load {name}", partial(load, name))
    for name, model in made.items():
        if isinstance(model, maxwhisper.Whisper) and name != "instrumented":
            for n_audio in (1, 8, 16) if args.device == "gpu" else (1,):
                attempt(f"step of {name}, {n_audio} sequences", partial(time_steps, model, n_audio))
                attempt(f"encoder of {name}, {n_audio} windows", partial(time_encoder, model, n_audio))
    made.pop("turbo-float16", None)
    parts = [part for part in proof.PARTS if part != "faults"]  # which would have to be compiled
    report = args.report.with_name("proof.json")
    arguments = [
        "--device",
        args.device,
        "--examples",
        str(EXAMPLES),
        "--report",
        str(report.resolve()),
        "--only",
        *parts,
    ]
    attempt("proof", lambda: proof.main(arguments))
    for name, result in results.items():
        if not name.endswith("seconds"):
            print(f"{name}: {result}"[:200])
    print(f"{time.perf_counter() - begin:.0f} s in all; wrote {args.report.name} and {report.name}")
    return int(
        any(isinstance(result, str) and result != "loaded" for result in results.values()) or results["proof"] != 0
    )


def time_steps(model: maxwhisper.Whisper, n_audio: int) -> dict[str, float]:
    """Time greedy steps that never end; on a GPU, count the kernels of a step, too.

    Returns:
        Microseconds of a step, as the median of five runs; and `kernels`, where PyTorch's profiler
        sees them.
    """
    dims = model.dims
    audio = model.embed_audio(np.zeros((n_audio, dims.n_mels, 2 * dims.n_audio_ctx), np.float32))
    rules = TokenRules(np.zeros(dims.n_vocab, np.float32), 1, -1, dims.n_vocab)
    decoder = model.decoder(audio)

    def steps() -> None:
        decoder.n_past = 0
        decoder.logits(np.full((n_audio, 1, 1), 50257))
        decoder.greedy(np.full((n_audio, 1, 2), 50257), np.zeros((n_audio, 1)), rules, 2 + N_STEPS)

    steps()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        steps()
        times.append(1e6 * (time.perf_counter() - begin) / N_STEPS)
    found = {"microseconds": float(np.median(times))}
    if not model.device.is_host:
        import torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            steps()
            torch.cuda.synchronize()
        kernels = [
            event for event in profiled.key_averages() if "Memcpy" not in event.key and "Memset" not in event.key
        ]
        found["kernels"] = sum(event.count for event in kernels) / N_STEPS
        found["microseconds on the device"] = sum(event.self_device_time_total for event in kernels) / N_STEPS
    return found


def time_encoder(model: maxwhisper.Whisper, n_audio: int) -> dict[str, float]:
    """Time the encoder with cross-attention's keys and values; return milliseconds of a window."""
    mel = np.random.default_rng(0).standard_normal((n_audio, model.dims.n_mels, 2 * model.dims.n_audio_ctx), np.float32)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        model.embed_audio(mel)
        model.device.synchronize()
        times.append(1e3 * (time.perf_counter() - begin) / n_audio)
    return {"milliseconds": float(np.median(times[2:]))}


if __name__ == "__main__":
    sys.exit(main())
