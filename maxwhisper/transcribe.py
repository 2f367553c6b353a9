"""The public names of `whisper.transcribe`, for programs that import that module."""

from maxwhisper.transcription.sequential import TranscriptionInfo, iter_segments, transcribe

__all__ = ["TranscriptionInfo", "iter_segments", "transcribe"]
