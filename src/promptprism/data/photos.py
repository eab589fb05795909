"""A heap of photos: whatever names some, in the order in which they are found, none looked at before."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from promptprism.data.folders import photos_below
from promptprism.data.images import ImageSource
from promptprism.data.reading import read_text
from promptprism.data.shards import images_in
from promptprism.data.tables import check_column, on_disk, parsed_lines
from promptprism.errors import PromptPrismError

_TABLES = (".csv", ".tsv")
_SHARDS = "wds:"


class Heap:
    """Photos by the places that hold them; each `iter` finds them anew, in the same order.

    A place is an image, a folder (all below it), a pattern such as ``2024/**/*.jpg``, a list (.txt with
    a path a line, .csv or .tsv with a column ``path``, relative to the list's folder), or WebDataset shards
    (.tar, or ``wds:PATTERN``).

    Attributes:
        places: as given.
        left_out: files that lay among the photos and are none, of the folders gone through last.

    Raises:
        PromptPrismError: a list that is none, a pattern that nothing is like, or a folder without images.
    """

    def __init__(self, places: Sequence[str | Path]) -> None:
        self.places = [str(place) for place in places]
        self.left_out: list[Path] = []
        if not self.places:
            raise PromptPrismError("there is no photo to look at: name photos, or a folder of them")

    @property
    def packed(self) -> bool:
        """Whether some photos are no files of their own, but inside of shards."""
        return any(_kind(place) == "shards" for place in self.places)

    @property
    def folders(self) -> list[Path]:
        """The places that are folders."""
        return [Path(place) for place in self.places if _kind(place) == "folder"]

    def __iter__(self) -> Iterator[ImageSource]:
        self.left_out = []
        for place in self.places:
            yield from self._at(place)

    def _at(self, place: str) -> Iterator[ImageSource]:
        match _kind(place):
            case "file":
                yield Path(place)
            case "shards":
                yield from images_in(place.removeprefix(_SHARDS))
            case "list":
                yield from _listed(Path(place))
            case "folder":
                found = False
                for path in photos_below(Path(place), self.left_out):
                    found = True
                    yield path
                if not found:
                    raise PromptPrismError(f"folder '{place}' holds no images: give another, or name files")
            case _:
                found_paths = sorted(glob.glob(place, recursive=True))  # noqa: PTH207 - absolute ones too
                if not found_paths:
                    raise PromptPrismError(f"nothing is like '{place}'. Check the path and its spelling")
                for path in map(Path, found_paths):
                    if path.is_dir():
                        # What ** finds below a folder it names itself.
                        if "**" not in place:
                            yield from photos_below(path, self.left_out)
                    else:
                        yield path


def _kind(place: str) -> str:
    if os.path.isdir(place):  # noqa: PTH112 - says no of a name that no file can have
        return "folder"
    if place.startswith(_SHARDS) or place.lower().endswith(".tar"):
        return "shards"
    if os.path.lexists(place) or not glob.has_magic(place):
        return "list" if place.lower().endswith((*_TABLES, ".txt")) else "file"
    return "pattern"


def _listed(path: Path) -> Iterator[Path]:
    text = read_text(path, "list of photos")
    if path.suffix.lower() in _TABLES:
        where = f"list '{path}'"
        lines = parsed_lines(where, text)
        header = [name.strip().lower() for name in next(lines, (0, []))[1]]
        check_column(where, header, "path", "name it so in the first line")
        column = header.index("path")
        names = [fields[column] for _, fields in lines if column < len(fields)]
    else:
        names = text.splitlines()
    found = [on_disk(path.parent, name) for name in names if name.strip()]
    if not found:
        raise PromptPrismError(f"list '{path}' names no photos: give one path a line")
    return iter(found)
