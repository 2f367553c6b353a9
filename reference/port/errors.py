"""The error of this package."""


class PortError(ValueError):
    """A port can't be compared with its original. The message says why, and what to do."""
