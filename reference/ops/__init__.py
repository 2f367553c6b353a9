"""The table of ops: one row for each op of Whisper, with everything that testing it takes.

Parity tests, shape fuzzing, golden vectors and reports iterate over `TABLE`. A new op is a new
class in one of these files:

    class Twice(Op, row="twice"):
        '''2 x. A product with a power of two is exact, so there is no error.'''

        inputs = {"x": Input("batch n")}
        build = staticmethod(lambda ops, x: x + x)  # on MAX; `ops` are the engine's
        define = staticmethod(lambda x: 2 * x)      # in NumPy float64
        torch = staticmethod(lambda x: 2 * x)       # in PyTorch
        sensitivity_case = ("x", {"batch": 1, "n": 3}, {})
        @staticmethod
        def bound(roundings, x):
            return Approx.exact(2 * x)

It is then compiled with the others (`reference.ops.suite`), fuzzed, compared and reported.
`nox -s golden` stores its output. `reference.ops.Op` documents every field. The rows here only name
their functions: `build` an op of the engine or one of `reference.ops.max_adapters`, `torch` one of
`reference.ops.torch_counterparts`. So the table can be imported without MAX and without PyTorch.
"""

from reference.ops import attention, composed, layers, log_mel, others  # noqa: F401  (each module adds its rows)
from reference.ops.row import OTHERS, TABLE, Input, Op, find_row, rows_on

__all__ = ["OTHERS", "TABLE", "Input", "Op", "find_row", "rows_on"]
