"""The data flow of a PyTorch module, taken from the module itself.

`trace` exports a module (`torch.export`) without decomposing its ops, and computes each of them in
float32, as the module does, and in float64.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from reference.flow.dataflow import Step
from reference.port.errors import PortError
from reference.port.rows import row_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Ref:
    """The name of an array among an op's arguments."""

    name: str


@dataclass(frozen=True)
class Op:
    """One op of a module, which computes an activation."""

    name: str  # of the activation, such as `encoder.blocks.0.attn.query`
    target: Callable[..., Any]  # PyTorch's function
    args: tuple[Any, ...]  # with a `Ref` for each array
    kwargs: Mapping[str, Any]
    path: str  # of the module that calls it
    also: tuple[str, ...] = ()  # paths of other modules whose output the activation is
    is_floating: bool = True  # whether the activation has floating-point numbers

    @property
    def full_name(self) -> str:
        """PyTorch's name of the function, such as `aten.linear.default`."""
        return "getitem" if self.target is operator.getitem else str(self.target)

    @property
    def kind(self) -> str:
        """The function's name without `default`, such as `aten.linear`."""
        return self.full_name.removesuffix(".default")

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the arrays that it takes."""
        return tuple(_refs((self.args, self.kwargs)))

    def as_code(self, variables: Mapping[str, str]) -> str:
        """Return a call of the function as Python code, with a variable for each array."""

        def code(x: Any) -> str:
            if isinstance(x, Ref):
                return variables[x.name]
            if isinstance(x, (list, tuple)):
                return f"[{', '.join(map(code, x))}]"
            return "torch.float64" if x in FLOATS else repr(x)

        parts = [code(x) for x in self.args] + [f"{key}={code(x)}" for key, x in self.kwargs.items()]
        if self.target is operator.getitem:
            return f"{parts[0]}[{parts[1]}]"
        return f"torch.ops.{self.full_name}({', '.join(parts)})"

    def compute(self, values: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
        """Compute it by PyTorch; see `call`."""
        with torch.no_grad():
            return self.call(self.target, values, dtype)

    def call(self, function: Callable[..., Any], values: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
        """Call a function with the op's arguments.

        Args:
            function: Takes them.
            values: PyTorch's tensors by name.
            dtype: Replaces floating-point dtypes among the arguments.
        """

        def value(x: Any) -> Any:
            if isinstance(x, Ref):
                return values[x.name]
            return dtype if dtype is not None and x in FLOATS else x

        return function(*mapped(value, self.args), **mapped(value, self.kwargs))


@dataclass(frozen=True)
class Traced:
    """A module's ops in the order in which they are computed, and what it was given."""

    ops: Mapping[str, Op]  # by the activation's name
    given: Mapping[str, torch.Tensor]  # weights, buffers, constants and inputs
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()  # those of `given` that are no weights

    @property
    def weights(self) -> list[str]:
        """The names of weights, buffers and constants."""
        return [name for name in self.given if name not in self.inputs]

    @property
    def flow(self) -> dict[str, Step]:
        """The data flow: the row of the table, or PyTorch's name of an op that has no row."""
        return {name: Step(row_of(op).row or op.kind, op.sources) for name, op in self.ops.items()}

    def name_of(self, name: str) -> str | None:
        """Return the activation that is known by a name: its own, or that of a module."""
        if name in self.ops:
            return name
        return next((own for own, op in self.ops.items() if name in op.also), None)

    def known_names(self) -> list[str]:
        """Return all names that activations are known by."""
        return [name for op in self.ops.values() for name in (op.name, *op.also)]

    def is_exact(self, name: str) -> bool:
        """Whether an activation is computed without rounding."""
        return row_of(self.ops[name]).is_exact

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each activation."""
        return {name: tuple(array.shape) for name, array in self.run().items()}

    def run(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Compute all activations, by default in the dtypes of the module itself."""
        values: dict[str, Any] = {name: widened(x, dtype) for name, x in self.given.items()}
        for name, op in self.ops.items():
            values[name] = op.compute(values, dtype)
        return {name: values[name] for name in self.ops if isinstance(values[name], torch.Tensor)}


def widened(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Convert floating-point numbers, if a dtype is given."""
    return x if dtype is None or not x.is_floating_point() else x.to(dtype)


def trace(module: torch.nn.Module, *inputs: torch.Tensor, **named: torch.Tensor) -> Traced:
    """Trace a module on inputs, whose shapes the result has, too.

    Args:
        module: The original.
        inputs: Its arguments.
        named: Its arguments by name.

    Raises:
        PortError: The module can't run on these inputs, or PyTorch can't export it.
    """
    module.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, named, strict=False)
            if any(_writes(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:  # of the module's own code, too
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PortError(
            f"{type(module).__name__} can't be traced: {reason}; if it runs on these inputs, leave out what depends "
            "on their values, or trace the parts that matter"
        ) from error
    return _traced(program, [*inputs, *named.values()])


def _writes(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _traced(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> Traced:
    nodes = list(program.graph.nodes)
    names, given, arguments = dict[Any, str](), dict[str, torch.Tensor](), iter(inputs)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            is_input = spec.kind == InputKind.USER_INPUT
            names[node] = name = node.name if is_input else str(spec.target)
            given[name] = next(arguments) if is_input else _stored(program, name)
    called = [node for node in nodes if node.op == "call_function" and node.target not in CHECKS]
    # A node that changes nothing stands for its source.
    same = dict[Any, Any]()
    for node in called:
        if _changes_nothing(node):
            same[node] = same.get(node.args[0], node.args[0])
    calls = [node for node in called if node not in same]
    ends = _outputs_of_modules(calls, same)
    taken = set(given)
    for node in calls:
        names[node] = _free(_own_name(node, ends[node]), taken)
        taken.add(names[node])
    names |= {node: names[source] for node, source in same.items()}
    ops = {
        names[node]: Op(
            names[node],
            INSTEAD.get(node.target, node.target),
            _named(node.args, names),
            _named(node.kwargs, names),
            _paths(node)[-1],
            tuple(path for path in ends[node] if path != names[node]),
            any(value.is_floating_point() for value in _values(node)),
        )
        for node in calls
    }
    (end,) = (node for node in nodes if node.op == "output")
    users = tuple(names[node] for node in nodes if node.op == "placeholder" and node.name in program_inputs(program))
    return Traced(ops, given, tuple(_refs(_named(end.args, names))), users)


def program_inputs(program: ExportedProgram) -> set[str]:
    """Return the names of a program's inputs that are no weights."""
    return {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}


# A view needs a layout in memory that an array from elsewhere may not have.
INSTEAD = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}
CHECKS = {torch.ops.aten._assert_tensor_metadata.default}
COPIES = {"alias", "clone", "contiguous", "detach", "dropout", "lift_fresh_copy", "to", "type_as", "_to_copy"}


def _changes_nothing(node: torch.fx.Node) -> bool:
    """Whether a node's result is its first argument, as a conversion to the dtype that it has."""
    if node.target is operator.getitem or str(node.target).split(".")[1] not in COPIES:
        return False
    source, value = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return source.dtype == value.dtype and source.shape == value.shape


def _stored(program: ExportedProgram, name: str) -> torch.Tensor:
    return (program.state_dict[name] if name in program.state_dict else program.constants[name]).detach()


def _values(node: torch.fx.Node) -> list[torch.Tensor]:
    """Return what stands for a node's results while it is traced."""
    value = node.meta["val"]
    return [x for x in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(x, torch.Tensor)]


def _paths(node: torch.fx.Node) -> list[str]:
    """Return the paths of the modules that a node is in, the innermost last."""
    stack = node.meta.get("nn_module_stack", {}).values()
    return [str(path).removeprefix("L['self'].").removeprefix("L['self']") for path, _ in stack] or [""]


def _outputs_of_modules(calls: Sequence[torch.fx.Node], same: Mapping[Any, Any]) -> dict[Any, list[str]]:
    """Return for each node the modules whose output it is, the innermost first.

    It is the last node of a module's call. A module that changes nothing has its input as output.
    """
    last = {path: node for node in calls for path in _paths(node)}
    ends = {node: [path for path in reversed(_paths(node)) if path and last[path] is node] for node in calls}
    for node, source in same.items():
        ends.get(source, []).extend(path for path in reversed(_paths(node)) if path and path not in last)
    return ends


def _own_name(node: torch.fx.Node, ends: list[str]) -> str:
    path = _paths(node)[-1]
    if ends and ends[0] == path:
        return path
    short = "getitem" if node.target is operator.getitem else node.target.__name__.split(".")[0]  # type: ignore[union-attr]
    return f"{path}.{short}".lstrip(".")


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with a number if there is one already."""
    n = 2
    free = name
    while free in taken:
        free, n = f"{name}_{n}", n + 1
    return free


def _named(x: Any, names: Mapping[Any, str]) -> Any:
    return mapped(lambda value: Ref(names[value]) if isinstance(value, torch.fx.Node) else value, x)


def mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """Apply a function to what is in tuples, lists and mappings."""
    if isinstance(x, (tuple, list)):
        return [mapped(function, value) for value in x]
    if isinstance(x, Mapping):
        return {key: mapped(function, value) for key, value in x.items()}
    return function(x)


def _refs(x: Any) -> Iterator[str]:
    """Yield the names of all arrays among arguments."""
    if isinstance(x, Ref):
        yield x.name
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from _refs(value)
    elif isinstance(x, Mapping):
        yield from _refs(tuple(x.values()))
