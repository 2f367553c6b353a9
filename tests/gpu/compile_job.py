"""Compile one of `ahead.jobs` for a GPU that is not there.

Usage: python -m tests.gpu.compile_job GPU JOB PATH
"""

import sys
from pathlib import Path
from unittest import mock

from maxwhisper.engine import devices
from tests.gpu.ahead import jobs, keeping


def main(gpu: str, name: str, path: str) -> None:
    """Compile a job's graphs for a GPU's architecture, or for the CPU, and write them to a path."""
    if gpu == "cpu":
        with keeping(Path(path)):
            jobs("cpu")[name]("cpu")
        return
    device = devices.absent_gpu(gpu)
    find = devices.find_device
    with (
        mock.patch("maxwhisper.engine.runtime.find_device", lambda wanted: device if wanted == "gpu" else find(wanted)),
        mock.patch("reference.ops.suite.find_device", lambda wanted: device if wanted == "gpu" else find(wanted)),
        keeping(Path(path)),
    ):
        jobs("gpu")[name]("gpu")


if __name__ == "__main__":
    main(*sys.argv[1:])
