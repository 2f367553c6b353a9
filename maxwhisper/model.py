"""The public names of `whisper.model`, for programs that import that module."""

from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.whisper import Whisper

__all__ = ["ModelDimensions", "Whisper"]
