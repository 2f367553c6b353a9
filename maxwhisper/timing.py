"""The public names of `whisper.timing`, for programs that import that module."""

from maxwhisper.transcription.timing import (
    WordTiming,
    add_word_timestamps,
    backtrace,
    dtw,
    dtw_cpu,
    dtw_cuda,
    find_alignment,
    median_filter,
    merge_punctuations,
)

__all__ = [
    "WordTiming",
    "add_word_timestamps",
    "backtrace",
    "dtw",
    "dtw_cpu",
    "dtw_cuda",
    "find_alignment",
    "median_filter",
    "merge_punctuations",
]
