"""JSON that the commands write; its fields are described in docs/reference/cli-json.md."""

import json
import tempfile
from pathlib import Path
from typing import Any

from promptprism import __version__
from promptprism.errors import PromptPrismError

#: Raised when a field is removed or changes its meaning; new fields may come without.
SCHEMA_VERSION = 1


def document(command: str, **content: Any) -> dict[str, Any]:
    """Put the head that all documents share before a command's own fields."""
    head = {"schema": f"promptprism/{command}", "schema_version": SCHEMA_VERSION, "promptprism": __version__}
    return {**head, **content}


def to_json(content: dict[str, Any]) -> str:
    """Write a document as strict JSON (no NaN), one field a line, every script as it is."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def check_place(path: Path) -> None:
    """Find out before long work starts whether a file or folder can be written at a path.

    Raises:
        PromptPrismError: it cannot.
    """
    if path.is_dir():
        raise PromptPrismError(f"cannot write '{path}': it is a folder; name a file")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror or error}): check the permissions and free space of "
            f"'{parent}', or choose another place"
        ) from error
