"""Noisy squares of plain colours, which a random CLIP can learn in seconds; folders; a protocol by hand."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from promptprism.data.records import Dataset, Record
from promptprism.evaluation.protocols import PROTOCOLS, draw, score
from promptprism.methods import make_settings
from promptprism.training.loop import learn

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (220, 220, 30),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
}


def picture(colour: str, number: int) -> np.ndarray:
    """A square of a colour, the same for the same number."""
    noise = np.random.default_rng((number, *COLOURS[colour])).integers(-30, 31, (36, 40, 3))
    return np.clip(np.asarray(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def colours(classes: int = 4, train: int = 4, test: int = 3) -> Dataset:
    """The first colours, as a data set with a training and a test split."""
    names = tuple(COLOURS)[:classes]

    def records(numbers: range) -> tuple[Record, ...]:
        return tuple(Record(picture(name, i), label) for label, name in enumerate(names) for i in numbers)

    return Dataset("colours", names, train=records(range(train)), test=records(range(train, train + test)))


def colour_folder(root: Path) -> str:
    """Four colours as a folder: four images of each to train on, three to test."""
    for name in list(COLOURS)[:4]:
        for split, numbers in (("train", range(4)), ("test", range(4, 7))):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                Image.fromarray(picture(name, number)).save(root / split / name / f"{number}.png")
    return str(root)


def quick(method, **settings):
    """Settings of training, for a method that takes steps; none for one that does not."""
    if method == "promptsrc" and settings.get("epochs") == 1:
        settings["epochs"] = 2  # it averages over them
    return settings if make_settings(method).epochs else {}


def base_to_new(method, backbone, dataset, *, shots, seed=1, **settings):
    """What was learned of the base classes, and the scores of both halves, each in its own label space."""
    protocol = PROTOCOLS["base-to-new"]
    base, records = draw(protocol, dataset, shots, seed)
    trained = learn(make_settings(method, **settings), backbone, base.label_space, records, seed=seed)
    return trained, score(trained.method, trained.space, protocol.scored(dataset, {}))


def put(root, *names):
    """Files in a folder: images that all differ, or else text."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in {".png", ".jpg", ".JPG"}:
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        else:
            path.write_text("not an image")
    return root


def listed(root, records):
    """Paths below a folder, and labels."""
    return [(Path(os.path.relpath(r.source, root)).as_posix(), r.label) for r in records]


class Cell:
    """A stored image, as archives and tables have them."""

    def __init__(self, content):
        self._content = content

    def content(self):
        return self._content

    def __str__(self):
        return "cell 7"
