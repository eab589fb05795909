"""Few-shot lists: the very images of a draw as JSON, so that others can train on the same ones.

Written are JSON lines, ``{"path": "Faces/image_0201.jpg", "label": 0, "classname": "face"}``; the path is
relative to the folder of the data set's images and has slashes on every machine. Read are also a JSON list,
or the list ``train`` of a JSON object, of such rows, of ``[path, label, class name]`` as in split files, or
of places in the data set's training split. A path from another machine is cut at the name of the folder.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from promptprism.data.images import ImageSource
from promptprism.data.names import spoken
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import PromptPrismError
from promptprism.files import check_regular, write_bytes

_NO_PICKLE = """\
'{path}' is a pickle: reading one may run any code, so it is never done here. If you trust whoever made it, \
turn it into a list where it was made (Python with Dassl):

    import json, pickle
    with open("{path}", "rb") as file, open("{target}", "w") as out:
        for item in pickle.load(file)["train"]:
            row = {{"path": item.impath, "label": item.label, "classname": item.classname}}
            print(json.dumps(row), file=out)
"""


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
        PromptPrismError: no such list, a pickle, a row that is none, a class that the data set has not under
            this label, an image twice, among the test images, or not in the data set.
    """
    rows = list(_rows(path))
    if not rows:
        raise PromptPrismError(f"few-shot list '{path}' is empty: give one JSON line per image")
    pool = {_relative(record.source, dataset): record for record in (*dataset.train, *dataset.val)}
    test = {_relative(record.source, dataset) for record in dataset.test}
    found: dict[str, Record] = {}
    absent = []
    for where, row in rows:
        image, label, name = _fields(row, where, dataset)
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


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a list with the words for its place."""
    try:
        check_regular(path)
        content = path.read_bytes()
        if content[:1] == b"\x80" or path.suffix in {".pkl", ".pickle"}:
            raise PromptPrismError(_NO_PICKLE.format(path=path, target=path.with_suffix(".jsonl").name))
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptPrismError(f"cannot read few-shot list '{path}' ({error})") from error
    whole = _parse(text)
    if isinstance(whole, dict) and "train" in whole:
        whole = whole["train"]
    if isinstance(whole, list):
        yield from ((f"row {number} of '{path}'", row) for number, row in enumerate(whole, 1))
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"line {number} of '{path}'", _parse(line)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _fields(row: Any, where: str, dataset: Dataset) -> tuple[str, int, str]:
    match row:
        case {"path": str(image), "label": int(label), "classname": str(name)}:
            return _below(image, dataset), label, name
        case [str(image), int(label), str(name)]:
            return _below(image, dataset), label, name
        case int(place) if not isinstance(row, bool):
            if not 0 <= place < len(dataset.train):
                raise PromptPrismError(
                    f"{where}: there is no training image {place} in {dataset.name}, which has "
                    f"{len(dataset.train)}: the list is of other data"
                )
            record = dataset.train[place]
            return _relative(record.source, dataset), record.label, dataset.class_names[record.label]
        case _:
            raise PromptPrismError(
                f'{where} is not {{"path": ..., "label": ..., "classname": ...}}, nor [path, label, class '
                "name], nor the place of an image in the training split"
            )


def _below(image: str, dataset: Dataset) -> str:
    """The path of an image relative to the data set's folder, wherever that was when the list was made."""
    image = image.replace("\\", "/")
    if dataset.folder is None or not (image.startswith("/") or image[1:3] == ":/"):
        return image
    return image.rpartition(f"/{dataset.folder.name}/")[2]


def _relative(source: ImageSource, dataset: Dataset) -> str:
    if dataset.folder is None or not isinstance(source, str | Path):
        raise PromptPrismError(f"the images of '{dataset.name}' are no files: few-shot lists name files")
    folder, path = f"{dataset.folder}{os.sep}", str(source)
    # Cutting text is quick: ImageNet has 1.3 million images.
    below = path.removeprefix(folder) if path.startswith(folder) else os.path.relpath(path, dataset.folder)
    return below.replace(os.sep, "/")
