"""Where the commands put what they have to say. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


class Output:
    """Where a result goes: tables to standard output; JSON to a file, or alone to standard output."""

    def __init__(self, command: str, target: str | None) -> None:
        from rich.console import Console

        from promptprism.reports.documents import check_place

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
        from promptprism.reports.documents import document, to_json

        text = to_json(document(self.command, **content))
        if self.target == "-":
            sys.stdout.write(text)
        else:
            write_bytes(Path(self.target), text.encode())
