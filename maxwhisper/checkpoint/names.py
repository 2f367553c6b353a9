"""The names that programs store a Whisper's weights under, and OpenAI's for them."""

import re
from collections.abc import Mapping

import numpy as np

from maxwhisper.checkpoint.dimensions import EMBEDDING, LM_HEAD
from maxwhisper.errors import CheckpointError

Weights = dict[str, np.ndarray]

# Parts of Hugging Face's names and of OpenAI's, replaced in this order; OpenAI's own names stay as they are.
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
# Put around a module or a part of it: by torch.compile, by (Distributed)DataParallel, by FSDP, by activation checkpointing.
WRAPPED = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
FIRST = re.compile(
    r"(?P<prefix>(.*\.)?)encoder\.conv1\.weight"
)  # the name in all of them; what stands before it stands before all
HEAD = re.compile(r"(decoder\.)?(proj_out|lm_head)\.weight")
ADAPTER = re.compile(r"(?<![^.])(lora_\w+|ia3_\w+|base_layer|modules_to_save)(\.|$)")  # PEFT's names


def openai_names(stored: Mapping[str, np.ndarray], source: str) -> Weights:
    """The same weights under OpenAI's names, without what wrappers put before them; `LM_HEAD` among them where the head is stored.

    Raises CheckpointError where they are no model's, an adapter's, or several models'; `source` names the file in it.
    """
    for name in stored:
        if ADAPTER.search(name):
            raise CheckpointError(
                f"{source} holds an adapter that is not merged ({name}); merge it with PEFT and save the model: "
                "model.merge_and_unload().save_pretrained(FOLDER)"
            )
    unwrapped = _renamed(stored, {name: WRAPPED.sub("", name) for name in stored}, source)
    prefixes = [found["prefix"] for name in unwrapped if (found := FIRST.fullmatch(name))]
    if len(prefixes) != 1:
        what = (
            f"several models ({', '.join(sorted(prefixes))}); save the weights of one"
            if prefixes
            else "no Whisper model"
        )
        raise CheckpointError(
            f"{source} holds {what}; its {len(unwrapped)} weights have names like {min(unwrapped, default=None)}"
        )
    return _renamed(unwrapped, {name: _openai_name(name, prefixes[0]) for name in unwrapped}, source)


def _openai_name(name: str, prefix: str) -> str:
    # Hugging Face's LM head stands beside the model: `proj_out.weight` and `model.encoder.…`.
    if any(HEAD.fullmatch(name.removeprefix(before)) for before in (prefix, prefix.removesuffix("model."))):
        return LM_HEAD
    name = name.removeprefix(prefix)
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def _renamed(weights: Mapping[str, np.ndarray], names: Mapping[str, str], source: str) -> Weights:
    """Under new names, of which several may come to the same if their numbers do."""
    renamed = Weights()
    for old, new in names.items():
        if new in renamed and not np.array_equal(renamed[new], weights[old]):
            raise CheckpointError(
                f"{source} holds {new} twice, with other numbers as {old}; save the weights of one model"
            )
        renamed[new] = weights[old]
    return renamed


def with_one_vocabulary(weights: Mapping[str, np.ndarray], source: str, tied: bool = True) -> Weights:
    """Without `LM_HEAD` where it has the token embedding's numbers; as that embedding where there is no other.

    tied: whether a configuration lets one stand for the other where it isn't stored.

    Raises CheckpointError where one is missing that is not tied to the other.
    """
    present = [name for name in (EMBEDDING, LM_HEAD) if name in weights]
    if len(present) == 1 and not tied:
        raise CheckpointError(
            f"{source} holds {present[0]} alone, but config.json says that token embedding and LM head differ; get the other one, too, "
            'or write "tie_word_embeddings": true there if they are the same'
        )
    if len(present) == 2 and not np.array_equal(weights[EMBEDDING], weights[LM_HEAD]):
        return dict(weights)
    return {EMBEDDING if name == LM_HEAD else name: array for name, array in weights.items()}
