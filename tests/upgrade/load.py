"""A process that loads a model and transcribes, and prints what that cost: seconds of processors, megabytes; as JSON."""

import json
import os
from pathlib import Path

from maxwhisper import load_model
from reference.clips import packaged_clips
from tests.speed.worker import peak_megabytes
from tests.upgrade.findings import CLIP, DEVICE, MODEL


def worked() -> float:
    """Seconds of all threads and of processes that ended. A busy machine changes them little, where it may double what a clock says."""
    return sum(os.times()[:4])


def main() -> None:
    """Seconds that processors worked until the model was loaded, megabytes of what is compiled, and peak memory after a transcript."""
    samples = packaged_clips()[CLIP].samples
    begin = worked()
    model = load_model(MODEL, DEVICE)
    seconds = worked() - begin
    model.transcribe(samples, language="en")
    size = sum(path.stat().st_size for path in Path(os.environ["MAXWHISPER_CACHE"]).glob("*.mef"))
    print(json.dumps({"seconds": seconds, "compiled MB": size / 1e6, "peak MB": peak_megabytes()}))


if __name__ == "__main__":
    main()
