"""Data as a table: a CSV of path and label, and if wanted split."""

import csv
import glob
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from promptprism.data.images import IMAGE_SUFFIXES
from promptprism.data.names import name_key
from promptprism.data.reading import Reading, read_text, some
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import DataWarning, PromptPrismError, warn
from promptprism.files import is_there

# What programs write where a label is missing; "none" may well be a class.
_MISSING = frozenset({"nan", "<na>", "#n/a", "null"})

_NAME_IT = "its first line must be 'path,label' or 'path,label,split', or name the column: --{}-column NAME"


class _Row(NamedTuple):
    line: int
    image: Path
    label: str
    split: str


def read_csv(path: str | Path, reading: Reading | None = None) -> Dataset:
    """Read a CSV with the columns ``path`` and ``label``, and if wanted ``split`` (train, val or test).

    Paths are relative to the CSV's folder; those of Windows and decomposed letters are found too. The label
    is the class's name. Comma, semicolon and tab separate. UTF-8, and UTF-16 that begins with its mark.

    Warns:
        DataWarning: an image is listed several times, or in several splits; labels look like several in one.

    Raises:
        PromptPrismError: no such file, a column missing or twice, a quote that is not closed, a row without
            path or label, an unknown split, an image with two labels, or one that does not exist.
    """
    path, reading = Path(path), reading or Reading()
    where = f"CSV '{path}'"
    rows = _rows(path, read_text(path, "CSV"), reading)
    missing = [row for row in rows if not _is_there(row.image)]
    if missing:
        raise PromptPrismError(
            f"{len(missing)} of {len(rows)} images of {where} do not exist, first: "
            f"{some(row.image for row in missing)}. {_why_missing(path.parent, missing[0])}"
        )
    names = tuple(sorted({row.label for row in rows}))
    if not names:
        raise PromptPrismError(
            f"{where} lists no images: give one line per image below 'path,label'"
            + (" in the splits that were named" if reading.splits else "")
        )
    _refuse_two_labels(where, rows)
    _refuse_several_labels(where, rows, names)
    labels = {name: label for label, name in enumerate(names)}

    def records(wanted: str) -> Records:
        return tuple(Record(row.image, labels[row.label]) for row in rows if row.split == wanted)

    return Dataset(str(path), names, records("train"), records("val"), records("test"), folder=path.parent)


def _rows(path: Path, text: str, reading: Reading) -> list[_Row]:
    where = f"CSV '{path}'"
    if "\0" in text:
        raise PromptPrismError(
            f"{where} has bytes of zero: it is UTF-16 without its mark, or no text. Save it as UTF-8"
        )
    parsed = parsed_lines(where, text)
    header = [name.strip().lower() for name in next(parsed, (0, []))[1]]
    places = {}
    for column, option in ((reading.path_column, "path"), (reading.label_column, "label")):
        check_column(where, header, column, _NAME_IT.format(option))
        places[option] = header.index(column.lower())
    if reading.split_column.lower() in header:
        check_column(where, header, reading.split_column, _NAME_IT.format("split"))
        places["split"] = header.index(reading.split_column.lower())
    found = []
    for line, fields in parsed:
        if len(fields) > len(header):
            raise PromptPrismError(
                f"line {line} of {where} has more fields than the header: put names with a comma into quotes"
            )
        cells = {option: fields[place] if place < len(fields) else "" for option, place in places.items()}
        if row := _row(where, path.parent, line, cells, reading):
            found.append(row)
    return found


def parsed_lines(where: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, each with its number and fields."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    line = 1
    try:
        for fields in rows:
            if any(cell.strip() for cell in fields):
                yield line, fields
            line = rows.line_num + 1
    except csv.Error as error:
        unclosed = "end of data" in str(error) or "limit" in str(error)
        what = "a quote that is not closed" if unclosed else error
        raise PromptPrismError(
            f"line {line} of {where} has {what}: put quotes at both ends of a field, and double those in it"
        ) from error


def check_column(where: str, header: list[str], column: str, remedy: str) -> None:
    """Raise PromptPrismError unless a CSV's header has a column, once; ``remedy`` if it lacks it."""
    count = header.count(column.strip().lower())
    if not count:
        raise PromptPrismError(
            f"{where} has no column '{column}' (it has: {', '.join(filter(None, header)) or 'nothing'}): "
            f"{remedy}"
        )
    if count > 1:
        raise PromptPrismError(
            f"{where} has {count} columns '{column}': labels are one per image; rename or remove the others"
        )


def _row(where: str, folder: Path, line: int, cells: dict[str, str], reading: Reading) -> _Row | None:
    image, label = cells["path"], unicodedata.normalize("NFC", cells["label"].strip())
    if "\n" in image + label:
        raise PromptPrismError(
            f"line {line} of {where} has a quote that is not closed in it: put quotes at both ends of a field"
        )
    if not image.strip() or not label:
        lacking = "label" if image.strip() else "path"
        raise PromptPrismError(f"line {line} of {where} has no {lacking}: fill it in")
    if label.lower() in _MISSING:
        raise PromptPrismError(
            f"line {line} of {where} has label '{label}', which programs write for a missing one: fill it in "
            "or remove the line"
        )
    if "://" in image:
        raise PromptPrismError(
            f"line {line} of {where} has the address {image!r}: download the images and list the files"
        )
    given = cells.get("split", "").strip() or ("" if reading.splits else "train")
    split = reading.split(given)
    if split is None and not reading.splits:
        raise PromptPrismError(
            f"line {line} of {where} has split {given.lower()!r}: use train, val or test, or say which is "
            "meant: --split test=NAME"
        )
    return None if split is None else _Row(line, on_disk(folder, image), label, split)


def on_disk(folder: Path, image: str) -> Path:
    """The file that is meant: as written, or without spaces around, in other Unicode forms, or with slashes.

    Slashes stand for backslashes. If none is there, as written without spaces around.
    """
    if _is_there(folder / image):
        return folder / image
    image = image.strip()
    for text in (image, image.replace("\\", "/")):
        for form in ("NFC", "NFD"):
            other = folder / unicodedata.normalize(form, text)
            if _is_there(other):
                return other
    return folder / image


def _is_there(path: Path) -> bool:
    # A pipe is there, and is told of by name when it is to be read.
    return is_there(path) and not path.is_dir()


def _why_missing(folder: Path, row: _Row) -> str:
    image = row.image
    remedy = "Paths are relative to the folder of the CSV"
    if not image.suffix or image.suffix.lower() not in IMAGE_SUFFIXES:
        here = sorted(image.parent.glob(f"{glob.escape(image.name)}.*")) if is_there(image.parent) else []
        remedy += (
            f". '{os.path.relpath(here[0], folder)}' is there: add the endings"
            if here
            else ". They have no ending such as .jpg: add it"
        )
    return remedy


def _refuse_two_labels(where: str, rows: list[_Row]) -> None:
    """Compare the rows of each file; what files hold is compared by `promptprism.data.content`."""
    first: dict[str, _Row] = {}
    repeated: list[_Row] = []
    leaked: list[_Row] = []
    for row in rows:
        before = first.setdefault(os.path.normpath(row.image), row)
        if name_key(before.label) != name_key(row.label):
            raise PromptPrismError(
                f"lines {before.line} and {row.line} of {where} give '{row.image}' two labels, "
                f"'{before.label}' and '{row.label}': remove one. Labels are one per image"
            )
        if before is not row:
            (repeated if before.split == row.split else leaked).append(row)
    for found, what in ((repeated, "several times in a split"), (leaked, "in several splits")):
        if found:
            warn(
                f"{len(found)} rows of {where} list an image {what}, first in line {found[0].line}: "
                f"'{found[0].image}'",
                DataWarning,
            )


def _refuse_several_labels(where: str, rows: list[_Row], names: tuple[str, ...]) -> None:
    """Labels are one per image: refuse cells that list several, and warn of such as may."""
    for separator in "|;,":
        split = {name: [part.strip() for part in name.split(separator)] for name in names}
        several = [name for name, parts in split.items() if len(parts) > 1]
        seen = Counter(part for parts in split.values() for part in set(parts))
        # "Crane, bird" and "Crane, mechanical" are names: not all of their parts are others' too.
        tags = [name for name in several if all(seen[part] > 1 for part in split[name])]
        if tags and (separator != "," or len(tags) > 1):
            line = next(row.line for row in rows if row.label == tags[0])
            raise PromptPrismError(
                f"line {line} of {where} has several labels in one cell, '{tags[0]}': labels are one per "
                "image. List each image once, with the one label that matters"
            )
    words = {name: set(name.split()) for name in names}
    within = [
        name
        for name in names
        if len(words[name]) > 1 and sum(words[name] < other for other in words.values()) > 1
    ]
    if within:
        line = next(row.line for row in rows if row.label == within[0])
        warn(
            f"line {line} of {where} has label '{within[0]}', whose words several other labels have too: if "
            "that is a list of tags, note that labels are one per image; it is read as one name",
            DataWarning,
        )
