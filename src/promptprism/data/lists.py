"""Few-shot lists: the very images of a draw as JSON lines, so that others can train on the same ones.

A line is ``{"path": "Faces/image_0201.jpg", "label": 0, "classname": "face"}``; the path is relative to the
folder of the data set's images and has slashes on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from promptprism.data.images import ImageSource
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import PromptPrismError
from promptprism.files import write_bytes
from promptprism.methods.names import spoken


def write_list(path: Path, dataset: Dataset, records: Sequence[Record]) -> None:
    """Write records of a data set as a few-shot list.

    Raises:
        PromptPrismError: an image is no file below the data set's folder, or the place cannot be written.
    """
    lines = []
    for record in records:
        row = {
            "path": _relative(record.source, dataset),
            "label": record.label,
            "classname": dataset.class_names[record.label],
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_bytes(path, "".join(lines).encode())


def read_list(path: Path, dataset: Dataset) -> Records:
    """Find the images of a few-shot list in a data set, in the order of the list.

    Raises:
        PromptPrismError: no such list, a line that is none, a class that the data set has not under this
            label, an image twice, among the test images, or not in the data set.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptPrismError(f"cannot read few-shot list '{path}' ({error})") from error
    rows = [(number, *_row(line, number, path)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise PromptPrismError(f"few-shot list '{path}' is empty: give one JSON line per image")
    pool = {_relative(record.source, dataset): record for record in (*dataset.train, *dataset.val)}
    test = {_relative(record.source, dataset) for record in dataset.test}
    found: dict[str, Record] = {}
    absent = []
    for number, image, label, name in rows:
        where = f"line {number} of '{path}'"
        if not 0 <= label < len(dataset.class_names) or spoken(dataset.class_names[label]) != spoken(name):
            here = dataset.class_names[label] if 0 <= label < len(dataset.class_names) else "no class"
            raise PromptPrismError(
                f"{where}: label {label} is '{name}', but {here!r} in {dataset.name}: the list is of other "
                "data"
            )
        if image in found:
            raise PromptPrismError(f"{where}: '{image}' is listed twice")
        if image in test:
            raise PromptPrismError(f"{where}: '{image}' is a test image of {dataset.name}: never train on it")
        if image not in pool:
            absent.append(image)
        elif pool[image].label != label:
            raise PromptPrismError(f"{where}: '{image}' has label {pool[image].label} in {dataset.name}")
        else:
            found[image] = pool[image]
    if absent:
        raise PromptPrismError(
            f"{len(absent)} of {len(rows)} images of '{path}' are not among the training images of "
            f"{dataset.name}, first: {', '.join(map(repr, absent[:5]))}"
        )
    return tuple(found.values())


def _relative(source: ImageSource, dataset: Dataset) -> str:
    if dataset.folder is not None and isinstance(source, str | Path):
        return Path(source).relative_to(dataset.folder).as_posix()
    raise PromptPrismError(f"the images of '{dataset.name}' are no files: few-shot lists name files")


def _row(line: str, number: int, path: Path) -> tuple[str, int, str]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    match content:
        case {"path": str(image), "label": int(label), "classname": str(name)}:
            return image, label, name
        case _:
            raise PromptPrismError(
                f'line {number} of \'{path}\' is not {{"path": ..., "label": ..., "classname": ...}}'
            )
