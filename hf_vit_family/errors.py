"""Exceptions for what a user can mend. The command line prints their message as one line and exits with code 2."""


class UserError(ValueError):
    """Bad input: the message names the field, key, file or option at fault and says what to do."""
