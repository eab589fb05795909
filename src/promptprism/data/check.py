"""What a data set of the field holds on this disk, beside what it should hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from promptprism.data.images import IMAGE_SUFFIXES, unreadable
from promptprism.data.layouts import absent
from promptprism.data.published import PublishedDataset


class SplitReport(BaseModel):
    """Images of one split: listed, on disk, and how many the whole data set lists."""

    model_config = ConfigDict(frozen=True)

    listed: int
    present: int
    expected: int


class DataReport(BaseModel):
    """Result of `check_data`.

    Attributes:
        name: of the data set.
        folder: of its images.
        classes: number of classes in the lists.
        expected_classes: number it should be.
        splits: counts by split.
        unreadable: what is wrong with each listed image that cannot be decoded.
        decoded: whether the images were decoded at all.
        other_files: files among the images that are none and are ignored.
        faults: why the data cannot be used; empty if it can.
        notes: what to know of data that can be used.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    folder: str
    classes: int
    expected_classes: int
    splits: dict[str, SplitReport]
    unreadable: tuple[str, ...]
    decoded: bool
    other_files: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether `load_data` takes it, and every image can be decoded."""
        return not self.faults and not self.unreadable


def check_data(
    dataset: PublishedDataset,
    root: Path,
    decode: bool = True,
    step: Callable[[int, int], None] = lambda *_: None,
) -> DataReport:
    """Compare a data set's files with its lists, and its lists with what they should be.

    Args:
        dataset: the data set.
        root: the folder that holds the data sets' folders.
        decode: decode every image; minutes for the large ones.
        step: called with images decoded and images in all.

    Raises:
        PromptPrismError: there is too little to check: no folder, or no or damaged lists.
    """
    lists = dataset.lists(root)
    folder = dataset.image_folder(root)
    missing = {split: set(absent(folder, [item[0] for item in items])) for split, items in lists.items()}
    splits = {
        split: SplitReport(
            listed=len(items),
            present=len(items) - len(missing[split]),
            expected=dataset.images.get(split, 0),
        )
        for split, items in lists.items()
    }
    there = [path for split, items in lists.items() for path, _, _ in items if path not in missing[split]]
    partial = any(report.listed != report.expected for report in splits.values())
    notes = ("a part of the whole data set: its figures cannot be compared with others'",) if partial else ()
    return DataReport(
        name=dataset.name,
        folder=str(folder),
        classes=len({label for items in lists.values() for _, label, _ in items}),
        expected_classes=dataset.classes,
        splits=splits,
        unreadable=tuple(unreadable([folder / path for path in there], step)) if decode else (),
        decoded=decode,
        other_files=sum(
            Path(name).suffix.lower() not in IMAGE_SUFFIXES
            for _, _, names in os.walk(folder)
            for name in names
        ),
        faults=tuple(dataset.faults(lists, root)),
        notes=notes,
    )
