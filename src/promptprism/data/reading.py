"""What users may have to say of their data: what the splits, the columns and the classes are called."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from promptprism.data.names import check_class_names, name_key
from promptprism.data.records import Dataset
from promptprism.errors import PromptPrismError
from promptprism.files import check_regular

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
# Words around those that say nothing: training_set, seg_train, test_images, train2017.
_FILLERS = frozenset({"set", "seg", "data", "dataset", "image", "images", "img", "imgs", "split"})


@dataclass(frozen=True)
class Reading:
    """How data is to be read, where it does not say so itself.

    Attributes:
        splits: what the data calls ``train``, ``val`` and ``test``; if any is given, all else is left out.
        names: file of class names, see `read_names`.
        path_column: of a CSV, with the images' paths.
        label_column: of a CSV, with the names of the classes.
        split_column: of a CSV, with the splits; it may be missing.
    """

    splits: Mapping[str, str] = field(default_factory=dict)
    names: Path | None = None
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"

    def __post_init__(self) -> None:
        if odd := self.splits.keys() - {"train", "val", "test"}:
            raise PromptPrismError(f"there is no split '{min(odd)}': name train, val or test")

    def split(self, name: str) -> str | None:
        """Which split is called so; None if that is none, or is left out."""
        if self.splits:
            wanted = name_key(name)
            return next((split for split, given in self.splits.items() if name_key(given) == wanted), None)
        return split_of(name)


def split_of(name: str) -> str | None:
    """The split that people call so, in one of the usual spellings; None if it is none, or two."""
    if not re.fullmatch(r"[A-Za-z0-9 _.-]+", name):
        return None
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    telling = [word for word in words if word not in _FILLERS]
    return SPLITS.get(telling[0].removesuffix("set")) if len(telling) == 1 else None


def renamed(dataset: Dataset, names: Path) -> Dataset:
    """Give the classes the names that a file has for them.

    Raises:
        PromptPrismError: the file cannot be read or lacks a class, or two classes get the same name.
    """
    known = {name_key(old): new for old, new in read_names(names).items()}
    lacking = [name for name in dataset.class_names if name_key(name) not in known]
    if lacking:
        raise PromptPrismError(
            f"'{names}' has no name for {len(lacking)} of {len(dataset.class_names)} classes, first: "
            f"{some(lacking)}. It needs a line for each class: what the data calls it, and its name"
        )
    return replace(
        dataset, class_names=check_class_names([known[name_key(name)] for name in dataset.class_names])
    )


def read_names(path: Path) -> dict[str, str]:
    """Read what classes are called: what the data calls them, and their names.

    It is a JSON object; a JSON list, whose first name is that of class 0; or lines of two fields, separated
    by tab, semicolon or comma, or else by the first space.

    Raises:
        PromptPrismError: it is not there, is no UTF-8, or has something else in it.
    """
    text = read_text(path, "file of names")
    if text.lstrip()[:1] in ("{", "["):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PromptPrismError(f"'{path}' is no JSON ({error}): mend it there") from error
        if isinstance(content, list):
            content = {str(place): name for place, name in enumerate(content)}
        if odd := next((name for name in content.values() if not isinstance(name, str)), None):
            raise PromptPrismError(f"'{path}' has {odd!r} where a class name should be: write text")
        return dict(content)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    separator = next((each for each in "\t;," if all(each in line for _, line in lines)), None)
    names = {}
    for number, line in lines:
        fields = next(csv.reader([line], delimiter=separator)) if separator else line.split(maxsplit=1)
        if len(fields) != 2 or not all(each.strip() for each in fields):
            raise PromptPrismError(
                f"line {number} of '{path}' is '{line.strip()}': write what the data calls a class and its "
                "name, with a tab, comma or space between them, and quotes around a name with a comma"
            )
        names[fields[0].strip()] = fields[1].strip()
    return names


def read_text(path: Path, what: str) -> str:
    """Read a text file of the user: UTF-8, or UTF-16 that says so.

    Raises:
        PromptPrismError: it is not there, is no file, or is in another encoding; where, and which it may be.
    """
    try:
        check_regular(path)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise PromptPrismError(f"no such {what}: '{path}'. Check the path and its spelling") from error
    except OSError as error:
        raise PromptPrismError(f"cannot read {what} '{path}' ({error.strerror or error})") from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        around = content[: error.end + 20].splitlines()[line - 1][-60:].decode("cp1252", "replace")
        raise PromptPrismError(
            f"line {line} of {what} '{path}' is no {encoding[:6].rstrip('-').upper()}; read as Windows' "
            f"cp1252, it has '{around}': save it as UTF-8"
        ) from error


def some(names: Iterable[object], most: int = 5) -> str:
    """List the first few in quotes, and how many more there are."""
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(f"'{name}'" for name in listed[:most]) + rest
