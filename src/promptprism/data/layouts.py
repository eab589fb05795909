"""How the field keeps its data sets on disk: each layout is read into one form, lists by split."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from promptprism.data.images import IMAGE_SUFFIXES
from promptprism.errors import PromptPrismError
from promptprism.files import check_regular

#: Path below the image folder (with slashes), label, class name: a row of the field's split files.
Item = tuple[str, int, str]
Lists = dict[str, list[Item]]

CLASS_NAMES = "classnames.txt"
#: Of ImageNet's class names as CLIP uses them, one "wnid name" per line; other lists are about.
CLIP_NAMES = "51b5b1d8b800502030c5556eb206abaafdd682ef363ff7a7077591ea3c9befa5"


class Layout(Protocol):
    """Where the images of a data set lie below its folder, and how its lists are read."""

    @property
    def images(self) -> str:
        """Folder of the images, below the data set's."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Files and folders that must be there, below the data set's."""
        ...

    def lists(self, folder: Path) -> Lists:
        """Read the lists; paths are not yet compared with what is on disk.

        Raises:
            PromptPrismError: a list is damaged or no such list.
        """
        ...


@dataclass(frozen=True)
class SplitFile:
    """Images anywhere below a folder, and the canonical ``split_zhou_*.json`` of CoOp."""

    file: str
    images: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The split file and the image folder."""
        return self.file, self.images

    def lists(self, folder: Path) -> Lists:
        """Read the split file."""
        path = folder / self.file
        content = read_json(path)
        if not isinstance(content, Mapping) or set(content) != {"train", "val", "test"}:
            raise PromptPrismError(f"'{path}' is no split file: it must hold the lists train, val and test")
        return {split: [_item(row, path) for row in rows] for split, rows in content.items()}


@dataclass(frozen=True)
class VariantLists:
    """FGVC-Aircraft's own lists: one file of image number and variant per split, and one of the variants."""

    images: str = "images"
    variants: str = "variants.txt"
    files: tuple[tuple[str, str], ...] = tuple(
        (split, f"images_variant_{split}.txt") for split in ("train", "val", "test")
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """All lists and the image folder."""
        return self.variants, *(file for _, file in self.files), self.images

    def lists(self, folder: Path) -> Lists:
        """Read the lists."""
        names = read_lines(folder / self.variants)
        labels = {name: label for label, name in enumerate(names)}
        lists: Lists = {}
        for split, file in self.files:
            rows = [line.partition(" ")[::2] for line in read_lines(folder / file)]
            if unknown := sorted({name for _, name in rows} - labels.keys()):
                raise PromptPrismError(
                    f"'{folder / file}' has {len(unknown)} variants that '{self.variants}' lacks, first: "
                    f"{', '.join(map(repr, unknown[:5]))}. Unpack the archive again"
                )
            lists[split] = [(f"{number}.jpg", labels[name], name) for number, name in rows]
        return lists


@dataclass(frozen=True)
class WordNetFolders:
    """ImageNet and its like: one folder per class, named by WordNet id; names in ``classnames.txt``.

    Attributes:
        images: folder of the images.
        splits: name of each split with its folder below that of the images ("" is that folder itself).
        numbered: class folders are named by their place among ImageNet's classes, as ImageNetV2 does it.
        subset: the label space is the classes that have a folder, not all of ImageNet's.
    """

    images: str
    splits: tuple[tuple[str, str], ...] = (("test", ""),)
    numbered: bool = False
    subset: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The image folders; the class names may also lie with ImageNet."""
        return tuple(f"{self.images}/{below}".rstrip("/") for _, below in self.splits)

    def lists(self, folder: Path) -> Lists:
        """List the class folders."""
        names = _imagenet_names(folder)
        places = [str(i) for i in range(len(names))] if self.numbered else list(names)
        spoken = dict(zip(places, _told_apart(names), strict=True))
        roots = {split: folder / self.images / below for split, below in self.splits}
        found = {
            split: {entry.name for entry in os.scandir(root) if entry.is_dir()}
            for split, root in roots.items()
        }
        for split, here in found.items():
            if extra := sorted(here - spoken.keys()):
                raise PromptPrismError(
                    f"'{roots[split]}' has {len(extra)} folders that are no class of ImageNet, first: "
                    f"{', '.join(map(repr, extra[:5]))}. Move them elsewhere"
                )
            if not self.subset and (missing := [place for place in places if place not in here]):
                loose = any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in _names(roots[split]))
                remedy = "Sort its images into them" if loose else "Unpack the archive again"
                raise PromptPrismError(
                    f"'{roots[split]}' lacks {len(missing)} of {len(places)} class folders, first: "
                    f"{', '.join(map(repr, missing[:5]))}. {remedy}"
                )
        kept = [place for place in places if not self.subset or any(place in here for here in found.values())]
        lists: Lists = {}
        for (split, below), root in zip(self.splits, roots.values(), strict=True):
            lists[split] = [
                (f"{below}/{place}/{file}".lstrip("/"), label, spoken[place])
                for label, place in enumerate(kept)
                for file in sorted(_names(root / place))
                if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
            ]
        return lists


def _imagenet_names(folder: Path) -> dict[str, str]:
    """Class names by WordNet id, in the order of the labels."""
    places = (folder / CLASS_NAMES, folder.parent / "imagenet" / CLASS_NAMES)
    path = next(filter(Path.is_file, places), None)
    if path is None:
        raise PromptPrismError(
            f"no '{places[0]}' nor '{places[1]}': fetch {CLASS_NAMES}, the class names that CLIP uses for "
            'ImageNet ("wnid name" per line), as CoOp\'s DATASETS.md says'
        )
    names = {wnid: name.strip() for wnid, _, name in (line.partition(" ") for line in read_lines(path))}
    text = "\n".join(f"{wnid} {name}" for wnid, name in names.items())
    if hashlib.sha256(text.encode()).hexdigest() != CLIP_NAMES:
        raise PromptPrismError(
            f"'{path}' is not the list of ImageNet's 1,000 class names that CLIP uses: {_difference(names)}. "
            "Take the one that CoOp's DATASETS.md links"
        )
    return names


def _difference(names: Mapping[str, str]) -> str:
    """Say how other names differ from those of CLIP."""
    import open_clip  # takes seconds

    pairs = list(zip(names.values(), open_clip.IMAGENET_CLASSNAMES, strict=False))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if len(names) != len(open_clip.IMAGENET_CLASSNAMES) or not differing:
        return f"it has {len(names)} names, or their order or WordNet ids are others"
    here, there = differing[0]
    return f"{len(differing)} of its {len(names)} names differ, first {here!r} instead of {there!r}"


def _told_apart(names: Mapping[str, str]) -> list[str]:
    """Add its WordNet id to a name that two classes have; prompts do not say it."""
    all_names = list(names.values())
    return [f"{name} [{wnid}]" if all_names.count(name) > 1 else name for wnid, name in names.items()]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        PromptPrismError: it cannot be read, or is no JSON.
    """
    try:
        check_regular(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptPrismError(f"cannot read '{path}' ({error}): fetch the file again") from error


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises:
        PromptPrismError: it cannot be read, or is no UTF-8.
    """
    try:
        check_regular(path)
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptPrismError(f"cannot read '{path}' ({error}): fetch the file again") from error


def _item(row: Any, path: Path) -> Item:
    match row:
        case [str(image), int(label), str(name)]:
            return image, label, name
        case _:
            raise PromptPrismError(f"row {row!r} of '{path}' is not [path, label, class name]")


def class_names(lists: Lists) -> tuple[str, ...]:
    """The name of each label, in the order of the labels.

    Raises:
        PromptPrismError: labels do not run from 0 without a gap, or a label has two names.
    """
    names: dict[int, str] = {}
    for image, label, name in (item for items in lists.values() for item in items):
        if names.setdefault(label, name) != name:
            raise PromptPrismError(
                f"label {label} has two names, '{names[label]}' and '{name}' (of '{image}'): fetch the "
                "list again"
            )
    if sorted(names) != list(range(len(names))):
        gaps = sorted(set(range(max(names) + 1)) - names.keys())
        raise PromptPrismError(
            f"labels are not contiguous: {len(names)} classes with labels from {min(names)} to {max(names)}, "
            f"missing {', '.join(map(str, gaps[:5]))}. Fetch the list again"
        )
    return tuple(names[label] for label in range(len(names)))


def absent(folder: Path, paths: Sequence[str]) -> list[str]:
    """Those of the paths below a folder that are no files there. Folders are listed once each: quick."""
    here: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in here:
            here[parent] = _names(folder / parent)
        if name not in here[parent]:
            missing.append(path)
    return missing


def _names(folder: Path) -> set[str]:
    """Names of what is in a folder; of none, if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()
