"""The data flow of a PyTorch module, taken from the module itself.

`trace` exports a module (`torch.export`) without decomposing its ops, and computes each of them in
float32, as the module does, and in float64.
"""

import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from reference.flow.dataflow import Step
from reference.port.errors import PortError
from reference.port.rows import row_of

PLACES = ("device", "layout", "memory_format", "pin_memory")
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
    def short(self) -> str:
        """PyTorch's name of the op alone, such as `linear`."""
        return "getitem" if self.target is operator.getitem else self.full_name.split(".")[1]

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
            if isinstance(x, float) and not math.isfinite(x):
                return f'float("{x}")'
            return "torch.float64" if x in FLOATS else repr(x)

        parts = [code(x) for x in self.args]
        # Where, and in what order in memory, a result lies does not matter.
        parts += [f"{key}={code(x)}" for key, x in self.kwargs.items() if key not in PLACES]
        if self.target is operator.getitem:
            return f"{parts[0]}[{parts[1]}]"
        return f"torch.ops.{self.full_name}({', '.join(parts)})"

    def compute(self, values: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
        """Compute it by PyTorch; see `call`."""
        with torch.no_grad():
            result = self.call(self.target, values, dtype)
        return mapped(lambda x: widened(x, dtype), result) if dtype is not None else result

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
        """Return the activation that is known by a name: its own, that of a module, or `output`."""
        if name in self.ops:
            return name
        if name == "output" and len(self.outputs) == 1:
            return self.outputs[0]
        return next((own for own, op in self.ops.items() if name in op.also), None)

    def known_names(self) -> list[str]:
        """Return all names that activations are known by."""
        return [name for op in self.ops.values() for name in (op.name, *op.also)]

    def is_exact(self, name: str) -> bool:
        """Whether an activation is computed without rounding."""
        return row_of(self.ops[name]).is_exact

    @property
    def shown_by_hooks(self) -> list[str]:
        """The activations that hooks on modules show: their outputs, and the results."""
        of_modules = [name for name, op in self.ops.items() if name == op.path or op.also]
        return list(dict.fromkeys([*of_modules, *(name for name in self.outputs if name in self.ops)]))

    def run(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Compute all activations, by default in the dtypes of the module itself."""
        values: dict[str, Any] = {name: widened(x, dtype) for name, x in self.given.items()}
        for name, op in self.ops.items():
            values[name] = op.compute(values, dtype)
        return {name: values[name] for name in self.ops if isinstance(values[name], torch.Tensor)}


def widened(x: Any, dtype: torch.dtype | None) -> Any:
    """Convert an array of floating-point numbers, if a dtype is given."""
    is_floating = isinstance(x, torch.Tensor) and x.is_floating_point()
    return x.to(dtype) if is_floating and dtype is not None else x


def trace(module: torch.nn.Module, *inputs: Any, **named: Any) -> Traced:
    """Trace a module, in evaluation mode, on inputs whose shapes the result has, too.

    Args:
        module: The original.
        inputs: Its arguments, tensors or None.
        named: Its arguments by name.

    Raises:
        PortError: The module can't run on these inputs, or computes what can't be judged.
    """
    if not isinstance(module, torch.nn.Module):
        raise PortError(f"the original is a {type(module).__name__}; give a torch.nn.Module")
    name, was_training, level = type(module).__name__, module.training, logging.root.manager.disable
    module.eval()
    logging.disable(logging.CRITICAL)  # PyTorch logs its whole graph with an error
    try:
        with torch.no_grad():
            outputs = _outputs(module, inputs, named)
            program = torch.export.export(module, inputs, named, strict=False)
            if any(_writes(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:  # of the module's own code, too
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        depends = "data-dependent" in str(error)
        remedy = "; leave out what depends on the inputs' values, or trace the parts that matter" if depends else ""
        raise PortError(f"{name} can't be traced: {reason}{remedy}") from error
    finally:
        logging.disable(level)
        module.train(was_training)
    _refuse_unjudgeable(name, program)
    return _traced(program, [x for x in (*inputs, *named.values()) if isinstance(x, torch.Tensor)], outputs)


def _outputs(module: torch.nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module, and return the output of each module in it, of its last call."""
    outputs = dict[str, Any]()

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: outputs.update({path: _first(output)})

    hooks = [inner.register_forward_hook(keep(path)) for path, inner in module.named_modules(remove_duplicate=False)]
    try:
        module(*inputs, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _first(output: Any) -> Any:
    """Return a module's output; of several, the first, which is what the next module gets."""
    return _first(output[0]) if isinstance(output, (tuple, list)) and output else output


def _refuse_unjudgeable(name: str, program: ExportedProgram) -> None:
    """Refuse complex numbers, shapes that depend on values, and ops that draw at random."""
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node.target not in CHECKS]
    for node in calls:
        op = "getitem" if node.target is operator.getitem else str(node.target)
        if any(value.is_complex() for value in _values(node)):
            raise PortError(f"{name} can't be judged: {op} gives complex numbers; trace what comes before and after it")
        if not all(isinstance(size, int) for value in _values(node) for size in value.shape):
            raise PortError(f"{name} can't be judged: the shape of {op} depends on the inputs' values")
        if op == "aten.dropout.default" and node.args[2]:
            raise PortError(f"{name} can't be judged: it drops out at random; leave that out")
    if not calls:
        raise PortError(f"{name} computes nothing")


def _writes(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _traced(program: ExportedProgram, inputs: Sequence[torch.Tensor], outputs: Mapping[str, Any]) -> Traced:
    nodes = list(program.graph.nodes)
    names, given, arguments = dict[Any, str](), dict[str, torch.Tensor](), iter(inputs)
    constants = dict[Any, Any]()
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            is_input = spec.kind == InputKind.USER_INPUT
            if not isinstance(spec.arg, TensorArgument):
                constants[node] = getattr(spec.arg, "value", None)  # None, or a number
                continue
            names[node] = name = node.name if is_input else str(spec.target)
            given[name] = next(arguments) if is_input else _stored(program, name)
    called = [node for node in nodes if node.op == "call_function" and node.target not in CHECKS]
    # A node that changes nothing stands for its source.
    same = dict[Any, Any]()
    for node in called:
        if _changes_nothing(node):
            same[node] = same.get(node.args[0], node.args[0])
    calls = [node for node in called if node not in same]
    ends = _outputs_of_modules(calls, same, outputs, _results(calls, same, names, given, constants))
    taken = set(given)
    for node in calls:
        names[node] = _free(_own_name(node, ends[node]), taken)
        taken.add(names[node])
    names |= {node: names[source] for node, source in same.items()}
    ops = {
        names[node]: Op(
            names[node],
            INSTEAD.get(node.target, node.target),
            _named(node.args, names, constants),
            _named(node.kwargs, names, constants),
            _paths(node)[-1],
            tuple(path for path in ends[node] if path != names[node]),
            any(value.is_floating_point() for value in _values(node)),
        )
        for node in calls
    }
    (end,) = (node for node in nodes if node.op == "output")
    users = tuple(names[node] for node in nodes if node in names and node.name in _user_inputs(program))
    return Traced(ops, given, tuple(_refs(_named(end.args, names, constants))), users)


def _user_inputs(program: ExportedProgram) -> set[str]:
    """Return the names of a program's inputs that are no weights."""
    return {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}


# A view needs a layout in memory that an array from elsewhere may not have.
INSTEAD = dict.fromkeys(
    (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default), torch.ops.aten.reshape.default
)
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


def _results(
    calls: Sequence[Any],
    same: Mapping[Any, Any],
    names: Mapping[Any, str],
    given: Mapping[str, torch.Tensor],
    constants: Mapping[Any, Any],
) -> dict[Any, Any]:
    """Compute each node."""
    values = {**constants, **{node: given[name] for node, name in names.items()}}

    def value(x: Any) -> Any:
        return values[same.get(x, x)] if isinstance(x, torch.fx.Node) else x

    for node in calls:
        with torch.no_grad():
            target = INSTEAD.get(node.target, node.target)
            values[node] = target(*mapped(value, node.args), **mapped(value, node.kwargs))
    return values


def _outputs_of_modules(
    calls: Sequence[torch.fx.Node], same: Mapping[Any, Any], outputs: Mapping[str, Any], values: Mapping[Any, Any]
) -> dict[Any, list[str]]:
    """Return for each node the modules whose output it is, the innermost first.

    It is the last node of a module's call that has the output's numbers. A module that changes
    nothing has its input as output.
    """

    def is_output(node: torch.fx.Node, path: str) -> bool:
        ours, output = values[node], outputs.get(path)
        if not isinstance(ours, torch.Tensor) or not isinstance(output, torch.Tensor) or ours.shape != output.shape:
            return False
        return torch.equal(torch.nan_to_num(ours), torch.nan_to_num(output))

    within = {path for node in calls for path in _paths(node)}
    last = {path: node for node in calls for path in _paths(node) if is_output(node, path)}
    ends = {node: [path for path in reversed(_paths(node)) if path and last.get(path) is node] for node in calls}
    for node, source in same.items():
        ends.get(source, []).extend(path for path in reversed(_paths(node)) if path and path not in within)
    return ends


def _own_name(node: torch.fx.Node, ends: list[str]) -> str:
    path = _paths(node)[-1]
    if path in ends:
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


def _named(x: Any, names: Mapping[Any, str], constants: Mapping[Any, Any]) -> Any:
    """Replace nodes among arguments by the names of their arrays, or by constants."""

    def name(value: Any) -> Any:
        if not isinstance(value, torch.fx.Node):
            return value
        return constants[value] if value in constants else Ref(names[value])

    return mapped(name, x)


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
