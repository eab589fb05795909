"""The lists that the makers of the field's data sets published, read where the canonical split is not wanted.

Class names and their order are those of the canonical splits; which image is for training is not.
"""

import importlib
import os
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptprism.data.images import IMAGE_SUFFIXES
from promptprism.data.layouts import Lists, read_json, read_lines
from promptprism.errors import PromptPrismError, needs

#: Paths with what the makers call the class, by split.
Rows = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class MakersLists:
    """Images in a folder, and lists of a form of their own.

    Attributes:
        images: folder of the images.
        files: the lists.
        read: takes the data set's folder; gives the rows of each split, and the name of each class in the
            order of the labels.
    """

    images: str
    files: tuple[str, ...]
    read: Callable[[Path], tuple[Rows, dict[str, str]]]

    @property
    def needs(self) -> tuple[str, ...]:
        """The lists and the image folder."""
        return *self.files, self.images

    def lists(self, folder: Path) -> Lists:
        """Read the lists."""
        try:
            rows, names = self.read(folder)
        except (LookupError, TypeError, ValueError) as error:
            raise PromptPrismError(
                f"the lists in '{folder}' ({', '.join(self.files)}) are not as their makers wrote them "
                f"({error!r}): fetch them again"
            ) from error
        labels = {key: label for label, key in enumerate(names)}
        lists: Lists = {}
        for split, items in rows.items():
            if unknown := sorted({key for _, key in items} - labels.keys()):
                raise PromptPrismError(
                    f"the {split} list in '{folder}' has {len(unknown)} classes that are none, first: "
                    f"{', '.join(map(repr, unknown[:5]))}. Fetch the lists again"
                )
            lists[split] = [(path, labels[key], names[key]) for path, key in items]
        return lists


@dataclass(frozen=True)
class ClassFolders:
    """One folder per class, which the makers never split: half is drawn for training, a fifth to validate.

    The draw depends on nothing but the names of the files.

    Attributes:
        images: folder of the class folders.
        names: of classes whose folder is called otherwise.
        dropped: folders that are no class.
    """

    images: str
    names: Mapping[str, str]
    dropped: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The image folder."""
        return (self.images,)

    def lists(self, folder: Path) -> Lists:
        """List the class folders and draw the splits."""
        with os.scandir(folder / self.images) as entries:
            places = sorted(
                entry.name
                for entry in entries
                if entry.is_dir() and entry.name not in self.dropped and not entry.name.startswith(".")
            )
        lists: Lists = {"train": [], "val": [], "test": []}
        for label, place in enumerate(places):
            paths = (folder / self.images / place).iterdir()
            files = sorted(path.name for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
            # Only random() is promised to give equal numbers in every version of Python.
            generator = random.Random(f"split {place}")
            files.sort(key=lambda _: generator.random())
            train, val = round(0.5 * len(files)), round(0.2 * len(files))
            for split, part in (
                ("train", files[:train]),
                ("val", files[train : train + val]),
                ("test", files[train + val :]),
            ):
                lists[split] += [
                    (f"{place}/{file}", label, self.names.get(place, place)) for file in sorted(part)
                ]
        return lists


def _pets(folder: Path) -> tuple[Rows, dict[str, str]]:
    rows: Rows = {}
    names: dict[int, str] = {}
    for split, file in (("train", "trainval"), ("test", "test")):
        rows[split] = []
        for line in read_lines(folder / "annotations" / f"{file}.txt"):
            image, number, _, _ = line.split()
            names[int(number)] = image.rpartition("_")[0].lower()
            rows[split].append((f"{image}.jpg", names[int(number)]))
    return rows, {names[number]: names[number] for number in sorted(names)}


def _cars(folder: Path) -> tuple[Rows, dict[str, str]]:
    # "Audi TTS Coupe 2012" is said with the year first.
    makes = [
        f"{year} {make}"
        for make, _, year in (
            name.rpartition(" ") for name in _matlab(folder / "devkit/cars_meta.mat", "class_names")
        )
    ]
    rows = {
        split: [
            (f"cars_{split}/{row['fname']}", makes[int(row["class"]) - 1])
            for row in _matlab(folder / file, "annotations")
        ]
        for split, file in (
            ("train", "devkit/cars_train_annos.mat"),
            ("test", "cars_test_annos_withlabels.mat"),
        )
    }
    return rows, {make: make for make in makes}


def _flowers(folder: Path) -> tuple[Rows, dict[str, str]]:
    labels = _matlab(folder / "imagelabels.mat", "labels")
    spoken = read_json(folder / "cat_to_name.json")
    rows = {
        split: [
            (f"image_{int(number):05d}.jpg", str(int(labels[int(number) - 1])))
            for number in _matlab(folder / "setid.mat", key)
        ]
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }
    return rows, {number: spoken[number] for number in sorted(spoken, key=int)}


def _food(folder: Path) -> tuple[Rows, dict[str, str]]:
    content = {split: read_json(folder / "meta" / f"{split}.json") for split in ("train", "test")}
    rows = {
        split: [(f"{image}.jpg", name) for name, images in classes.items() for image in images]
        for split, classes in content.items()
    }
    return rows, {name: name for name in sorted(content["train"])}


def _sun(folder: Path) -> tuple[Rows, dict[str, str]]:
    rows = {
        split: [(line.lstrip("/"), line.rpartition("/")[0]) for line in read_lines(folder / file)]
        for split, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt"))
    }
    # "/a/apartment_building/outdoor" is said "outdoor apartment_building".
    places = read_lines(folder / "ClassName.txt")
    return rows, {place: " ".join(place.split("/")[:1:-1]) for place in places}


def _dtd(folder: Path) -> tuple[Rows, dict[str, str]]:
    rows = {
        split: [(line, line.partition("/")[0]) for line in read_lines(folder / "labels" / f"{split}1.txt")]
        for split in ("train", "val", "test")
    }
    return rows, {name: name for name in sorted({name for _, name in rows["train"]})}


def _ucf(folder: Path) -> tuple[Rows, dict[str, str]]:
    lists = folder / "ucfTrainTestlist"
    actions = [line.split()[1] for line in read_lines(lists / "classInd.txt")]
    names = {action: "_".join(re.findall("[A-Z][^A-Z]*", action)) for action in actions}
    rows: Rows = {}
    for split in ("train", "test"):
        videos = [line.split()[0] for line in read_lines(lists / f"{split}list01.txt")]
        parts = [video.removesuffix(".avi").partition("/") for video in videos]
        rows[split] = [(f"{names[action]}/{video}.jpg", action) for action, _, video in parts]
    return rows, names


def _matlab(path: Path, variable: str) -> Any:
    """A variable of a MATLAB file, as lists, dicts and numbers."""
    with needs(f"'{path}'", "data"):
        matlab = importlib.import_module("scipy.io")
    try:
        return matlab.loadmat(path, simplify_cells=True)[variable]
    except Exception as error:  # a damaged file makes it raise nearly anything
        raise PromptPrismError(f"cannot read '{path}' ({error}): fetch the file again") from error


PETS = MakersLists("images", ("annotations/trainval.txt", "annotations/test.txt"), _pets)
CARS = MakersLists(
    ".",
    (
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
        "cars_train",
        "cars_test",
    ),
    _cars,
)
FLOWERS = MakersLists("jpg", ("imagelabels.mat", "setid.mat", "cat_to_name.json"), _flowers)
FOOD = MakersLists("images", ("meta/train.json", "meta/test.json"), _food)
SUN = MakersLists("SUN397", ("ClassName.txt", "Training_01.txt", "Testing_01.txt"), _sun)
DTD = MakersLists("images", ("labels/train1.txt", "labels/val1.txt", "labels/test1.txt"), _dtd)
UCF = MakersLists(
    "UCF-101-midframes",
    tuple(f"ucfTrainTestlist/{file}.txt" for file in ("classInd", "trainlist01", "testlist01")),
    _ucf,
)
CALTECH = ClassFolders(
    "101_ObjectCategories",
    {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
    ("BACKGROUND_Google", "Faces_easy"),
)
EUROSAT = ClassFolders(
    "2750",
    {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
)
