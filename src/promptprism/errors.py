"""The one error a user is meant to read, and the one warning."""


class PromptPrismError(Exception):
    """Something the user gave cannot be used.

    The message names the value, the place and the remedy; the command line prints it without a traceback.
    """


class PromptPrismWarning(UserWarning):
    """Something works, but not as it seems; the command line prints one line."""


class DataWarning(PromptPrismWarning):
    """Data can be used, but may say something else than they seem to."""


class NotFittedError(PromptPrismError, ValueError, AttributeError):
    """The estimator was used before it was fitted."""


class CollapseWarning(PromptPrismWarning):
    """A training run has collapsed: what it made is no result."""
