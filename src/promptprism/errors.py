"""The one error a user is meant to read."""


class PromptPrismError(Exception):
    """Something the user gave cannot be used.

    The message names the value, the place and the remedy; the command line prints it without a traceback.
    """


class CollapseWarning(UserWarning):
    """A training run has collapsed: what it made is no result."""
