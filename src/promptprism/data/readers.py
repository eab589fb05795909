"""Data as users keep it: a folder with one subfolder per class, or a CSV of path and label."""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from promptprism.data.images import IMAGE_SUFFIXES
from promptprism.data.names import DEFAULT_PHRASE
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import PromptPrismError

#: What people call the splits, and what they are called here.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def read_folder(root: str | Path, phrase: str = DEFAULT_PHRASE) -> Dataset:
    """Read a folder with one subfolder per class, its images at any depth below.

    ``train/``, ``test/`` and ``val/`` folders around the class folders are taken as splits; without them,
    every image is a training image. Classes are sorted by name. Hidden files are ignored, other files that
    are no images are listed in `Dataset.skipped`.

    Raises:
        PromptPrismError: no such folder, no class folders, or a class without a (training) image.
    """
    root = Path(root)
    if not root.is_dir():
        raise PromptPrismError(f"no such folder: '{root}'. Check the path and its spelling")
    folders = _subfolders(root)
    splits = {SPLITS[folder.name.lower()]: folder for folder in folders if _is_split(folder)}
    # Validation images alone do not make a split: some vehicle data set may well have a class called "val".
    if not splits.keys() & {"train", "test"}:
        splits = {"train": root}
    skipped = [path for folder in {root, *splits.values()} for path in _files(folder)]
    if splits != {"train": root}:
        skipped += [path for folder in folders if folder not in splits.values() for path in _walk(folder)]
    found: dict[str, dict[str, list[Path]]] = {}
    ignored: dict[str, list[Path]] = {}
    for split, folder in splits.items():
        for class_folder in _subfolders(folder):
            paths = list(_walk(class_folder))
            by_split = found.setdefault(class_folder.name, {})
            by_split[split] = [path for path in paths if _is_image(path)]
            ignored.setdefault(class_folder.name, []).extend(path for path in paths if not _is_image(path))
    if not found:
        loose = sum(_is_image(path) for path in skipped)
        raise PromptPrismError(
            f"folder '{root}' has no subfolders{f' but {loose} loose images' if loose else ''}: "
            "put the images of each class into a subfolder with the class's name"
        )
    needed = "train" if "train" in splits else "test"
    _check_classes(
        {name: len(by_split.get(needed, ())) for name, by_split in found.items()}, splits[needed], ignored
    )
    names = tuple(sorted(found))

    def records(split: str) -> Records:
        return tuple(
            Record(path, label) for label, name in enumerate(names) for path in found[name].get(split, ())
        )

    skipped += [path for paths in ignored.values() for path in paths]
    return Dataset(
        str(root),
        names,
        records("train"),
        records("val"),
        records("test"),
        phrase,
        tuple(sorted(skipped)),
        folder=root,
    )


def read_csv(path: str | Path, phrase: str = DEFAULT_PHRASE) -> Dataset:
    """Read a CSV with the columns ``path`` and ``label``, and if wanted ``split`` (train, val or test).

    Paths are relative to the CSV's folder. The label is the class's name. Comma, semicolon and tab separate.

    Raises:
        PromptPrismError: no such file, a column missing, a row without path or label, an unknown split, or an
            image that does not exist.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PromptPrismError(f"no such CSV: '{path}'. Check the path and its spelling") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PromptPrismError(f"cannot read CSV '{path}' ({error}): save it as UTF-8 text") from error
    lines = text.splitlines()
    blank = next((place for place, line in enumerate(lines) if line.strip()), 0)
    header = "".join(lines[blank : blank + 1])
    rows = csv.DictReader(lines[blank:], delimiter=max(",;\t", key=header.count))
    columns = [name.strip().lower() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    for column in ("path", "label"):
        if column not in columns:
            raise PromptPrismError(
                f"CSV '{path}' has no column '{column}' (it has: {', '.join(columns) or 'nothing'}): "
                "its first line must be 'path,label' or 'path,label,split'"
            )
    entries = [_csv_row(row, blank + rows.line_num, path) for row in rows]
    missing = [image for image, _, _ in entries if not image.is_file()]
    if missing:
        raise PromptPrismError(
            f"{len(missing)} of {len(entries)} images of CSV '{path}' do not exist, first: "
            f"{_some(map(str, missing))}. Paths are relative to the folder of the CSV"
        )
    names = tuple(sorted({label for _, label, _ in entries}))
    if not names:
        raise PromptPrismError(f"CSV '{path}' lists no images: give one line per image below 'path,label'")
    labels = {name: label for label, name in enumerate(names)}

    def records(wanted: str) -> Records:
        return tuple(Record(image, labels[label]) for image, label, split in entries if split == wanted)

    return Dataset(
        str(path), names, records("train"), records("val"), records("test"), phrase, folder=path.parent
    )


def _csv_row(row: dict[str, str | None], line: int, path: Path) -> tuple[Path, str, str]:
    if None in row:
        raise PromptPrismError(
            f"line {line} of CSV '{path}' has more fields than the header: put names with a comma into quotes"
        )
    image, label = (row["path"] or "").strip(), (row["label"] or "").strip()
    if not image or not label:
        raise PromptPrismError(
            f"line {line} of CSV '{path}' has no {'label' if image else 'path'}: fill it in"
        )
    split = (row.get("split") or "train").strip().lower()
    if split not in SPLITS:
        raise PromptPrismError(f"line {line} of CSV '{path}' has split '{split}': use train, val or test")
    return path.parent / image, label, SPLITS[split]


def _check_classes(counts: dict[str, int], folder: Path, ignored: dict[str, list[Path]]) -> None:
    empty = [name for name, count in sorted(counts.items()) if not count]
    if not empty:
        return
    hint = next((paths[0].name for name in empty if (paths := ignored[name])), None)
    raise PromptPrismError(
        f"{'class has' if len(empty) == 1 else 'classes have'} no image in '{folder}': {_some(empty)}. "
        + (f"Files such as '{hint}' cannot be read; convert them to PNG or JPEG" if hint else "Add images")
        + ", or remove the subfolder"
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_split(folder: Path) -> bool:
    # A class may be called "train": class folders hold images, split folders hold folders.
    return (
        folder.name.lower() in SPLITS
        and bool(_subfolders(folder))
        and not any(map(_is_image, _files(folder)))
    )


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path.name))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and _visible(path.name))


def _walk(folder: Path) -> Iterator[Path]:
    """Every visible file below a folder, in the same order on every machine."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(filter(_visible, folders))
        yield from (Path(parent, name) for name in sorted(filter(_visible, files)))


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + rest
