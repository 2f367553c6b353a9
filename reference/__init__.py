"""Reference implementations, and their comparison with MAX.

The references are float64 definitions in NumPy, and OpenAI Whisper.
"""
