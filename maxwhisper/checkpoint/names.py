"""Conversion of the names of stored weights to OpenAI's names."""

import re
from collections.abc import Mapping

from maxwhisper.checkpoint.dimensions import EMBEDDING, LM_HEAD
from maxwhisper.checkpoint.stored import StoredTensor
from maxwhisper.errors import CheckpointError

Stored = dict[str, StoredTensor]

# Patterns in Hugging Face's names and OpenAI's replacements, applied in this order. OpenAI's own
# names stay unchanged.
RENAMED = (
    (r"\.layers\.", ".blocks."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.", ".attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)
# Parts of names that wrappers of modules add: torch.compile, (Distributed)DataParallel, FSDP,
# activation checkpointing.
WRAPPED = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# A weight that has this name in all formats. Its prefix is the prefix of all weights.
FIRST = re.compile(r"(?P<prefix>(.*\.)?)encoder\.conv1\.weight")
HEAD = re.compile(r"(decoder\.)?(proj_out|lm_head)\.weight")
ADAPTER = re.compile(r"(?<![^.])(lora_\w+|ia3_\w+|base_layer|modules_to_save)(\.|$)")  # PEFT's names


def openai_names(stored: Mapping[str, StoredTensor], source: str) -> Stored:
    """Rename weights to OpenAI's names, and the LM head, if stored, to `LM_HEAD`.

    Args:
        stored: weights by the file's own names. Prefixes of wrappers are removed.
        source: the name of the file, for errors.

    Raises:
        CheckpointError: if the weights are those of no Whisper model, of several models, or of an
            adapter.
    """
    for name in stored:
        if ADAPTER.search(name):
            raise CheckpointError(
                f"{source} holds an adapter that is not merged ({name}); merge it with PEFT and save the model: "
                "model.merge_and_unload().save_pretrained(FOLDER)"
            )
    unwrapped = _rename(stored, {name: WRAPPED.sub("", name) for name in stored}, source)
    prefixes = [match["prefix"] for name in unwrapped if (match := FIRST.fullmatch(name))]
    if len(prefixes) != 1:
        content = (
            f"several models ({', '.join(sorted(prefixes))}); save the weights of one"
            if prefixes
            else "no Whisper model"
        )
        raise CheckpointError(
            f"{source} holds {content}; its {len(unwrapped)} weights have names like {min(unwrapped, default=None)}"
        )
    return _rename(unwrapped, {name: _openai_name(name, prefixes[0]) for name in unwrapped}, source)


def _openai_name(name: str, prefix: str) -> str:
    # Hugging Face's LM head lacks the prefix `model.`: `proj_out.weight` next to `model.encoder`.
    if any(HEAD.fullmatch(name.removeprefix(before)) for before in (prefix, prefix.removesuffix("model."))):
        return LM_HEAD
    name = name.removeprefix(prefix)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _rename(weights: Mapping[str, StoredTensor], names: Mapping[str, str], source: str) -> Stored:
    """Rename weights; several may get the same name only if their values are equal."""
    renamed = Stored()
    for old, new in names.items():
        if new in renamed and not renamed[new].equals(weights[old]):
            raise CheckpointError(
                f"{source} holds {new} twice, with different values as {old}; save the weights of one model"
            )
        renamed[new] = weights[old]
    return renamed


def tie_lm_head(weights: Mapping[str, StoredTensor], source: str, tied: bool = True) -> Stored:
    """Store the LM head and the token embedding once, as the embedding, if they are the same.

    They are the same if only one is stored, or their values are equal.

    Args:
        weights: by OpenAI's names.
        source: the name of the file, for errors.
        tied: whether the configuration allows that only one is stored.

    Raises:
        CheckpointError: if one is missing and they are not tied.
    """
    present = [name for name in (EMBEDDING, LM_HEAD) if name in weights]
    if len(present) == 1 and not tied:
        raise CheckpointError(
            f"{source} holds {present[0]} alone, but config.json says that token embedding and LM head differ; "
            'add the other one, or write "tie_word_embeddings": true in config.json if they are the same'
        )
    if len(present) == 2 and not weights[EMBEDDING].equals(weights[LM_HEAD]):
        return dict(weights)
    return {EMBEDDING if name == LM_HEAD else name: stored for name, stored in weights.items()}
