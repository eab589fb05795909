"""What data hold: read as they are, or beside what a data set of the field should hold."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from promptprism.data.content import near_pictures, remarks, same_pictures, two_labels
from promptprism.data.images import IMAGE_SUFFIXES, ImageSource, unreadable
from promptprism.data.layouts import absent
from promptprism.data.names import check_class_names
from promptprism.data.published import PublishedDataset
from promptprism.data.reading import Reading, some
from promptprism.data.records import Dataset
from promptprism.data.registry import load_data
from promptprism.errors import DataWarning, PromptPrismError

#: Called with what is being done, how much of it is done, and how much there is.
Step = Callable[[str, int, int], None]


class SplitReport(BaseModel):
    """Images of one split: listed, on disk, and how many the whole data set lists, if that is known."""

    model_config = ConfigDict(frozen=True)

    listed: int
    present: int
    expected: int | None


class DataReport(BaseModel):
    """Result of `check_data` or `check_own`.

    Attributes:
        name: of the data set.
        folder: of its images.
        classes: number of classes in the lists.
        expected_classes: number it should be, if that is known.
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
    expected_classes: int | None
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
    dataset: PublishedDataset, root: Path, decode: bool = True, step: Step = lambda *_: None
) -> DataReport:
    """Compare a data set's files with its lists, and its lists with what they should be.

    Args:
        dataset: the data set.
        root: the folder that holds the data sets' folders.
        decode: decode every image, and compare them; minutes for the large ones.
        step: called with what is being done, how much of it is done, and how much there is.

    Raises:
        PromptPrismError: there is too little to check: no folder, or no or damaged lists.
    """
    lists = dataset.lists(root)
    folder = dataset.image_folder(root)
    missing = {split: set(absent(folder, [item[0] for item in items])) for split, items in lists.items()}
    splits = {
        split: SplitReport(
            listed=len(items), present=len(items) - len(missing[split]), expected=dataset.images.get(split, 0)
        )
        for split, items in lists.items()
    }
    there = [path for split, items in lists.items() for path, _, _ in items if path not in missing[split]]
    partial = any(report.listed != report.expected for report in splits.values())
    notes = ["a part of the whole data set: its figures cannot be compared with others'"] if partial else []
    faults = dataset.faults(lists, root)
    if decode and not faults:
        whole = dataset.load(root)
        same = same_pictures(whole)
        # What others publish stays as it is, so two labels are no fault of the user's copy.
        notes += [two_labels(whole, same.labels)] if same.labels else []
        notes += [*remarks(same), *_near(whole, step)]
    return DataReport(
        name=dataset.name,
        folder=str(folder),
        classes=len({label for items in lists.values() for _, label, _ in items}),
        expected_classes=dataset.classes,
        splits=splits,
        unreadable=_unreadable([folder / path for path in there], step) if decode else (),
        decoded=decode,
        other_files=sum(
            Path(name).suffix.lower() not in IMAGE_SUFFIXES
            for _, _, names in os.walk(folder)
            for name in names
        ),
        faults=tuple(faults),
        notes=tuple(notes),
    )


def check_own(
    source: str, reading: Reading | None = None, decode: bool = True, step: Step = lambda *_: None
) -> DataReport:
    """Read data of the user's own, and say what is in them that is probably not meant so.

    Args:
        source: what `load_data` takes.
        reading: what the data calls its splits, columns and classes.
        decode: decode every image, and compare them.
        step: called with what is being done, how much of it is done, and how much there is.

    Raises:
        PromptPrismError: the data cannot be read at all.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        dataset = load_data(source, reading=reading)
        splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
        sources = [record.source for records in splits.values() for record in records]
        same = same_pictures(dataset)
        content = [*remarks(same), *(_near(dataset, step) if decode else ())]
        broken = _unreadable(sources, step) if decode else ()
    faults = [two_labels(dataset, same.labels)] if same.labels else []
    if len(dataset.class_names) == 1:
        faults.append(f"there is one class only, '{dataset.class_names[0]}': give at least two to tell apart")
    try:
        check_class_names(dataset.class_names)
    except PromptPrismError as error:
        faults.append(str(error))
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, DataWarning)]
    return DataReport(
        name=dataset.name,
        folder=str(dataset.folder or dataset.name),
        classes=len(dataset.class_names),
        expected_classes=None,
        splits={
            split: SplitReport(listed=len(records), present=len(records), expected=None)
            for split, records in splits.items()
            if records
        },
        unreadable=broken,
        decoded=decode,
        other_files=len(dataset.skipped),
        faults=tuple(faults),
        notes=(*notes, *content),
    )


def _unreadable(sources: Sequence[ImageSource], step: Step) -> tuple[str, ...]:
    return tuple(unreadable(sources, lambda done, total: step("decoding", done, total)))


def _near(dataset: Dataset, step: Step) -> Iterator[str]:
    """What is to be said of images that look alike, though their files differ."""
    if near := near_pictures(dataset, step=lambda done, total: step("comparing", done, total)):
        pairs = [
            f"{one.record.source} ({one.split}) ~ {two.record.source} ({two.split})" for one, two in near
        ]
        apart = sum(one.split != two.split for one, two in near)
        yield (
            f"{len(near)} images look nearly like another, {apart} of them like one of another split: "
            f"{some(pairs, 3)}"
        )
