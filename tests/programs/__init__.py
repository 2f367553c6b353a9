"""Programs written for `openai-whisper`. `tests/test_drop_in.py` runs them with either import."""
