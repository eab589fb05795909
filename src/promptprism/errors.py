"""The one error a user is meant to read, and the one warning."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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


def warn(text: str, kind: type[PromptPrismWarning] = PromptPrismWarning) -> None:
    """Warn of what the caller of the function that calls this has given."""
    warnings.warn(text, kind, stacklevel=3)


@contextmanager
def needs(what: str, extra: str, instead: str = "") -> Iterator[None]:
    """Name the extra that brings a package which is imported inside.

    Args:
        what: needs the package.
        extra: of promptprism.
        instead: what else can be done.

    Raises:
        PromptPrismError: the package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise PromptPrismError(
            f"{what} needs the package {error.name}: pip install 'promptprism[{extra}]'{instead}"
        ) from error
