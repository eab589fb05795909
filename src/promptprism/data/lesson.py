"""What is learned from: shots drawn from data, and photos that a person has corrected."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from promptprism.data.content import distinct, twins
from promptprism.data.corrections import read_corrections
from promptprism.data.names import name_key
from promptprism.data.reading import some
from promptprism.data.records import Dataset, Record, Records
from promptprism.data.splits import few_shot
from promptprism.errors import DataWarning, PromptPrismError, warn
from promptprism.files import is_there


class Lesson(NamedTuple):
    """Images to learn from, with labels into the class names.

    Attributes:
        class_names: the label space.
        records: training images.
        validation: images to choose by.
        corrected: how many of the training images are corrected photos; they are the last.
        left_out: training images of the data that are not learned from.
    """

    class_names: tuple[str, ...]
    records: Records
    validation: Records
    corrected: int
    left_out: int


def make_lesson(
    dataset: Dataset | None,
    shots: int | None,
    seed: int,
    allow_fewer: bool = False,
    corrections: Path | None = None,
    known: Sequence[str] = (),
) -> Lesson:
    """Draw shots from data, the same with and without corrections, and add every corrected photo.

    Args:
        dataset: the data; None learns from corrected photos alone.
        shots: images per class; None takes all.
        seed: of the draw.
        allow_fewer: see `few_shot`.
        corrections: a file for `read_corrections`.
        known: classes that were learned before; those of the data come behind them.

    Warns:
        DataWarning: a corrected photo is in the data too (the corrected label counts, and it is no
            validation image any more), or is not there.

    Raises:
        PromptPrismError: see `distinct`, `few_shot` and `read_corrections`; or no corrected photo is left.
    """
    names, moved = list(known), []
    pool, drawn, validation = Records(), Records(), Records()
    if dataset is not None:
        dataset = distinct(dataset)
        pool, validation = dataset.train, dataset.val
        drawn = pool if shots is None else few_shot(pool, shots, seed, allow_fewer, dataset.class_names)
        places = {name_key(name): place for place, name in enumerate(names)}
        names += [name for name in dataset.class_names if name_key(name) not in places]
        places = {name_key(name): place for place, name in enumerate(names)}
        moved = [places[name_key(name)] for name in dataset.class_names]
    corrected = Records() if corrections is None else _corrected(corrections, names)
    stale = {id(pool[place]) for place in _overruled(corrected, _relabelled(pool, moved), names)}
    held = {place for _, there in twins(corrected, validation) for place in there}
    if dataset and corrected and (changed := _again(corrected, _relabelled(dataset.test, moved), names)[1]):
        warn(
            f"{len(changed)} corrected photos are test images of the data under another label, by which they "
            f"will be scored: {some(changed, 3)}",
            DataWarning,
        )
    kept = [record for record in drawn if id(record) not in stale]
    rest = [record for place, record in enumerate(validation) if place not in held]
    return Lesson(
        tuple(names),
        (*_relabelled(kept, moved), *corrected),
        _relabelled(rest, moved),
        len(corrected),
        len(pool) - len(kept) - len(stale),
    )


def _corrected(path: Path, names: Sequence[str]) -> Records:
    """The corrected photos that are there, each picture once."""
    labels = {name: place for place, name in enumerate(names)}
    found = {photo: name for photo, name in read_corrections(path, names).items() if is_there(photo)}
    if not found:
        raise PromptPrismError(
            f"file of corrections '{path}' gives no photo that is there a label: nothing can be learned from "
            "it; correct some, check its paths, or leave it out"
        )
    records = tuple(Record(photo, labels[name]) for photo, name in found.items())
    return distinct(Dataset(str(path), tuple(names), records)).train


def _overruled(corrected: Records, pool: Records, names: Sequence[str]) -> list[int]:
    """Places in the pool of pictures that were corrected, said."""
    places, changed = _again(corrected, pool, names)
    if places:
        told = f", of {len(changed)} another one: {some(changed, 3)}" if changed else ""
        warn(
            f"{len(places)} corrected photos are in the data too: the corrected label counts{told}",
            DataWarning,
        )
    return places


def _again(corrected: Records, others: Records, names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places of corrected pictures among others, and those that have another label there."""
    pairs = [(corrected[here[0]], place) for here, there in twins(corrected, others) for place in there]
    changed = [
        f"{record.source} ({names[record.label]}, not {names[others[place].label]})"
        for record, place in pairs
        if record.label != others[place].label
    ]
    return [place for _, place in pairs], changed


def _relabelled(records: Sequence[Record], moved: Sequence[int]) -> Records:
    return tuple(replace(record, label=moved[record.label]) for record in records)
