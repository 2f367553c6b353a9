"""The page of a comparison: `python -m reference.parity` writes it."""
