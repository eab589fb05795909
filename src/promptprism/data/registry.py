"""Data by name: what the registered names are, and one way in for folders, CSVs and names."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from promptprism.data.catalog import ALTERNATIVES, CATALOG
from promptprism.data.hub import read_hub
from promptprism.data.miniworld import worlds
from promptprism.data.readers import read_csv, read_folder
from promptprism.data.records import Dataset
from promptprism.data.shards import read_shards
from promptprism.errors import PromptPrismError

_READERS: dict[str, Callable[[str], Dataset]] = {"hf": read_hub, "wds": read_shards}


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
def registered() -> dict[str, Entry]:
    """List the registered data sets by name."""
    return {entry.name: entry for entry in (*_miniworld(), *_field())}


def load_data(source: str | Path | Dataset, root: str | Path | None = None) -> Dataset:
    """Read data from a folder with one subfolder per class, a CSV of path and label, or by name.

    A registered name comes before a folder of the same name; write ``./mini/food`` for the folder. The
    field's data sets, such as ``caltech101``, lie below ``root``, or where ``PROMPTPRISM_DATA`` says.
    ``hf:NAME`` is a data set of Hugging Face or a folder with one, ``wds:shards-{000..003}.tar`` are
    WebDataset shards to score on. ``mini/food@0.9`` is MiniWorld with another rho.

    Raises:
        PromptPrismError: nothing of that name, or unusable data; see `read_folder`, `read_csv`, `read_hub`
            and `read_shards`.
    """
    if isinstance(source, Dataset):
        return source
    if not str(source).strip():
        raise PromptPrismError("no data '': give a folder, a CSV or a registered name")
    entries = registered()
    if isinstance(source, str):
        if source in entries:
            return entries[source].load(root)
        kind, colon, name = source.partition(":")
        if colon and kind in _READERS:
            return _READERS[kind](name)
        name, at, rho = source.partition("@")
        if at and name in worlds.ELEVEN:
            return _confounded(name, rho)
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        if path.suffix.lower() in {".csv", ".tsv"}:
            return read_csv(path)
        raise PromptPrismError(
            f"data '{source}' is a file but no CSV: give a folder with one subfolder per class, a CSV of "
            "path and label whose name ends in .csv, or WebDataset shards with wds: before their path"
        )
    near = difflib.get_close_matches(str(source), entries, n=3, cutoff=0.7)
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
