"""What programs import from `whisper.transcribe`."""

from maxwhisper.transcription.sequential import TranscriptionInfo, iter_segments, transcribe

__all__ = ["TranscriptionInfo", "iter_segments", "transcribe"]
