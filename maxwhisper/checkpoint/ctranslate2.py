"""CTranslate2's `model.bin`, the format that faster-whisper uses.

Layout of version 6, with all numbers little-endian:

- version u32, specification name, revision u32, number of variables u32;
- for each variable: name, rank u8, sizes u32 each, dtype u8, number of bytes u32, bytes;
- number of aliases u32, and for each alias: alias, name of the variable.

A string is its length u16, including the final NUL, and its bytes.
"""

import re
import struct
from dataclasses import replace

import numpy as np

from maxwhisper.checkpoint.checkpoint import MALFORMED, Checkpoint
from maxwhisper.checkpoint.dimensions import dimensions_of
from maxwhisper.checkpoint.names import Stored, tie_lm_head
from maxwhisper.checkpoint.stored import BFLOAT16, StoredBytes, StoredTensor, Weights
from maxwhisper.errors import CheckpointError

SPECIFICATION = "WhisperSpec"
VERSION = 6
DTYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16", 5: BFLOAT16}
SCALE = "_scale"  # of an int8 variable, what its numbers were multiplied with

# Patterns in CTranslate2's names and OpenAI's replacements, applied in this order, after "/" is
# replaced by ".".
RENAMED = (
    (r"\.layer_(\d+)\.", r".blocks.\1."),
    (r"\.self_attention\.layer_norm\.", ".attn_ln."),
    (r"\.attention\.layer_norm\.", ".cross_attn_ln."),
    (r"\.ffn\.layer_norm\.", ".mlp_ln."),
    (r"\.ffn\.linear_0\.", ".mlp.0."),
    (r"\.ffn\.linear_1\.", ".mlp.2."),
    (r"\.self_attention\.linear_0\.", ".attn.query+key+value."),
    (r"\.self_attention\.linear_1\.", ".attn.out."),
    (r"\.attention\.linear_0\.", ".cross_attn.query."),
    (r"\.attention\.linear_1\.", ".cross_attn.key+value."),
    (r"\.attention\.linear_2\.", ".cross_attn.out."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.position_encodings\.encodings$", ".positional_embedding"),
    (r"\.embeddings\.", ".token_embedding."),
    (r"^decoder\.projection\.", "decoder.proj_out."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)


def read_ctranslate2(content: StoredBytes, source: str) -> Checkpoint:
    """Find the weights in a `model.bin`.

    Args:
        content: the bytes of the file.
        source: the name of the file, for errors.

    Raises:
        CheckpointError: if the bytes are truncated or damaged, are not a Whisper model, or contain
            weights quantized to 16 bits.
    """
    try:
        variables = _variables(content)
        n_head = {part: int(variables.pop(f"{part}/num_heads").read()) for part in ("encoder", "decoder")}
        weights = Stored()
        for name, tensor in variables.items():
            if tensor.shape and not name.endswith(SCALE) and name != "decoder/alignment_heads":
                if scale := variables.get(name + SCALE):
                    tensor = _with_scale(tensor, scale, source)
                weights |= _openai_weights(name, tensor)
        dims = dimensions_of(weights, n_head["encoder"], n_head["decoder"])
    except (struct.error, *MALFORMED) as error:
        raise CheckpointError(
            f"{source} is damaged or not a CTranslate2 Whisper model ({error}); download it again"
        ) from error
    return Checkpoint(dims, Weights(tie_lm_head(weights, source)), source)


def _with_scale(tensor: StoredTensor, scale: StoredTensor, source: str) -> StoredTensor:
    if tensor.dtype != "int8":
        raise CheckpointError(
            f"{source} holds weights quantized to 16 bits; convert the model again, with float16 or int8 weights"
        )
    factors = scale.numbers().astype(np.float32)
    if factors.shape != tensor.shape[:1] or not (factors > 0).all():
        raise ValueError(f"scales of shape {factors.shape} or below zero, for weights of shape {tensor.shape}")
    return replace(tensor, scale=1 / factors)


def _variables(content: StoredBytes) -> Stored:
    """Find the variables by CTranslate2's names, aliases included."""
    at = 0

    def take(n: int) -> int:
        """Skip n bytes and return their offset."""
        nonlocal at
        at += n
        if at > len(content):
            raise ValueError(f"it ends after {len(content)} bytes")
        return at - n

    def number(fmt: str) -> int:
        return struct.unpack_from(f"<{fmt}", content.mapped, take(struct.calcsize(f"<{fmt}")))[0]

    def string() -> str:
        n = number("H")
        start = take(n)
        return bytes(content.mapped[start : start + n]).rstrip(b"\0").decode()

    version, specification = number("I"), string()
    if (version, specification) != (VERSION, SPECIFICATION):
        raise ValueError(
            f"{specification!r} of version {version}, but {SPECIFICATION!r} of version {VERSION} is required"
        )
    _revision, count = number("I"), number("I")
    variables = Stored()
    for _ in range(count):
        name = string()
        shape = tuple(number("I") for _ in range(number("B")))
        code, n_bytes = number("B"), number("I")
        tensor = StoredTensor(shape, DTYPES[code], content, take(n_bytes))
        if tensor.size * tensor.itemsize != n_bytes:
            raise ValueError(f"{name} of shape {shape} has {n_bytes} bytes")
        variables[name] = tensor
    for _ in range(number("I")):
        alias, name = string(), string()  # the LM head is an alias of the token embedding
        variables[alias] = variables[name]
        if (scale := variables.get(name + SCALE)) is not None:
            variables[alias + SCALE] = scale
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes are left over")
    return variables


def _openai_weights(name: str, tensor: StoredTensor) -> Stored:
    """Split a variable into OpenAI's weights; queries, keys and values may be stacked in one."""
    name = name.replace("/", ".")
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    stacked = re.search(r"\w+(\+\w+)+", name)
    if stacked is None:
        return {name: tensor}
    projections = stacked[0].split("+")
    n, rest = divmod(tensor.shape[0], len(projections))
    if rest:
        raise ValueError(f"{name} of shape {tensor.shape} does not divide into {len(projections)} projections")
    weights = {
        name.replace(stacked[0], projection): tensor.rows(i * n, (i + 1) * n)
        for i, projection in enumerate(projections)
    }
    for key_bias in [weights.pop(name) for name in list(weights) if name.endswith("key.bias")]:
        if key_bias.numbers().any():
            raise ValueError("a key bias is not zero, but Whisper's keys have no bias")
    return weights
