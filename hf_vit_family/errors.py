"""Exceptions for what a user can mend. The command line prints their message as one line and exits with code 2."""


class UserError(ValueError):
    """Bad input: the message names the field, key, file or option at fault and says what to do."""


class ConversionError(UserError):
    """A checkpoint that is not what its layout says. `key` is the key or option at fault, where there is one."""

    def __init__(self, message: str, key: str | None = None):
        super().__init__(message)
        self.key = key


class UnreadableCheckpointError(ConversionError):
    """A file that cannot be read as a checkpoint: truncated, of another type, or holding code."""
