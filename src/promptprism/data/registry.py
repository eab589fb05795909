"""Data by name: what the registered names are, and one way in for folders, CSVs and names."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promptprism.data.readers import read_csv, read_folder
from promptprism.data.records import Dataset
from promptprism.errors import PromptPrismError


@dataclass(frozen=True)
class Entry:
    """A registered data set: its name, one line on what it shows, and how it is made."""

    name: str
    summary: str
    load: Callable[[], Dataset]


def registered() -> dict[str, Entry]:
    """List the registered data sets by name."""
    return {}


def load_data(source: str | Path | Dataset) -> Dataset:
    """Read data from a folder with one subfolder per class, a CSV of path and label, or a registered name.

    A registered name comes before a folder of the same name; write ``./mini/food`` for the folder.

    Raises:
        PromptPrismError: nothing of that name, or unusable data; see `read_folder` and `read_csv`.
    """
    if isinstance(source, Dataset):
        return source
    entries = registered()
    if str(source) in entries:
        return entries[str(source)].load()
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        if path.suffix.lower() in {".csv", ".tsv"}:
            return read_csv(path)
        raise PromptPrismError(
            f"data '{source}' is a file but no CSV: give a folder with one subfolder per class, or a CSV of "
            "path and label whose name ends in .csv"
        )
    near = difflib.get_close_matches(str(source), entries, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`promptprism datasets` lists the names."
    raise PromptPrismError(f"no data '{source}': there is no such folder, CSV or registered data set. {hint}")
