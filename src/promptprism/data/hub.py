"""Hugging Face data sets, by name or from disk, through the optional package ``datasets``."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptprism.data.reading import Reading
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import PromptPrismError, needs
from promptprism.files import check_regular


@dataclass(frozen=True, eq=False)
class Cell:
    """An image in a table, read when it is needed.

    Attributes:
        table: one split, its images not decoded.
        column: of the images.
        row: counted from 0.
        place: data set and split.
    """

    table: Any
    column: str
    row: int
    place: str

    @property
    def key(self) -> str:
        """What tells it from other images, on every machine."""
        return "/".join((*Path(self.place).parts[-2:], str(self.row)))

    def content(self) -> bytes:
        """Read the image file."""
        cell = self.table[self.row][self.column]
        if cell is None:
            raise ValueError("the cell is empty")
        content: bytes | None = cell["bytes"]
        if content is None:  # the table names a file
            check_regular(Path(cell["path"]))
            content = Path(cell["path"]).read_bytes()
        return content

    def __str__(self) -> str:
        return f"{self.place}/{self.row}"


def read_hub(name: str, reading: Reading | None = None) -> Dataset:
    """Read an image classification data set of Hugging Face; images are decoded when they are needed.

    Only tables are read: the package's ``datasets`` from version 4 on run no code of a data set.

    Args:
        name: a folder that ``save_to_disk`` wrote, or anything ``datasets.load_dataset`` takes: a folder of
            images or Parquet files, or a name on the hub; ``NAME#CONFIGURATION`` where there are several.
        reading: what its splits are called.

    Raises:
        PromptPrismError: the package is not there, the data cannot be had, or it has not one column of images
            and one of labels.
    """
    tables = _tables(name, reading or Reading())
    features = next(iter(tables.values())).features
    image, label = _columns(features, name)
    values = {split: list(table[label]) for split, table in tables.items()}
    names = getattr(features[label], "names", None)
    seen = {value for column in values.values() for value in column}
    if names is None and all(isinstance(value, str) for value in seen):
        names = sorted(seen)
        places = {value: place for place, value in enumerate(names)}
    else:
        places = {place: place for place in range(len(names or ()))}
    if odd := seen - places.keys():
        raise PromptPrismError(
            f"the column '{label}' of 'hf:{name}' has {odd.pop()!r}, which is no class: make it a ClassLabel "
            "with the names of the classes, without gaps, and save_to_disk, then give that folder"
        )

    def records(split: str) -> Records:
        return tuple(
            Record(Cell(tables[split], image, row, f"{name}/{split}"), places[value])
            for row, value in enumerate(values.get(split, ()))
        )

    return Dataset(f"hf:{name}", tuple(names or ()), records("train"), records("val"), records("test"))


def _tables(name: str, reading: Reading) -> dict[str, Any]:
    """The splits that have labels, by our names, their images not decoded."""
    with needs(f"'hf:{name}'", "hf"):
        datasets = importlib.import_module("datasets")
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise PromptPrismError(
            f"the package datasets is {datasets.__version__}, which may run code of a data set: pip install "
            "'promptprism[hf]'"
        )
    path, _, configuration = name.partition("#")
    try:
        if any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, configuration or None)
    # Anything from a wrong name over a missing network to a damaged file, each with a type of its own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PromptPrismError(
            f"cannot load 'hf:{name}' ({reason}). Without a network, give a folder: that of the data set's "
            "files, or what its save_to_disk wrote"
        ) from error
    tables = found if isinstance(found, dict) else {"train": found}
    known = {split: ours for split in tables if (ours := reading.split(split))}
    if lacking := sorted(set(reading.splits.values()) - known.keys()):
        raise PromptPrismError(f"'hf:{name}' has no split {lacking[0]!r} (it has: {', '.join(tables)})")
    if not reading.splits and (unknown := sorted(tables.keys() - known.keys())):
        raise PromptPrismError(
            f"'hf:{name}' has the splits {', '.join(tables)}, and nothing says what {unknown[0]!r} is for: "
            "say which are meant, such as --split train=NAME --split test=NAME, or rename it to train, "
            "validation or test and save_to_disk, then give that folder"
        )
    image = datasets.Image(decode=False)
    plain = {}
    for split, ours in known.items():
        table = tables[split]
        column, label = _columns(table.features, name)
        table = table.cast_column(column, image).with_format(None)
        # Competitions publish test images with the label -1.
        if len(table) and table[0][label] not in (None, -1):
            plain[ours] = table
    if not plain:
        raise PromptPrismError(f"'hf:{name}' has no labelled image in any of the splits {', '.join(tables)}")
    return plain


def _columns(features: Any, name: str) -> tuple[str, str]:
    """Names of the column of images and the column of labels."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"] or [
        column for column in features if column in ("label", "labels", "class")
    ]
    if len(images) != 1 or len(labels) != 1:
        listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise PromptPrismError(
            f"'hf:{name}' must have one column of images and one of labels (ClassLabel, or named label), but "
            f"has {listed}: remove or rename the others and save_to_disk, then give that folder"
        )
    if kinds[labels[0]] in ("List", "Sequence", "LargeList", "list"):
        raise PromptPrismError(
            f"the column '{labels[0]}' of 'hf:{name}' has several labels per image: labels are one per "
            "image. Make a column with the one that matters and save_to_disk, then give that folder"
        )
    return images[0], labels[0]
