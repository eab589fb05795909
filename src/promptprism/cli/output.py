"""Where the commands put what they have to say. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from promptprism import __version__
from promptprism.errors import PromptPrismError, PromptPrismWarning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

_T = TypeVar("_T")

#: Raised when a field is removed or changes its meaning; new fields may come without.
SCHEMA_VERSION = 1
# As many failures are listed.
_LISTED = 20


# What terminals obey instead of showing it: control characters, and marks that turn the direction of text.
_OBEYED = re.compile("[\0-\b\v-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def command(*words: object) -> str:
    """A command of ours as a shell takes it, whatever is in its words."""
    return shlex.join(map(str, ("promptprism", *words)))


def visible(text: object) -> str:
    """Text with what a terminal would obey written out; line ends and tabs stay."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def tell(text: object, colour: str) -> None:
    """Say one thing on standard error; of line ends in a name no line is made that looks its own."""
    typer.secho(visible(text).replace("\n", "\n    "), fg=colour, err=True)


def terminal(**options: Any) -> Console:
    """A console that shows names as they are, escapes written out."""
    from rich.console import Console
    from rich.segment import Segment

    class Terminal(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return Terminal(**options)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Tell each of our warnings once, as one line; and escape what a terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if not issubclass(category, PromptPrismWarning):
            plain(message, category, *where)
        elif str(message) not in said:
            said.add(str(message))
            tell(f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        plain = warnings.showwarning
        warnings.simplefilter("always", PromptPrismWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


class Output:
    """Where a result goes: tables to standard output; JSON to a file, or alone to standard output."""

    def __init__(self, command: str, target: str | None) -> None:
        from promptprism.files import check_place

        self.command, self.target = command, target
        if target not in (None, "-"):
            check_place(Path(target))
        self.console = terminal(quiet=target == "-", highlight=False, markup=False)
        self._warnings = terminal(stderr=target == "-", highlight=False, markup=False)

    def show(self, *things: Any) -> None:
        """Print, unless JSON has standard output for itself."""
        for thing in things:
            # Written out before it is wrapped: what grows afterwards would be cut.
            self.console.print(visible(thing) if isinstance(thing, str) else thing)

    def warn(self, text: str) -> None:
        """Print what a person should not miss, to standard error if JSON has standard output."""
        self._warnings.print(visible(text), style="yellow")

    def end(self, failures: Collection[str]) -> None:
        """Say what failed, of very much the first, and end with code 1 if anything did."""
        for failure in islice(failures, _LISTED):
            self.warn(f"✗ {failure}")
        if (more := len(failures) - _LISTED) > 0:
            self.warn(f"✗ and {more} more")
        if failures:
            raise typer.Exit(1)

    def write(self, **content: Any) -> None:
        """Write the JSON that was asked for."""
        if self.target is None:
            return
        from promptprism.files import write_bytes

        text = to_json(document(self.command, **content))
        if self.target == "-":
            sys.stdout.write(text)
        else:
            # A file name may be no UTF-8; \udce9 is how JSON writes such a byte.
            write_bytes(Path(self.target), text.encode(errors="backslashreplace"))


def watched(things: Iterable[_T], count: Callable[[], int]) -> Iterator[_T]:
    """Show a bar on standard error, if that is a terminal; photos are counted beside the first that come."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = terminal(stderr=True)
    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("photos, left"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def look_ahead() -> None:
            with suppress(PromptPrismError):
                progress.update(task, total=count())

        if console.is_terminal:
            threading.Thread(target=look_ahead, daemon=True).start()
        for thing in things:
            progress.advance(task)
            yield thing


def document(command: str, **content: Any) -> dict[str, Any]:
    """Put the head that all documents share before a command's own fields."""
    head = {"schema": f"promptprism/{command}", "schema_version": SCHEMA_VERSION, "promptprism": __version__}
    return {**head, **content}


def to_json(content: dict[str, Any]) -> str:
    """Write a document as strict JSON (no NaN), one field a line, every script as it is.

    Raises:
        PromptPrismError: a number is not finite.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise PromptPrismError(
            "the result holds a number that is not finite, which is none: nothing is written"
        ) from error
    # JSON escapes all below a space itself, and takes \\u for the rest.
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}" if found[0] > " " else found[0], text)
