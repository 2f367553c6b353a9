"""Load a model, transcribe, and print the cost as JSON: CPU seconds and megabytes."""

import json
import os
from pathlib import Path

from maxwhisper import load_model
from reference.clips import packaged_clips
from tests.speed.worker import peak_megabytes
from tests.upgrade.findings import CLIP, DEVICE, MODEL


def cpu_seconds() -> float:
    """Return the CPU seconds of all threads and of child processes that ended.

    They depend little on other load of the machine, which may double wall-clock time.
    """
    return sum(os.times()[:4])


def main() -> None:
    """Print the CPU seconds of loading, the size of compiled graphs, and the peak memory."""
    samples = packaged_clips()[CLIP].samples
    begin = cpu_seconds()
    model = load_model(MODEL, DEVICE)
    seconds = cpu_seconds() - begin
    model.transcribe(samples, language="en")
    size = sum(path.stat().st_size for path in Path(os.environ["MAXWHISPER_CACHE"]).glob("*.mef"))
    print(json.dumps({"seconds": seconds, "compiled MB": size / 1e6, "peak MB": peak_megabytes()}))


if __name__ == "__main__":
    main()
