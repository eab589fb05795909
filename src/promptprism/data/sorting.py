"""Photos into folders, one per class: each once, over nothing, and with a list that says where from."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from promptprism.data.folders import ABSTAINED, SORTED
from promptprism.data.growing import GrowingTable, Line, text_of
from promptprism.data.images import ImageSource, Stored
from promptprism.data.photos import Heap
from promptprism.errors import PromptPrismError
from promptprism.files import is_there

How = Literal["copy", "link", "move"]

# Of the list in a sorted folder: where each photo came from, and where it is.
_COLUMNS = {"path": str, "class": str, "place": str}
# What some system or another does not allow in a name, or hides.
_ODD = re.compile(r'[\0-\x1f\x7f/\\:*?"<>|]|^[. ]|[. ]$')


class Sorter(GrowingTable):
    """A folder with one folder per class, to which photos are added; a killed run is gone on with.

    Args:
        folder: is made, or was made by a run with the same ``run``.
        heap: the photos.
        class_names: all there are.
        how: copies of the photos, symbolic links to them, or the photos themselves.
        run: what the answers depend on.

    Raises:
        PromptPrismError: the folder holds other files, or is one that photos come from or inside of it; or
            what is inside of shards is to be linked or moved.
    """

    def __init__(self, folder: Path, heap: Heap, class_names: Sequence[str], how: How, run: str) -> None:
        if heap.packed and how != "copy":
            raise PromptPrismError(f"photos in shards are no files to {how}: leave out --{how}, to copy them")
        real = folder.resolve()
        if inside := next((of for of in heap.folders if real.is_relative_to(of.resolve())), None):
            raise PromptPrismError(
                f"cannot sort '{inside}' into itself ('{folder}'): choose a folder outside of it"
            )
        if is_there(folder) and not (folder.is_dir() and (is_there(folder / SORTED) or _empty(folder))):
            raise PromptPrismError(
                f"'{folder}' holds other files, or is one: sort into a new folder, or an empty one"
            )
        self.folder, self._how = folder, how
        self.places: dict[str, str] = {}
        self._taken: set[str] = set()
        self._unfinished: str | None = None
        self._names = _folder_names(class_names)
        super().__init__(folder / SORTED, _COLUMNS, f"{run}-{how}", self._note)

    def __enter__(self) -> Sorter:
        super().__enter__()
        # Each is listed before it is put there: only the last may be missing.
        if self.places and not os.path.lexists(self.folder / (last := [*self.places.values()][-1])):
            self._unfinished = last
        return self

    def put(self, source: ImageSource, class_name: str | None) -> None:
        """Put a photo into its class's folder, or that of those without an answer, unless it is there.

        Raises:
            PromptPrismError: it cannot be written, or was taken away meanwhile.
        """
        name = self.key(source)
        if name in self.places and self.places[name] != self._unfinished:
            return
        own = ABSTAINED if class_name is None else self._names[class_name]
        place = self.places.get(name) or self._place(own, source)
        if name not in self.places:
            line = {"path": name, "class": class_name or "", "place": place}
            self.add(line)
            self._note(line)
        try:
            self._put(source, self.folder / place)
        except OSError as error:
            raise PromptPrismError(
                f"cannot put '{name}' into '{self.folder / own}' ({error.strerror or error}): check "
                "permissions and free space; the same command goes on"
            ) from error

    @staticmethod
    def key(source: ImageSource) -> str:
        """What a photo is listed as."""
        return text_of(os.path.abspath(source) if isinstance(source, Path) else source)  # noqa: PTH100

    def _note(self, line: Line) -> Line:
        self.places[line["path"]] = line["place"]
        self._taken.add(line["place"].casefold())
        return line

    def _place(self, own: str, source: ImageSource) -> str:
        """Where a photo goes: under its own name, unless that is taken."""
        name = Path(getattr(source, "name", str(source))).name
        place = f"{own}/{name}"
        if place.casefold() in self._taken or os.path.lexists(self.folder / place):
            marked = hashlib.sha256(self.key(source).encode()).hexdigest()[:8]
            place = f"{own}/{Path(name).stem}~{marked}{Path(name).suffix}"
        return place

    def _put(self, source: ImageSource, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._how == "link":
            target.symlink_to(os.path.abspath(str(source)))  # noqa: PTH100 - links stay
        elif self._how == "move":
            _move(Path(str(source)), target)
        else:
            # No other run is here, and one that was killed left it for this very photo.
            partial = target.with_name(f".{hashlib.sha256(target.name.encode()).hexdigest()[:16]}.partial")
            if isinstance(source, Stored):
                partial.write_bytes(source.content())
            else:
                shutil.copy2(str(source), partial)
            partial.rename(target)


def _move(source: Path, target: Path) -> None:
    # Where it cannot be taken away it would be copied, and then be there twice.
    if not os.access(source.parent, os.W_OK):
        raise PermissionError(errno.EACCES, f"it cannot be taken out of '{source.parent}'")
    if source.is_symlink():
        # What a link leads to may be said relative to its folder.
        target.symlink_to(os.path.abspath(source.parent / source.readlink()))  # noqa: PTH100
        source.unlink()
    else:
        shutil.move(source, target)


def _folder_names(class_names: Sequence[str]) -> dict[str, str]:
    """A folder's name for each class, which every system takes and no other class has."""
    names: dict[str, str] = {}
    taken = {ABSTAINED, SORTED}
    for name in class_names:
        own = _ODD.sub("_", name)[:80]
        if own.casefold() in taken:
            own += f"~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        taken.add(own.casefold())
        names[name] = own
    return names


def _empty(folder: Path) -> bool:
    return not any(folder.iterdir())
