"""What a person says a photo is of, as a CSV that only grows and may be edited by hand."""

import csv
import io
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from promptprism.data.names import name_key
from promptprism.data.reading import read_text, some
from promptprism.data.tables import check_column, on_disk, parsed_lines
from promptprism.errors import DataWarning, PromptPrismError, warn
from promptprism.files import is_there

_WHAT = "file of corrections"
_NAME_IT = "its first line must name the columns path and label"


class Correction(NamedTuple):
    """What a person says of a photo.

    Attributes:
        path: of the photo.
        label: its class; empty withdraws what was said of it before.
        predicted: the class that the model named.
        probability: that the model gave it.
        at: when, in UTC; empty is now.
    """

    path: Path
    label: str
    predicted: str = ""
    probability: float | None = None
    at: str = ""


def read_corrections(path: Path, class_names: Sequence[str] | None = None) -> dict[Path, str]:
    """Read the label that counts of each photo, the last one; photos whose label was withdrawn are left out.

    Paths are relative to the file's folder, and come back absolute. Needed are the columns ``path`` and
    ``label``; comma, semicolon and tab separate. UTF-8, and UTF-16 that begins with its mark.

    Args:
        path: the CSV.
        class_names: the label space; labels come back as it spells them. None takes them as they are.

    Warns:
        DataWarning: lines contradict each other, or photos are not there; those come back too.

    Raises:
        PromptPrismError: no such file, no such column, a line without path, a label that is no class, or
            another encoding.
    """
    where = f"{_WHAT} '{path}'"
    text = read_text(path, _WHAT)
    lines = parsed_lines(where, text)
    header = [name.strip().lower() for name in next(lines, (0, []))[1]]
    for column in ("path", "label"):
        check_column(where, header, column, _NAME_IT)
    names = None if class_names is None else {name_key(name): name for name in class_names}
    found: dict[Path, tuple[int, str, str]] = {}
    contradicted = []
    for line, fields in lines:
        row = dict(zip(header, fields, strict=False))
        if not row["path"].strip():
            raise PromptPrismError(f"line {line} of {where} has no path: fill it in, or remove the line")
        label = row.get("label", "").strip()
        if label and names is not None:
            if name_key(label) not in names:
                raise PromptPrismError(
                    f"line {line} of {where} has label '{label}', which is none of the {len(names)} classes: "
                    f"write one of {some(names.values())}, or remove the line"
                )
            label = names[name_key(label)]
        photo = Path(os.path.abspath(on_disk(path.parent, row["path"])))  # noqa: PTH100 - links stay
        before, at = found.get(photo), row.get("at", "").strip()
        # Who changes a label in the page says when; lines without an order contradict each other.
        if before and label and before[1] not in ("", label) and not before[2] < at:
            contradicted.append(f"lines {before[0]} and {line}: {photo.name}")
        found[photo] = (line, label, at)
    if contradicted:
        warn(
            f"{where} gives {len(contradicted)} photos several labels, the last counts: {some(contradicted)}",
            DataWarning,
        )
    labels = {photo: label for photo, (_, label, _) in found.items() if label}
    if missing := [photo for photo in labels if not is_there(photo)]:
        warn(
            f"{len(missing)} of {len(labels)} photos of {where} are not there, first: {some(missing)}. Paths "
            "are relative to the folder of that file",
            DataWarning,
        )
    return labels


def append(path: Path, corrections: Sequence[Correction]) -> None:
    """Write corrections at the end of a CSV, on the disk before this returns; a new one begins with a header.

    The columns and the separator of a file that is there are kept. Photos below its folder are written
    relative to it.

    Raises:
        PromptPrismError: the place cannot be written, the file is none of corrections, or is not UTF-8.
    """
    new = not is_there(path) or not path.stat().st_size
    head = ",".join(Correction._fields) if new else _header(path)
    delimiter = max(",;\t", key=head.count)
    columns = [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter))]
    for column in ("path", "label"):
        check_column(f"{_WHAT} '{path}'", columns, column, _NAME_IT)
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100
    lines = io.StringIO()
    rows = csv.DictWriter(
        lines, columns, extrasaction="ignore", delimiter=delimiter, lineterminator="\n", restval=""
    )
    if new:
        rows.writeheader()
    for correction in corrections:
        photo = Path(os.path.abspath(correction.path))  # noqa: PTH100
        row = correction._asdict() | {
            "path": photo.relative_to(folder).as_posix() if photo.is_relative_to(folder) else str(photo),
            "at": correction.at or datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        rows.writerow({name: "" if value is None else value for name, value in row.items()})
    try:
        content = lines.getvalue().encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if not new:
                file.seek(-1, os.SEEK_END)
                content = (b"" if file.read() == b"\n" else b"\n") + content
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except UnicodeEncodeError as error:
        raise PromptPrismError(
            f"the name of photo {error.object[: error.start]!r}... is no UTF-8: rename it"
        ) from error
    except OSError as error:
        raise PromptPrismError(
            f"cannot write {_WHAT} '{path}' ({error.strerror or error}): check its permissions and the free "
            "space, or choose another place"
        ) from error


def _header(path: Path) -> str:
    """The first line of a file that lines can be added to."""
    text = read_text(path, _WHAT)
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptPrismError(
            f"{_WHAT} '{path}' is UTF-16, to which none can be added: save it as UTF-8"
        ) from error
    return next((line for line in text.splitlines() if line.strip()), "")
