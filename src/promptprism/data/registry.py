"""Data by name: what the registered names are, and one way in for folders, CSVs and names."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from promptprism.data.catalog import ALTERNATIVES, CATALOG
from promptprism.data.folders import read_folder
from promptprism.data.hub import read_hub
from promptprism.data.miniworld import worlds
from promptprism.data.reading import Reading, renamed
from promptprism.data.records import Dataset
from promptprism.data.shards import read_shards
from promptprism.data.tables import read_csv
from promptprism.errors import DataWarning, PromptPrismError, warn
from promptprism.files import check_regular, is_there
from promptprism.plugins import Registry

_READERS: dict[str, Callable[[str, Reading], Dataset]] = {"hf": read_hub, "wds": read_shards}
# What lists and folders of others call classes that they only number.
_NUMBERED = re.compile(r"(?:(?:class|label|category|cat)?[ _-]?\d+|n\d{8})", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A registered data set.

    Attributes:
        name: what `load_data` takes.
        summary: one line on what it shows.
        classes: number of classes.
        images: number of images in each split it has.
        load: makes it; takes the folder of the field's data sets, if one is given.
    """

    name: str
    summary: str
    classes: int
    images: dict[str, int]
    load: Callable[[str | Path | None], Dataset]


@cache
def registered() -> Mapping[str, Entry]:
    """List the registered data sets by name."""
    own = {entry.name: entry for entry in (*_miniworld(), *_field())}
    return Registry(
        "promptprism.datasets", own, _is_entry, "an Entry of promptprism.data.registry, of that name"
    )


def _is_entry(name: str, loaded: object) -> bool:
    return isinstance(loaded, Entry) and loaded.name == name


def load_data(
    source: str | Path | Dataset, root: str | Path | None = None, reading: Reading | None = None
) -> Dataset:
    """Read data from a folder with one subfolder per class, a CSV of path and label, or by name.

    A registered name comes before a folder of the same name; write ``./mini/food`` for the folder. The
    field's data sets, such as ``caltech101``, lie below ``root``, or where ``PROMPTPRISM_DATA`` says.
    ``hf:NAME`` is a data set of Hugging Face or a folder with one, ``wds:shards-{000..003}.tar`` are
    WebDataset shards to score on. ``mini/food@0.9`` is MiniWorld with another rho.

    Args:
        source: the data; a `Dataset` is returned as it is.
        root: folder of the field's data sets.
        reading: what the data calls its splits, columns and classes, where that is not what is expected.

    Warns:
        DataWarning: the data can be read, but something in it is probably not meant so.

    Raises:
        PromptPrismError: nothing of that name, or unusable data; see `read_folder`, `read_csv`, `read_hub`
            and `read_shards`.
    """
    if isinstance(source, Dataset):
        return source
    if not str(source).strip():
        raise PromptPrismError("no data '': give a folder, a CSV or a registered name")
    if isinstance(source, str) and (known := _registered(source, root)):
        if reading not in (None, Reading()):
            raise PromptPrismError(
                f"'{source}' is a registered data set, which says itself what its splits and classes are: "
                "leave --split, --names and the columns out"
            )
        return known
    reading = reading or Reading()
    dataset = _read(source, reading)
    if reading.names:
        return renamed(dataset, reading.names)
    numbered = [name for name in dataset.class_names if _NUMBERED.fullmatch(name)]
    if len(numbered) > len(dataset.class_names) / 2:
        warn(
            f"{len(numbered)} of {len(dataset.class_names)} classes of '{source}' have names such as "
            f"'{numbered[0]}', which say nothing to a model that reads them: give their names with --names "
            "FILE (Reading(names=...) in Python), one line for each: what the data calls it, and its name",
            DataWarning,
        )
    return dataset


def _registered(source: str, root: str | Path | None) -> Dataset | None:
    entries = registered()
    if source in entries:
        try:
            data = entries[source].load(root)
        except TypeError as error:  # another package's that takes no root
            raise PromptPrismError(f"data set '{source}' cannot be made: {error}") from error
        if not isinstance(data, Dataset):
            raise PromptPrismError(f"data set '{source}' must be a Dataset, not {type(data).__name__}")
        return data
    name, at, rho = source.partition("@")
    return _confounded(name, rho) if at and name in worlds.ELEVEN else None


def _read(source: str | Path, reading: Reading) -> Dataset:
    kind, colon, name = str(source).partition(":")
    if isinstance(source, str) and colon and kind in _READERS:
        return _READERS[kind](name, reading)
    path = Path(source)
    if is_there(path):
        if path.is_dir():
            return read_folder(path, reading=reading)
        check_regular(path)
        if path.suffix.lower() in {".csv", ".tsv"}:
            return read_csv(path, reading=reading)
        raise PromptPrismError(
            f"data '{source}' is a file but no CSV: give a folder with one subfolder per class, a CSV of "
            "path and label whose name ends in .csv, or WebDataset shards with wds: before their path"
        )
    near = difflib.get_close_matches(str(source), registered(), n=3, cutoff=0.7)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`promptprism datasets` lists the names."
    raise PromptPrismError(f"no data '{source}': there is no such folder, CSV or registered data set. {hint}")


_SHIFTS = {
    "v2": "new scenes and patterns",
    "sketch": "monochrome drawings",
    "adversarial": "misleading backgrounds",
    "rendition": "artists seen nowhere else",
}


def _miniworld() -> Iterator[Entry]:
    for name in worlds.NAMES:
        shift = name.partition("-")[2]
        names = [concept.name for concept in worlds.classes(name)]
        examples = sorted(sorted(names, key=len)[:9:3])
        summary = _SHIFTS[shift] if shift else f"{', '.join(examples)}, ..."
        splits = ("test",) if shift else ("train", "val", "test")
        images = {split: len(names) * worlds.PER_CLASS[split] for split in splits}
        yield Entry(name, summary, len(names), images, partial(_load_world, name))


def _confounded(name: str, rho: str) -> Dataset:
    """A MiniWorld data set whose training colours go with the classes with probability rho."""
    try:
        return replace(worlds.load(name, float(rho)), name=f"{name}@{rho}")
    except ValueError as error:
        raise PromptPrismError(
            f"rho = {rho!r} of '{name}@{rho}' is no probability: write {name}@0.9"
        ) from error


def _load_world(name: str, _: str | Path | None) -> Dataset:
    return worlds.load(name)


def _field() -> Iterator[Entry]:
    for dataset in (*CATALOG.values(), *ALTERNATIVES.values()):
        split = " without the canonical split" if dataset.name in ALTERNATIVES else ""
        summary = f"{dataset.title}{split}; needs its files below a root"
        yield Entry(dataset.name, summary, dataset.classes, dataset.images, dataset.load)
