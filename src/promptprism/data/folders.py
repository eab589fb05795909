"""Data as most users keep it: a folder with one subfolder per class."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from promptprism.data.images import IMAGE_SUFFIXES, looks_like_image
from promptprism.data.reading import Reading, some, split_of
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import DataWarning, PromptPrismError, warn
from promptprism.files import check_regular

# What storage, archives and editors put beside the data; hidden files and folders are left out too.
_SERVICE = frozenset(
    {"__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
    | {"lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"}
)
#: The folder of photos without an answer, and the list beside it, where photos were sorted.
ABSTAINED, SORTED = "_abstained", "sorted.csv"
# Not worth opening to see whether they are images under another ending.
_TEXTS = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".html", ".yaml", ".yml"})
# Folders beside each other that tell a layout which says where things are in an image.
_DETECTION = {
    "YOLO": {"images", "labels"},
    "Pascal VOC": {"jpegimages", "annotations"},
    "COCO": {"images", "annotations"},
}


def read_folder(root: str | Path, reading: Reading | None = None) -> Dataset:
    """Read a folder with one subfolder per class, its images at any depth below.

    ``train/``, ``test/`` and ``val/`` folders around the class folders are taken as splits, in the usual
    spellings; without them, every image is a training image. Classes are sorted by name. Hidden files, and
    what storage and editors leave behind, are ignored; other files that are no images are listed in
    `Dataset.skipped`. Each folder is read once, whatever leads to it. What ``predict --sort-into`` could not
    answer is no class.

    Warns:
        DataWarning: photos were sorted without an answer, a class has no image of its own but folders, a link
            leads to what was read already, or a folder cannot be looked into.

    Raises:
        PromptPrismError: no such folder, no class folders, a class without a (training) image, splits taken
            for classes, or a layout of boxes instead of classes.
    """
    root, reading = Path(root), reading or Reading()
    if not root.is_dir():
        raise PromptPrismError(f"no such folder: '{root}'. Check the path and its spelling")
    walk = _Walk(root)
    folders = walk.subfolders(root)
    splits = _find_splits(root, folders, reading, walk)
    for folder in (root, *splits.values()):
        _refuse_detection(folder, walk)
    skipped = [path for folder in {root, *splits.values()} for path in walk.files(folder)]
    taken = [
        (split, folder, _class_name(folder))
        for split, around in splits.items()
        for folder in walk.subfolders(around)
        if not _unanswered(folder) and walk.enter(folder)
    ]
    if splits != {"train": root}:
        within = {parent for folder in splits.values() for parent in (folder, *folder.parents)}
        skipped += [path for folder in folders if folder not in within for path in walk.below(folder)]
    found: dict[str, dict[str, list[Path]]] = {}
    ignored: dict[str, list[Path]] = {}
    nested = []
    for split, folder, name in taken:
        images = found.setdefault(name, {}).setdefault(split, [])
        others = ignored.setdefault(name, [])
        for path in walk.below(folder):
            (images if is_image(path) else others).append(path)
        if images and all(path.parent != folder for path in images):
            nested.append(folder)
    if not found:
        loose = sum(map(is_image, skipped))
        raise PromptPrismError(
            f"folder '{root}' has no subfolders{f' but {loose} loose images' if loose else ''}: "
            "put the images of each class into a subfolder with the class's name"
        )
    if not reading.splits:
        _refuse_splits_as_classes(root, found, skipped, ignored)
    if len(found) == 1 and nested:
        deeper = walk.subfolders(nested[0])
        raise PromptPrismError(
            f"all images of '{root}' are in its one subfolder '{nested[0].name}', in folders of their own: "
            f"{some(folder.name for folder in deeper)}. If those are the classes or splits, go one folder "
            f"deeper: give '{nested[0]}'"
        )
    needed = "train" if "train" in splits else "test"
    counts = {name: len(by_split.get(needed, ())) for name, by_split in found.items()}
    _check_classes(counts, splits[needed], ignored)
    if nested:
        warn(
            "each is taken for one class, but has no image of its own, only folders: "
            f"{some(path.relative_to(root) for path in nested)}. If one is no class, move it out of "
            f"'{root}'; if the folders in it are the classes, move them up",
            DataWarning,
        )
    walk.tell()
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
        skipped=tuple(sorted(skipped)),
        folder=root,
    )


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its ending, or else by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _TEXTS:
        return suffix in IMAGE_SUFFIXES
    try:
        check_regular(path)
        with path.open("rb") as file:
            return looks_like_image(file.read(32))
    except (OSError, PromptPrismError):
        return False


class _Walk:
    """Goes through folders, each once however many links lead to it, in the same order on every machine."""

    def __init__(self, root: Path) -> None:
        real = root.resolve()
        self._seen = {_place(folder) for folder in (real, *real.parents)}
        self._again: list[Path] = []
        self._closed: list[OSError] = []

    def enter(self, folder: Path) -> bool:
        """Note that a folder is read; False if it was already."""
        try:
            place = _place(folder)
        except OSError as error:
            self._closed.append(error)
            return False
        if place in self._seen:
            self._again.append(folder)
            return False
        self._seen.add(place)
        return True

    def below(self, folder: Path) -> Iterator[Path]:
        """Every visible file at any depth; the folder itself has been entered."""
        for parent, folders, files in os.walk(folder, onerror=self._closed.append, followlinks=True):
            folders[:] = [
                name for name in sorted(filter(_visible, folders)) if self.enter(Path(parent, name))
            ]
            yield from (Path(parent, name) for name in sorted(filter(_visible, files)))

    def subfolders(self, folder: Path) -> list[Path]:
        """The visible folders right in a folder."""
        return [path for path in self._content(folder) if path.is_dir()]

    def files(self, folder: Path) -> list[Path]:
        """The visible files right in a folder."""
        return [path for path in self._content(folder) if path.is_file()]

    def tell(self) -> None:
        """Warn of what was not read."""
        if self._again:
            warn(f"left out, for what they lead to was read already: {some(self._again)}", DataWarning)
        if self._closed:
            warn(
                f"{len(self._closed)} folders cannot be looked into and are left out, first: "
                f"'{self._closed[0].filename}' ({self._closed[0].strerror}). Change their permissions",
                DataWarning,
            )

    def _content(self, folder: Path) -> list[Path]:
        try:
            return sorted(path for path in folder.iterdir() if _visible(path.name))
        except OSError as error:
            raise PromptPrismError(
                f"cannot look into folder '{folder}' ({error.strerror}): change its permissions"
            ) from error


def _find_splits(root: Path, folders: list[Path], reading: Reading, walk: _Walk) -> dict[str, Path]:
    found: dict[str, list[Path]] = {}
    for folder in folders:
        split = reading.split(folder.name)
        if split and (reading.splits or _holds_folders(folder, walk)):
            found.setdefault(split, []).append(folder)
    if lacking := [name for split, name in reading.splits.items() if split not in found]:
        here = some(folder.name for folder in folders) or "none"
        raise PromptPrismError(
            f"folder '{root}' has no folder '{lacking[0]}' to take for a split (it has: {here})"
        )
    for split, several in found.items():
        if len(several) > 1:
            raise PromptPrismError(
                f"folder '{root}' has {len(several)} folders that look like the {split} split: "
                f"{some(folder.name for folder in several)}. Say which is meant: --split {split}=NAME"
            )
    # Validation images alone do not make a split: some vehicle data set may well have a class called "val".
    if not reading.splits and not found.keys() & {"train", "test"}:
        return {"train": root}
    splits = {}
    for split, (folder,) in found.items():
        # Kaggle's archives have seg_train/seg_train/CLASS.
        while len(inner := walk.subfolders(folder)) == 1 and _holds_folders(inner[0], walk):
            if inner[0].name != folder.name and split_of(inner[0].name) != split:
                break
            folder = inner[0]
        splits[split] = folder
    return splits


def _holds_folders(folder: Path, walk: _Walk) -> bool:
    # A class may be called "train": class folders hold images, split folders hold folders.
    return bool(walk.subfolders(folder)) and not any(map(is_image, walk.files(folder)))


def _refuse_detection(folder: Path, walk: _Walk) -> None:
    names = {path.name.lower() for path in walk.subfolders(folder)}
    kinds = [kind for kind, needed in _DETECTION.items() if needed <= names]
    kinds += ["COCO" for path in walk.files(folder) if path.name.lower().endswith(".coco.json")]
    if kinds:
        raise PromptPrismError(
            f"'{folder}' is laid out as a {kinds[0]} data set, which says where things are in an image: "
            "export it for classification, as one folder per class, or cut the boxes out into such folders"
        )


def _refuse_splits_as_classes(
    root: Path, found: dict[str, dict[str, list[Path]]], skipped: list[Path], ignored: dict[str, list[Path]]
) -> None:
    if not all(map(split_of, found)):
        return
    lists = [*skipped, *(path for paths in ignored.values() for path in paths)]
    table = next((path for path in lists if path.suffix.lower() == ".csv"), None)
    hint = f"such as '{table}' has them" if table else "if the labels are in a list or in the file names"
    example = next(path.name for by_split in found.values() for paths in by_split.values() for path in paths)
    raise PromptPrismError(
        f"the folders of '{root}' look like splits, not classes: {some(sorted(found))}; they hold images "
        f"such as '{example}' and no folder per class. Make such folders, or a CSV of path,label,split, "
        f"{hint}; or name the splits with --split train=NAME"
    )


def _check_classes(counts: dict[str, int], folder: Path, ignored: dict[str, list[Path]]) -> None:
    empty = [name for name, count in sorted(counts.items()) if not count]
    if not empty:
        return
    hint = next((paths[0].name for name in empty if (paths := ignored[name])), None)
    raise PromptPrismError(
        f"{'class has' if len(empty) == 1 else 'classes have'} no image in '{folder}': {some(empty)}. "
        + (f"Files such as '{hint}' cannot be read; convert them to PNG or JPEG" if hint else "Add images")
        + ", or remove the subfolder"
    )


def photos_below(root: Path, left_out: list[Path]) -> Iterator[Path]:
    """Every visible image at any depth below a folder, as they are found; other files go into ``left_out``.

    Warns:
        DataWarning: a link leads to what was read already, or a folder cannot be looked into.
    """
    walk = _Walk(root)
    for path in walk.below(root):
        if is_image(path):
            yield path
        else:
            left_out.append(path)
    walk.tell()


def _unanswered(folder: Path) -> bool:
    """Whether a folder holds what a model had no answer for; says so."""
    if folder.name != ABSTAINED or not (folder.parent / SORTED).is_file():
        return False
    warn(
        f"'{folder}' holds photos that were sorted without an answer, and is no class: move each into its "
        "class's folder to learn from it",
        DataWarning,
    )
    return True


def _class_name(folder: Path) -> str:
    # macOS writes decomposed letters; a class is the same class on every system.
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(folder).decode("utf-8", "backslashreplace")
        raise PromptPrismError(
            f"the name of folder '{shown}' is no UTF-8, so the class has no name: rename the folder, or all "
            "with convmv -f cp1252 -t utf-8"
        ) from error
    return unicodedata.normalize("NFC", folder.name)


def _place(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SERVICE
