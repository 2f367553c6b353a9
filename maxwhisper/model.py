"""What programs import from `whisper.model`."""

from maxwhisper.checkpoint import ModelDimensions
from maxwhisper.whisper import Whisper

__all__ = ["ModelDimensions", "Whisper"]
