"""Which images are the same picture: by the bytes of their files, or nearly so by what is to be seen."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from promptprism.data.images import ImageSource, Stored, load_image
from promptprism.data.names import name_key
from promptprism.data.reading import some
from promptprism.data.records import Dataset, Record, Records
from promptprism.data.registry import registered
from promptprism.errors import DataWarning, PromptPrismError, warn
from promptprism.files import check_regular

# Bytes from the middle of a file, where two photos of one camera differ.
_GLANCE = 4096


class Entry(NamedTuple):
    """An image of a data set.

    Attributes:
        split: train, val or test.
        place: in the split.
        record: the image and its label.
    """

    split: str
    place: int
    record: Record


class Same(NamedTuple):
    """Groups of images of which each is one picture.

    Attributes:
        labels: under several labels.
        splits: under one label, in several splits.
        repeated: several times in one class and split.
    """

    labels: tuple[tuple[Entry, ...], ...]
    splits: tuple[tuple[Entry, ...], ...]
    repeated: tuple[tuple[Entry, ...], ...]


def same_pictures(dataset: Dataset) -> Same:
    """Find images whose files hold the same bytes; of those whose size occurs once, none is opened.

    Images that are no files and in no archive or table (arrays, drawings) are not compared.
    """
    groups = _same_bytes(list(_entries(dataset)))
    labels = [group for group in groups if len(_names(dataset, group)) > 1]
    rest = [group for group in groups if len(_names(dataset, group)) == 1]
    splits = [group for group in rest if len({entry.split for entry in group}) > 1]
    repeated = [
        inside
        for group in rest
        for split in ("train", "val", "test")
        if len(inside := tuple(entry for entry in group if entry.split == split)) > 1
    ]
    return Same(tuple(labels), tuple(splits), tuple(repeated))


def twins(records: Sequence[Record], others: Sequence[Record]) -> list[tuple[list[int], list[int]]]:
    """Pictures that are in both: their places in the one and in the other, by the bytes of their files."""
    entries = [Entry("train", *of) for of in enumerate(records)] + [
        Entry("val", *of) for of in enumerate(others)
    ]
    places = [
        ([e.place for e in group if e.split == "train"], [e.place for e in group if e.split == "val"])
        for group in _same_bytes(entries)
    ]
    return [(here, there) for here, there in places if here and there]


def distinct(dataset: Dataset) -> Dataset:
    """Leave each picture once among a class's training images, and compare the splits.

    Registered data sets are taken as they are: their figures are to be compared with others'.

    Warns:
        DataWarning: a picture is several times in a class, or in several splits: how many, and which.

    Raises:
        PromptPrismError: a picture has two labels.
    """
    if dataset.name in registered():
        return dataset
    same = same_pictures(dataset)
    if same.labels:
        raise PromptPrismError(two_labels(dataset, same.labels))
    for note in remarks(same):
        warn(note, DataWarning)
    extra = {entry.place for group in same.repeated for entry in group[1:] if entry.split == "train"}
    train = tuple(record for place, record in enumerate(dataset.train) if place not in extra)
    return replace(dataset, train=train)


def two_labels(dataset: Dataset, groups: Sequence[tuple[Entry, ...]]) -> str:
    """Say that pictures have two labels."""
    one, other = groups[0][0], next(e for e in groups[0] if e.record.label != groups[0][0].record.label)
    names = dataset.class_names
    return (
        f"{len(groups)} pictures of '{dataset.name}' are there under two labels, first: "
        f"'{one.record.source}' ({names[one.record.label]}) and '{other.record.source}' "
        f"({names[other.record.label]}) hold the same bytes. Labels are one per image: remove the wrong one"
    )


def remarks(same: Same) -> Iterator[str]:
    """Say which pictures are in several splits, or several times in a class."""
    for groups, what in (
        (same.splits, "are in several splits, so that scores on them say nothing of new images"),
        (same.repeated, "are several times in one class; of training images each is learned from once"),
    ):
        if groups:
            pairs = [f"{group[0].record.source} = {group[-1].record.source}" for group in groups]
            yield f"{len(groups)} pictures {what}: {some(pairs, 3)}"


def near_pictures(
    dataset: Dataset, most: int = 2, step: Callable[[int, int], None] = lambda *_: None
) -> list[tuple[Entry, Entry]]:
    """Find pairs of images that look the same, though their files differ: shrunk, or saved again.

    Each is told once, with the first it is like. They are compared by difference hashes (dHash): 64 bits,
    each of which says whether a pixel of the 9 x 8 thumbnail is darker than its right neighbour. Images
    without any detail have no hash.

    Args:
        dataset: its images that can be decoded are compared, except drawings.
        most: bits of 64 in which a pair may differ.
        step: called with images done and images in all.
    """
    entries = [entry for entry in _entries(dataset) if isinstance(entry.record.source, str | Path | Stored)]
    twins = {(e.split, e.place) for group in _same_bytes(entries) for e in group[1:]}
    entries = [entry for entry in entries if (entry.split, entry.place) not in twins]
    hashes = np.zeros(len(entries), np.uint64)
    for done, entry in enumerate(entries):
        with suppress(PromptPrismError):  # `unreadable` tells of it
            hashes[done] = difference_hash(entry.record.source)
        step(done + 1, len(entries))
    # Two hashes that differ in at most `most` bits are equal in one of most + 1 parts.
    width = 64 // (most + 1)
    first: dict[int, int] = {}
    for part in range(most + 1):
        keys = (hashes >> np.uint64(part * width)) & np.uint64(2**width - 1)
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            group = np.sort(group[hashes[group] != 0])
            for at, image in enumerate(group):
                near = np.bitwise_count(hashes[group[:at]] ^ hashes[image]) <= most
                if near.any():
                    before = int(group[near.argmax()])
                    first[int(image)] = min(before, first.get(int(image), before))
    return [(entries[before], entries[image]) for image, before in sorted(first.items())]


def difference_hash(source: ImageSource) -> int:
    """64 bits of an image, nearly the same for images that look the same; 0 for one without any detail.

    Raises:
        PromptPrismError: it cannot be read.
    """
    grey = load_image(source, least=32).convert("L").resize((9, 8), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.int16)
    return int.from_bytes(np.packbits(pixels[:, :-1] < pixels[:, 1:]).tobytes(), "big")


def _entries(dataset: Dataset) -> Iterator[Entry]:
    for split in ("train", "val", "test"):
        records: Records = getattr(dataset, split)
        yield from (Entry(split, place, record) for place, record in enumerate(records))


def _names(dataset: Dataset, group: Iterable[Entry]) -> set[str]:
    return {name_key(dataset.class_names[entry.record.label]) for entry in group}


def _same_bytes(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    """Groups of entries whose files hold the same: by size first, then by a glance, then by all of it."""
    groups: list[list[Entry]] = [list(entries)]
    for look in (_size, _glance, content_digest):
        finer: list[list[Entry]] = []
        for group in groups:
            by_look: dict[Hashable, list[Entry]] = {}
            for entry in group:
                # What cannot be read is told of when it is decoded.
                with suppress(OSError, PromptPrismError):
                    by_look.setdefault(look(entry.record.source), []).append(entry)
            by_look.pop(None, None)
            finer += [alike for alike in by_look.values() if len(alike) > 1]
        groups = finer
    return sorted(map(tuple, groups), key=lambda group: (group[0].split, group[0].place))


def _size(source: ImageSource) -> int | None:
    if isinstance(source, str | Path):
        return check_regular(Path(source))
    if isinstance(source, Stored):
        size = getattr(source, "size", None)
        return len(source.content()) if size is None else int(size)
    return None


def _glance(source: ImageSource) -> bytes:
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            file.seek(max(0, (Path(source).stat().st_size - _GLANCE) // 2))
            return file.read(_GLANCE)
    return b""


def content_digest(source: ImageSource) -> bytes:
    """What an image is: SHA-256 of its file's bytes, or of the pixels of what is no file; a drawing's key.

    Raises:
        PromptPrismError: it cannot be read.
        OSError: its file cannot be read.
    """
    if isinstance(source, str | Path):
        check_regular(Path(source))
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    if isinstance(source, Stored):
        return hashlib.sha256(source.content()).digest()
    if (key := getattr(source, "key", None)) is not None:
        return str(key).encode()
    return hashlib.sha256(load_image(source).tobytes()).digest()


def picture_id(source: ImageSource) -> str:
    """Twelve hex digits by which a picture is known again, wherever its file lies.

    Raises:
        PromptPrismError: it cannot be read.
    """
    try:
        return hashlib.sha256(content_digest(source)).hexdigest()[:12]
    except OSError as error:
        raise PromptPrismError(
            f"cannot read '{source}' ({error.strerror}): check it, or leave it out"
        ) from error
