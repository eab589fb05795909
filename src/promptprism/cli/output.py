"""Where the commands put what they have to say. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from promptprism import __version__
from promptprism.errors import PromptPrismWarning

#: Raised when a field is removed or changes its meaning; new fields may come without.
SCHEMA_VERSION = 1


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
            typer.secho(f"warning: {message}", fg="yellow", err=True)

    with warnings.catch_warnings():
        plain = warnings.showwarning
        warnings.simplefilter("always", PromptPrismWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


class Output:
    """Where a result goes: tables to standard output; JSON to a file, or alone to standard output."""

    def __init__(self, command: str, target: str | None) -> None:
        from rich.console import Console

        from promptprism.files import check_place

        self.command, self.target = command, target
        if target not in (None, "-"):
            check_place(Path(target))
        self.console = Console(quiet=target == "-", highlight=False, markup=False)
        self._warnings = Console(stderr=target == "-", highlight=False, markup=False)

    def show(self, *things: Any) -> None:
        """Print, unless JSON has standard output for itself."""
        for thing in things:
            self.console.print(thing)

    def warn(self, text: str) -> None:
        """Print what a person should not miss, to standard error if JSON has standard output."""
        self._warnings.print(text, style="yellow")

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


def document(command: str, **content: Any) -> dict[str, Any]:
    """Put the head that all documents share before a command's own fields."""
    head = {"schema": f"promptprism/{command}", "schema_version": SCHEMA_VERSION, "promptprism": __version__}
    return {**head, **content}


def to_json(content: dict[str, Any]) -> str:
    """Write a document as strict JSON (no NaN), one field a line, every script as it is."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
