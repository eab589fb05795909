"""Few-shot samples and the base/new halves of a label space."""

import random
from collections.abc import Sequence
from dataclasses import replace

from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import PromptPrismError


def few_shot(
    records: Sequence[Record],
    shots: int,
    seed: int,
    allow_fewer: bool = False,
    class_names: Sequence[str] = (),
) -> Records:
    """Draw the same number of images of every class.

    The draw depends on nothing but the seed, the label and the number of images of the class: it is the same
    on every machine. The first images of a larger draw are the smaller draw.

    Args:
        records: the pool to draw from.
        shots: images per class.
        seed: any integer; 0 is as good as the others.
        allow_fewer: take what there is of classes with fewer images than shots.
        class_names: name per label; makes errors readable, and lets a class without any image be noticed.

    Raises:
        PromptPrismError: shots below 1, or a class has fewer images and that was not allowed.
    """
    if shots < 1:
        raise PromptPrismError(f"shots is {shots}: at least 1 image per class is needed")
    pools: dict[int, list[Record]] = {label: [] for label in range(len(class_names))}
    for record in records:
        pools.setdefault(record.label, []).append(record)
    short = {label: len(pool) for label, pool in sorted(pools.items()) if len(pool) < shots}
    if short and (not allow_fewer or not all(short.values())):
        raise PromptPrismError(_too_few(short, shots, class_names))
    drawn: list[Record] = []
    for label, pool in sorted(pools.items()):
        # Only random() is promised to give equal numbers in every version of Python; sample() is not.
        generator = random.Random(f"few-shot {seed} {label}")
        drawn += sorted(pool, key=lambda _: generator.random())[:shots]
    return tuple(drawn)


def base_new(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Cut the label space in two: the first ceil(n/2) classes are base, the rest new, relabelled from 0.

    Raises:
        PromptPrismError: fewer than four classes: of a single one every image is right.
    """
    half = _half(dataset)
    return _part(dataset, "base", 0, half), _part(dataset, "new", half, len(dataset.class_names))


def told_among_all(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The test images of base and of new classes as `base_new` cuts them, each in the whole label space.

    Raises:
        PromptPrismError: see `base_new`.
    """
    half = _half(dataset)

    def told(part: str, known: bool) -> Dataset:
        test = tuple(record for record in dataset.test if (record.label < half) is known)
        return replace(dataset, name=f"{dataset.name}:{part} among all", train=(), val=(), test=test)

    return told("base", True), told("new", False)


def _half(dataset: Dataset) -> int:
    """The first class that is new."""
    if len(dataset.class_names) < 4:
        raise PromptPrismError(
            f"data set '{dataset.name}' has {len(dataset.class_names)} classes: base and new need "
            "at least 4, for nothing can be wrong where there is one class only"
        )
    return (len(dataset.class_names) + 1) // 2


def _part(dataset: Dataset, part: str, start: int, stop: int) -> Dataset:
    def kept(records: Records) -> Records:
        return tuple(replace(r, label=r.label - start) for r in records if start <= r.label < stop)

    return replace(
        dataset,
        name=f"{dataset.name}:{part}",
        class_names=dataset.class_names[start:stop],
        train=kept(dataset.train),
        val=kept(dataset.val),
        test=kept(dataset.test),
    )


def _too_few(short: dict[int, int], shots: int, class_names: Sequence[str]) -> str:
    names = [
        f"'{class_names[label]}' has {count}" if class_names else f"class {label} has {count}"
        for label, count in short.items()
    ]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    remedy = (
        "add images, ask for fewer shots, or allow fewer for these classes (allow_fewer, --allow-fewer)"
        if all(short.values())
        else "a class without any image cannot be learned: add images or remove the class"
    )
    return f"too few images for {shots} shots: {listed}. To go on, {remedy}"
