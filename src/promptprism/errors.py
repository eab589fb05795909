"""The one error a user is meant to read, and the one warning."""


class PromptPrismError(Exception):
    """Something the user gave cannot be used.

    The message names the value, the place and the remedy; the command line prints it without a traceback.
    """


class DataWarning(UserWarning):
    """Data can be used, but may say something else than they seem to; the command line prints one line."""


class NotFittedError(PromptPrismError, ValueError, AttributeError):
    """The estimator was used before it was fitted."""
