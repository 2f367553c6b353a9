"""Readers for OpenAI's `.pt`, Hugging Face's `safetensors` and CTranslate2's `model.bin`."""

from maxwhisper.checkpoint.catalog import available_models, load_checkpoint, read_checkpoint
from maxwhisper.checkpoint.checkpoint import Checkpoint
from maxwhisper.checkpoint.dimensions import LM_HEAD, ModelDimensions, weight_shapes

__all__ = [
    "LM_HEAD",
    "Checkpoint",
    "ModelDimensions",
    "available_models",
    "load_checkpoint",
    "read_checkpoint",
    "weight_shapes",
]
