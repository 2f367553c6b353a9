"""Comparison of MAX with OpenAI Whisper on the same recordings: `nox -s parity`."""
