"""The errors and warnings a user can cause and mend. Each says in one line what was wrong, with what value, and what to do."""


class WhisperError(RuntimeError):
    """Base of the errors below; the command line prints them without a traceback."""


class AudioError(WhisperError):
    """Audio that can't be read or used."""


class CheckpointError(WhisperError):
    """A model that can't be found, read or used."""


class OptionError(WhisperError, ValueError):
    """An option whose value can't be used."""


class OutputError(WhisperError):
    """A result that can't be written."""


class WhisperWarning(UserWarning):
    """Base of the warnings below; the command line prints each in one line."""


class AudioWarning(WhisperWarning):
    """Audio that is read, though something about it is wrong."""


class CheckpointWarning(WhisperWarning):
    """A model that is read, though something else beside it is not."""
