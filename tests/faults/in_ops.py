"""Mistakes that are tried on the op suite only.

In the whole model, faults of the other modules already show the same.
"""

from max.dtype import DType
from max.graph import TensorValue
from max.graph import ops as max_ops

from tests.faults.in_graphs import in_half
from tests.faults.plant import Fault, instead


def products_in_half(x: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """Compute a linear layer whose products are rounded to float16 and summed."""
    half = DType.float16
    products = max_ops.cast(max_ops.unsqueeze(x, -2), half) * max_ops.cast(weight, half)
    return max_ops.cast(max_ops.squeeze(max_ops.sum(products, axis=-1), -1), x.dtype) + bias


def mask_of_the_position_before(scores: TensorValue, mask: TensorValue) -> TensorValue:
    """Hide each query's own position from it, except for the first query."""
    n = mask.shape[0]
    return scores + max_ops.concat([mask[0:1, :], mask], axis=0)[(slice(TensorValue(n * 0), TensorValue(n)), n), :]


FAULTS = [
    Fault(
        "bias dropped",
        "linear",
        "a linear layer without a bias",
        {"engine.ops.linear": lambda original: lambda x, weight, bias: original(x, weight)},
        op="linear",
    ),
    Fault(
        "products in half precision",
        "linear",
        "products in the weights' dtype",
        {"engine.ops.linear": instead(products_in_half)},
        op="linear",
    ),
    Fault(
        "layer norm's bias dropped",
        "layer_norm",
        "RMS norm, which has no bias",
        {"engine.ops.layer_norm": lambda original: lambda x, weight, bias: original(x, weight, bias * 0)},
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
        "usual in float16; harmless until scores are large",
        {"engine.ops.apply_mask": lambda original: lambda scores, mask: original(scores, max_ops.max(mask, -1e4))},
        op="causal_mask",
    ),
    Fault(
        "attention weights in half precision",
        "softmax",
        "softmax in float32, its result cast to the weights' dtype",
        {"engine.ops.softmax": lambda original: lambda x: in_half(original(x))},
        op="softmax",
    ),
    Fault(
        "mask missing in the graph",
        "masked_attention",
        "attention of single steps used for prefill",
        {"engine.ops.apply_mask": instead(lambda scores, mask: scores)},
        op="masked_attention",
    ),
]
