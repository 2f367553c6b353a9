"""Mistakes that are tried on the op suite alone: with them, what the whole model's tests would show is shown by others already."""

from max.dtype import DType
from max.graph import TensorValue
from max.graph import ops as max_ops

from tests.faults.in_graphs import in_half
from tests.faults.plant import Fault, instead


def products_in_half(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """A sum of products that were rounded to float16."""
    half = DType.float16
    products = max_ops.cast(max_ops.unsqueeze(x, -2), half) * max_ops.cast(weight, half)
    return max_ops.cast(max_ops.squeeze(max_ops.sum(products, axis=-1), -1), x.dtype) + bias


def mask_of_the_position_before(scores: TensorValue, mask: TensorValue) -> TensorValue:
    """Each query misses itself, but the first."""
    n = mask.shape[0]
    return scores + max_ops.concat([mask[0:1, :], mask], axis=0)[(slice(TensorValue(n * 0), TensorValue(n)), n), :]


FAULTS = [
    Fault(
        "bias dropped",
        "linear",
        "a layer without one",
        {"engine.ops.linear": lambda right: lambda x, weight, bias: right(x, weight)},
        op="linear",
    ),
    Fault(
        "products in half precision",
        "linear",
        "the weights' dtype",
        {"engine.ops.linear": instead(products_in_half)},
        op="linear",
    ),
    Fault(
        "layer norm's bias dropped",
        "layer_norm",
        "a root mean square norm",
        {"engine.ops.layer_norm": lambda right: lambda x, weight, bias: right(x, weight, bias * 0)},
        op="layer_norm",
    ),
    Fault(
        "mask off by one in the graph",
        "masked_attention",
        "a diagonal counted from one",
        {"engine.ops.apply_mask": instead(mask_of_the_position_before)},
        op="masked_attention",
    ),
    Fault(
        "-1e4 for -inf",
        "causal_mask",
        "float16's habit; harmless until scores are large",
        {"engine.ops.apply_mask": lambda right: lambda scores, mask: right(scores, max_ops.max(mask, -1e4))},
        op="causal_mask",
    ),
    Fault(
        "attention weights in half precision",
        "softmax",
        "softmax in float32, its result in the weights' dtype",
        {"engine.ops.softmax": lambda right: lambda x: in_half(right(x))},
        op="softmax",
    ),
    Fault(
        "mask missing in the graph",
        "masked_attention",
        "a step's attention taken for a prefill's",
        {"engine.ops.apply_mask": instead(lambda scores, mask: scores)},
        op="masked_attention",
    ),
]
