"""Which row of the table judges an op of PyTorch, and what the row takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from reference.port.trace import Op


class NoRow(Exception):
    """The table has no row for an op with these arguments."""


@dataclass(frozen=True)
class Inputs:
    """What a row takes."""

    arrays: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """How an op is judged.

    Args:
        row: Its row in the table; "" if it has none.
        takes: Returns the row's inputs for the op's arguments, or raises `NoRow`.
        is_exact: Whether it rounds no result: it moves numbers, or picks among them.
    """

    row: str = ""
    takes: Callable[..., Inputs] = lambda *arrays: Inputs(arrays)
    is_exact: bool = False


def _linear(x: Any, weight: Any, bias: Any = None) -> Inputs:
    return Inputs((x, weight) if bias is None else (x, weight, bias))


def _layer_norm(x: Any, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Inputs:
    if len(shape) != 1:
        raise NoRow
    weight = torch.ones(shape) if weight is None else weight
    return Inputs((x, weight, torch.zeros(shape) if bias is None else bias), {"epsilon": eps})


def _rms_norm(x: Any, shape: list[int], weight: Any = None, eps: float | None = None) -> Inputs:
    if len(shape) != 1 or eps is None:
        raise NoRow
    return Inputs((x, torch.ones(shape) if weight is None else weight), {"epsilon": eps})


def _binary(x: Any, y: Any, alpha: float = 1) -> Inputs:
    if alpha != 1:
        raise NoRow
    return Inputs(tuple(a if isinstance(a, torch.Tensor) else torch.tensor(a, dtype=torch.float64) for a in (x, y)))


def _softmax(x: Any, dim: int, *_: Any) -> Inputs:
    if dim not in (-1, x.ndim - 1):
        raise NoRow
    return Inputs((x,))


def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Inputs:
    if scale is not None and not math.isclose(scale, q.shape[-1] ** -0.5):
        raise NoRow
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if attn_mask is None:
        return Inputs((q, k, v, torch.zeros(())))
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=torch.float64).masked_fill(~attn_mask, -math.inf)
    return Inputs((q, k, v, attn_mask))


def _conv1d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Inputs:
    return Inputs(
        (x, weight, torch.zeros(len(weight)) if bias is None else bias),
        {"stride": _one(stride), "padding": _one(padding), "dilation": _one(dilation), "groups": groups},
    )


def _one(size: Any) -> Any:
    return size[0] if isinstance(size, (list, tuple)) else size


def _power(x: Any, exponent: float) -> Inputs:
    if exponent != 2:
        raise NoRow
    return Inputs((x, x))


def _reduced(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Inputs:
    dims = tuple(range(x.ndim)) if dim is None else tuple(dim) if isinstance(dim, (list, tuple)) else (dim,)
    return Inputs((x,), {"axes": dims, "keep": keepdim})


ROWS = {
    "aten.linear": Row("linear", _linear),
    "aten.addmm": Row("linear", lambda bias, x, y: Inputs((x, y.mT, bias))),
    "aten.matmul": Row("matmul"),
    "aten.mm": Row("matmul"),
    "aten.bmm": Row("matmul"),
    "aten.layer_norm": Row("layer_norm", _layer_norm),
    "aten.rms_norm": Row("rms_norm", _rms_norm),
    "aten.embedding": Row("token_embedding", lambda weight, tokens, *_: Inputs((tokens, weight))),
    "aten.add.Tensor": Row("residual", _binary),
    "aten.add_.Tensor": Row("residual", _binary),
    "aten.sub.Tensor": Row("subtract", _binary),
    "aten.rsub.Scalar": Row("subtract", lambda x, y, alpha=1: _binary(torch.tensor(y, dtype=torch.float64), x, alpha)),
    "aten.mul.Tensor": Row("multiply", _binary),
    "aten.div.Tensor": Row("divide", _binary),
    "aten.pow.Tensor_Scalar": Row("multiply", _power),
    "aten.softmax.int": Row("softmax", _softmax),
    "aten._softmax": Row("softmax", _softmax),
    "aten.scaled_dot_product_attention": Row("masked_attention", _attention),
    "aten.conv1d": Row("conv1d", _conv1d),
    "aten.mean.dim": Row("mean", _reduced),
    "aten.sum.dim_IntList": Row("sum", _reduced),
    **{f"aten.{name}": Row(name) for name in ("exp", "rsqrt", "sigmoid", "silu", "sqrt", "tanh", "cos", "sin")},
}
_GELU = {"none": Row("gelu", lambda x, **_: Inputs((x,))), "tanh": Row("gelu_tanh", lambda x, **_: Inputs((x,)))}
# Ops that round nothing: they move, pick, fill, or compare.
EXACT = {
    "getitem",
    "aten._to_copy",
    "aten._unsafe_view",
    "aten.abs",
    "aten.alias",
    "aten.amax",
    "aten.amin",
    "aten.arange",
    "aten.arange.start",
    "aten.arange.start_step",
    "aten.cat",
    "aten.chunk",
    "aten.clamp",
    "aten.clamp_max",
    "aten.clamp_min",
    "aten.clone",
    "aten.contiguous",
    "aten.detach",
    "aten.dropout",
    "aten.expand",
    "aten.expand_as",
    "aten.flatten.using_ints",
    "aten.flip",
    "aten.full",
    "aten.full_like",
    "aten.gather",
    "aten.getitem",
    "aten.index.Tensor",
    "aten.index_put",
    "aten.index_select",
    "aten.lift_fresh_copy",
    "aten.mT",
    "aten.masked_fill.Scalar",
    "aten.masked_fill.Tensor",
    "aten.max.dim",
    "aten.maximum",
    "aten.min.dim",
    "aten.minimum",
    "aten.narrow",
    "aten.neg",
    "aten.new_full",
    "aten.new_ones",
    "aten.new_zeros",
    "aten.ones",
    "aten.ones_like",
    "aten.permute",
    "aten.relu",
    "aten.repeat",
    "aten.repeat_interleave.self_int",
    "aten.reshape",
    "aten.roll",
    "aten.scatter.src",
    "aten.select.int",
    "aten.slice.Tensor",
    "aten.split.Tensor",
    "aten.split_with_sizes",
    "aten.squeeze",
    "aten.squeeze.dim",
    "aten.stack",
    "aten.t",
    "aten.to.device",
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.transpose.int",
    "aten.tril",
    "aten.triu",
    "aten.type_as",
    "aten.unbind.int",
    "aten.unflatten.int",
    "aten.unfold",
    "aten.unsqueeze",
    "aten.view",
    "aten.where.Scalar",
    "aten.where.ScalarOther",
    "aten.where.ScalarSelf",
    "aten.where.self",
    "aten.zeros",
    "aten.zeros_like",
}


# Exact ops that reports leave out between others, because they change no number.
LAYOUTS = {
    "_to_copy",
    "alias",
    "arange",
    "cat",
    "chunk",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "expand",
    "expand_as",
    "flatten",
    "full",
    "getitem",
    "index",
    "index_select",
    "mT",
    "narrow",
    "ones",
    "ones_like",
    "permute",
    "repeat",
    "repeat_interleave",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "stack",
    "t",
    "to",
    "transpose",
    "type_as",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "zeros",
    "zeros_like",
}


def row_of(op: "Op") -> Row:
    """Return how an op is judged."""
    if op.kind in EXACT or not op.is_floating:
        return Row(is_exact=True)
    if op.kind == "aten.gelu":
        return _GELU[op.kwargs.get("approximate", "none")]
    return ROWS.get(op.kind, Row())


def as_definition(x: Any) -> np.ndarray:
    """Return what a definition takes: float64, or whole numbers."""
    array = x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return array if array.dtype.kind in "iu" else array.astype(np.float64)
