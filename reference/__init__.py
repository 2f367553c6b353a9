"""The truth: float64 definitions in NumPy, OpenAI Whisper as witness and judge, and what compares MAX with them."""
