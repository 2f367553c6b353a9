"""The weights and activations of a decoder block, in the order of the fused kernel's arguments.

`kernels/decoder_block.mojo` has constants of the same names and in the same order.
"""

# Layer norms. Each has a weight and a bias [n_state].
NORMS = ("attn_ln", "cross_attn_ln", "mlp_ln")

# Linear layers: n_out and n_in of the weight, by name.
LINEARS = {
    "attn.query": ("n_state", "n_state"),
    "attn.key": ("n_state", "n_state"),
    "attn.value": ("n_state", "n_state"),
    "attn.out": ("n_state", "n_state"),
    "cross_attn.query": ("n_state", "n_state"),
    "cross_attn.out": ("n_state", "n_state"),
    "mlp.0": ("n_mlp", "n_state"),
    "mlp.2": ("n_state", "n_mlp"),
}
WITHOUT_BIAS = ("attn.key",)

# One-dimensional weights: those of the layer norms, then the biases of the linear layers.
VECTORS = (
    *(f"{norm}.{name}" for norm in NORMS for name in ("weight", "bias")),
    *(f"{linear}.bias" for linear in LINEARS if linear not in WITHOUT_BIAS),
)

# Activations: the last dimension, by name.
ACTIVATIONS = {
    "attn_ln": "n_state",
    "attn.query": "n_state",
    "attn.key": "n_state",
    "attn.value": "n_state",
    "attn.context": "n_state",
    "attn.out": "n_state",
    "attn.residual": "n_state",
    "cross_attn_ln": "n_state",
    "cross_attn.query": "n_state",
    "cross_attn.context": "n_state",
    "cross_attn.out": "n_state",
    "cross_attn.residual": "n_state",
    "mlp_ln": "n_state",
    "mlp.0": "n_mlp",
    "mlp.gelu": "n_mlp",
    "mlp.2": "n_state",
    "mlp.residual": "n_state",
}
