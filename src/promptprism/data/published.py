"""A data set of the field: what it should be, where its files come from, and whether they are right."""

import os
from dataclasses import dataclass
from pathlib import Path

from promptprism.data.layouts import Layout, Lists, absent, class_names
from promptprism.data.names import DEFAULT_PHRASE
from promptprism.data.records import Dataset, Record
from promptprism.data.sources import GUIDE, Archive, Original
from promptprism.errors import PromptPrismError

#: The environment variable that says where the data sets are, unless a root is given.
ROOT_VARIABLE = "PROMPTPRISM_DATA"


@dataclass(frozen=True)
class PublishedDataset:
    """A data set of the field.

    Attributes:
        name: what `load_data` takes.
        title: how papers write it.
        folder: its folder below the root.
        layout: how its folder is read.
        classes: size of its label space.
        images: how many images each split has when all is there.
        archive: the file of the mirror that has all of it, or None.
        originals: files of the makers.
        phrase: hand-crafted text around a class name.
        alternative: name of the entry that does without the canonical split; "" if there is none.
    """

    name: str
    title: str
    folder: str
    layout: Layout
    classes: int
    images: dict[str, int]
    archive: Archive | None
    originals: tuple[Original, ...]
    phrase: str = DEFAULT_PHRASE
    alternative: str = ""

    @property
    def source(self) -> str:
        """Where the images come from."""
        return self.originals[0].url

    @property
    def remedy(self) -> str:
        """How to get what is missing."""
        prepare = f"`promptprism data prepare {self.name}` fetches it. " if self.archive else ""
        return f"{prepare}By hand: images from {self.source}, lists from {GUIDE}"

    def lists(self, root: Path) -> Lists:
        """Read the lists of every split.

        Raises:
            PromptPrismError: a wrong root, something missing, or a damaged list.
        """
        folder = root / self.folder
        if not folder.is_dir():
            hint = f" Did you mean '{root.parent}'?" if root.name == self.folder else ""
            raise PromptPrismError(
                f"no folder '{folder}': the root must hold '{self.folder}' with {self.title}.{hint} "
                f"{self.remedy}"
            )
        if missing := [name for name in self.layout.needs if not (folder / name).exists()]:
            packed = sorted(
                path.name for path in folder.iterdir() if path.suffix in {".zip", ".tar", ".gz", ".tgz"}
            )
            hint = f" Unpack {', '.join(map(repr, packed))} there." if packed else ""
            if self.alternative and missing == [self.layout.needs[0]]:
                hint += (
                    " That file is the split that others' figures are measured on; without it, "
                    f"'{self.alternative}' can be loaded, whose figures cannot be compared with theirs."
                )
            raise PromptPrismError(
                f"'{folder}' lacks {', '.join(map(repr, missing))}: {self.title} is not whole.{hint} "
                f"{self.remedy}"
            )
        return self.layout.lists(folder)

    def faults(self, lists: Lists, root: Path) -> list[str]:
        """Say why the data cannot be used, one sentence each; nothing if it can."""
        found = []
        try:
            if (count := len(class_names(lists))) != self.classes:
                kind = "missing" if count < self.classes else "extra"
                found.append(f"{abs(count - self.classes)} classes {kind}: {count} instead of {self.classes}")
        except PromptPrismError as error:
            found.append(str(error))
        train, test = ({path for path, _, _ in lists.get(split, ())} for split in ("train", "test"))
        if both := sorted(train & test):
            found.append(f"{len(both)} test images are in the training list too, {_first(both)}")
        paths = {path: name for items in lists.values() for path, _, name in items}
        if missing := absent(self.image_folder(root), list(paths)):
            again = f"run `promptprism data prepare {self.name}`" if self.archive else f"fetch {self.source}"
            found.append(
                f"{len(missing)} of {len(paths)} listed images are not in '{self.image_folder(root)}', "
                f"{_first(missing)}. Unpack the archive again, or {again}"
            )
            gone = set(missing)
            if empty := sorted(
                set(paths.values()) - {name for path, name in paths.items() if path not in gone}
            ):
                found.append(f"{len(empty)} classes have none of their images, {_first(empty)}")
        return found

    def image_folder(self, root: Path) -> Path:
        """What the paths of the lists are relative to."""
        return root / self.folder / self.layout.images

    def load(self, root: str | Path | None = None) -> Dataset:
        """Read the data set from below a root folder; None takes the one of `ROOT_VARIABLE`.

        Raises:
            PromptPrismError: see `lists` and `faults`.
        """
        place = find_root(root, self.name)
        lists = self.lists(place)
        if faults := self.faults(lists, place):
            raise PromptPrismError(f"{self.title}: {'; '.join(faults)}")
        folder = self.image_folder(place)
        # Text, not Path: ImageNet has 1.3 million images.
        records = {
            split: tuple(Record(f"{folder}{os.sep}{path}", label) for path, label, _ in items)
            for split, items in lists.items()
        }
        return Dataset(
            self.name,
            class_names(lists),
            records.get("train", ()),
            records.get("val", ()),
            records["test"],
            self.phrase,
            folder=folder,
        )


def find_root(root: str | Path | None, name: str) -> Path:
    """The folder that holds the data sets' folders.

    Raises:
        PromptPrismError: none is given, or there is no such folder.
    """
    given = os.environ.get(ROOT_VARIABLE) if root is None else root
    if not given:
        raise PromptPrismError(
            f"where is '{name}'? Give the folder that holds the data sets' folders (root=..., --root), or "
            f"set {ROOT_VARIABLE}"
        )
    if not Path(given).is_dir():
        raise PromptPrismError(f"no such root folder: '{given}'. Check the path and its spelling")
    return Path(given)


def _first(names: list[str]) -> str:
    return f"first: {', '.join(map(repr, names[:5]))}"
