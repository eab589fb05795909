"""The one error a user is meant to read, and the one warning."""

from __future__ import annotations

import difflib
import re
import reprlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


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


def first_problem(problems: Sequence[ErrorDetails], known: Sequence[str] = ()) -> str:
    """Place, value and fault of what pydantic found first, as a user reads it.

    Args:
        problems: all that it found.
        known: names that there are, to suggest where one is misspelt.
    """
    problem = problems[0]
    place, value = ".".join(map(str, problem["loc"])), reprlib.repr(problem["input"])
    message = re.sub(" or instance of .*", "", problem["msg"].removeprefix("Value error, "))
    message = message.replace("valid tuple", "list").replace("valid dictionary", "mapping")
    near = difflib.get_close_matches(place, known, n=1)
    match problem["type"]:
        case "missing":
            return f"'{place}' is missing"
        case "extra_forbidden":
            return f"'{place}' is unknown" + (f": did you mean '{near[0]}'?" if near else "")
        case "too_short":
            return f"'{place}' is empty: give at least one"
        case "value_error" | "json_invalid":
            return f"{place}: {message}" if place else message
    return f"{place or 'it'} is {value}: {message[0].lower()}{message[1:]}"


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
