"""CTranslate2's `model.bin`, the format that faster-whisper uses.

Layout of version 6, with all numbers little-endian:

- version u32, specification name, revision u32, number of variables u32;
- for each variable: name, rank u8, sizes u32 each, dtype u8, number of bytes u32, bytes;
- number of aliases u32, and for each alias: alias, name of the variable.

A string is its length u16, including the final NUL, and its bytes.
"""

import re
import struct

import numpy as np

from maxwhisper.checkpoint.checkpoint import MALFORMED, Checkpoint, widen_bfloat16
from maxwhisper.checkpoint.dimensions import dimensions_of
from maxwhisper.checkpoint.names import tie_lm_head
from maxwhisper.errors import CheckpointError

SPECIFICATION = "WhisperSpec"
VERSION = 6
BFLOAT16 = 5
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", BFLOAT16: "<u2"}

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


def read_ctranslate2(data: bytes, source: str) -> Checkpoint:
    """Read the bytes of a `model.bin`.

    Args:
        data: the bytes.
        source: the name of the file, for errors.

    Raises:
        CheckpointError: if the bytes are truncated or damaged, are not a Whisper model, or contain
            quantized weights.
    """
    try:
        variables = _variables(data)
        weights, sizes = dict[str, np.ndarray](), dict[str, int]()
        for name, array in variables.items():
            if array.ndim == 0:
                sizes[name] = int(array)
            elif name.endswith("weight_scale"):
                raise CheckpointError(
                    f"{source} holds weights quantized to 8 bits; convert the model again with float16 weights"
                )
            elif name != "decoder/alignment_heads":
                weights |= _openai_weights(name, array)
        dims = dimensions_of(weights, sizes["encoder/num_heads"], sizes["decoder/num_heads"])
    except (struct.error, *MALFORMED) as error:
        raise CheckpointError(
            f"{source} is damaged or not a CTranslate2 Whisper model ({error}); download it again"
        ) from error
    return Checkpoint(dims, tie_lm_head(weights, source), source)


def _variables(data: bytes) -> dict[str, np.ndarray]:
    """Read the variables by CTranslate2's names, aliases included."""
    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        at += n
        if at > len(data):
            raise ValueError(f"it ends after {len(data)} bytes")
        return data[at - n : at]

    def number(fmt: str) -> int:
        return struct.unpack(f"<{fmt}", take(struct.calcsize(f"<{fmt}")))[0]

    def string() -> str:
        return take(number("H")).rstrip(b"\0").decode()

    version, specification = number("I"), string()
    if (version, specification) != (VERSION, SPECIFICATION):
        raise ValueError(
            f"{specification!r} of version {version}, but {SPECIFICATION!r} of version {VERSION} is required"
        )
    _revision, count = number("I"), number("I")
    variables = {}
    for _ in range(count):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        code, n_bytes = number("B"), number("I")
        array = np.frombuffer(memoryview(data)[at : at + n_bytes], DTYPES[code]).reshape(shape)
        at += n_bytes
        variables[name] = widen_bfloat16(array) if code == BFLOAT16 else array
    for _ in range(number("I")):
        alias, name = string(), string()  # the LM head is an alias of the token embedding
        variables[alias] = variables[name]
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
    return variables


def _openai_weights(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Split a variable into OpenAI's weights; queries, keys and values may be stacked in one."""
    name = name.replace("/", ".")
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    stacked = re.search(r"\w+(\+\w+)+", name)
    if stacked is None:
        return {name: array}
    projections = stacked[0].split("+")
    parts = zip(projections, np.split(array, len(projections)), strict=True)
    weights = {name.replace(stacked[0], projection): part for projection, part in parts}
    for key_bias in [weights.pop(name) for name in list(weights) if name.endswith("key.bias")]:
        if key_bias.any():
            raise ValueError("a key bias is not zero, but Whisper's keys have no bias")
    return weights
