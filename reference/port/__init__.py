"""Ports judged: an original's data flow, a port's activations, and the first op that differs."""

from reference.port.dumps import load_activations, load_original, save_activations, save_original
from reference.port.errors import PortError
from reference.port.judge import judge_port
from reference.port.parity import assert_parity
from reference.port.trace import Traced, trace

__all__ = [
    "PortError",
    "Traced",
    "assert_parity",
    "judge_port",
    "load_activations",
    "load_original",
    "save_activations",
    "save_original",
    "trace",
]
