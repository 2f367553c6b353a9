"""The table of ops: one row for each op of Whisper, with everything that proving it takes.

Parity tests, shape fuzzing, golden vectors and reports iterate over `TABLE`. A new op is a new class in
one of these files:

    class Twice(Op, row="twice"):
        \"""2 x. One product with a power of two, which is exact: no error at all.\"""

        inputs = {"x": Input("batch n")}
        build = staticmethod(lambda ops, x: x + x)  # on MAX, `ops` being the engine's
        define = staticmethod(lambda x: 2 * x)      # in NumPy float64
        torch = staticmethod(lambda x: 2 * x)       # in PyTorch
        sensitivity_case = ("x", {"batch": 1, "n": 3}, {})
        @staticmethod
        def bound(roundings, x):
            return Approx.exact(2 * x)

It is then compiled with the others (`reference.ops.suite`), fuzzed, compared and reported; `nox -s golden`
keeps its output. `reference.ops.Op` says what every field is. The rows here name their functions:
`build` an op of the engine or one of `reference.ops.max_adapters`, `torch` one of
`reference.ops.torch_counterparts`, so that the table is there without MAX and without PyTorch.
"""

from reference.ops import attention, composed, layers, log_mel  # noqa: F401  (each adds its rows)
from reference.ops.row import TABLE, Input, Op, rows_on

__all__ = ["TABLE", "Input", "Op", "rows_on"]
