"""Errors and warnings that a user can cause and correct.

Each message is one line with the problem, the value, and the remedy.
"""


class WhisperError(RuntimeError):
    """The base class of the errors; the command line prints them without a traceback."""


class AudioError(WhisperError):
    """Audio that can't be read or used."""


class CheckpointError(WhisperError):
    """A model that can't be found, read or used."""


class OptionError(WhisperError, ValueError):
    """An option whose value can't be used."""


class OutputError(WhisperError):
    """A result that can't be written."""


class WhisperWarning(UserWarning):
    """The base class of the warnings; the command line prints each in one line."""


class AudioWarning(WhisperWarning):
    """Audio that is read although something about it is wrong."""


class CheckpointWarning(WhisperWarning):
    """A model that is read although something about it, or in its folder, is odd."""
