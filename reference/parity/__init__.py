"""`nox -s parity`: the same recordings through MAX and through OpenAI Whisper; equal within rounding, or the first thing that differs."""
