"""All faults and all controls, by name."""

from tests.faults import controls, in_audio, in_calls, in_decoding, in_graphs, in_ops, in_search, in_weights
from tests.faults.plant import Fault

_MODULES = (in_graphs, in_weights, in_calls, in_audio, in_decoding, in_search)
FAULTS: dict[str, Fault] = {fault.name: fault for module in _MODULES for fault in module.FAULTS}
OF_OPS: dict[str, Fault] = {fault.name: fault for fault in in_ops.FAULTS}
CONTROLS: dict[str, Fault] = {control.name: control for control in controls.CONTROLS}
