"""The fifteen data sets of the field, in the on-disk layout that CoOp's users have. One entry each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from promptprism.data.layouts import (
    Layout,
    Lists,
    SplitFile,
    VariantLists,
    WordNetFolders,
    absent,
    class_names,
)
from promptprism.data.records import DEFAULT_PHRASE, Dataset, Record
from promptprism.errors import PromptPrismError

#: The environment variable that says where the data sets are, unless a root is given.
ROOT_VARIABLE = "PROMPTPRISM_DATA"
#: Where the canonical split files and ImageNet's class names are linked from.
GUIDE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class Benchmark:
    """A data set of the field.

    Attributes:
        name: what `load_data` takes.
        title: how papers write it.
        folder: its folder below the root.
        layout: how its folder is read.
        classes: size of its label space.
        images: how many images each split has when all is there.
        source: where the images come from.
        phrase: hand-crafted text around a class name.
    """

    name: str
    title: str
    folder: str
    layout: Layout
    classes: int
    images: dict[str, int]
    source: str
    phrase: str = DEFAULT_PHRASE

    def lists(self, root: Path) -> Lists:
        """Read the lists of every split.

        Raises:
            PromptPrismError: a wrong root, something missing, or a damaged list.
        """
        folder = root / self.folder
        if not folder.is_dir():
            hint = f" Did you mean '{root.parent}'?" if root.name == self.folder else ""
            raise PromptPrismError(
                f"no folder '{folder}': the root must hold '{self.folder}' with {self.title}.{hint} "
                f"Images: {self.source}; lists: {GUIDE}"
            )
        if missing := [name for name in self.layout.needs if not (folder / name).exists()]:
            raise PromptPrismError(
                f"'{folder}' lacks {', '.join(map(repr, missing))}: {self.title} is not whole. "
                f"Images: {self.source}; lists: {GUIDE}"
            )
        return self.layout.lists(folder)

    def faults(self, lists: Lists, root: Path) -> list[str]:
        """Say why the data cannot be used, one sentence each; nothing if it can."""
        found = []
        try:
            if (count := len(class_names(lists))) != self.classes:
                kind = "missing" if count < self.classes else "extra"
                found.append(f"{abs(count - self.classes)} classes {kind}: {count} instead of {self.classes}")
        except PromptPrismError as error:
            found.append(str(error))
        train, test = ({path for path, _, _ in lists.get(split, ())} for split in ("train", "test"))
        if both := sorted(train & test):
            found.append(f"{len(both)} test images are in the training list too, {_first(both)}")
        paths = [path for items in lists.values() for path, _, _ in items]
        if missing := absent(self.image_folder(root), paths):
            found.append(
                f"{len(missing)} of {len(paths)} listed images are not in '{self.image_folder(root)}', "
                f"{_first(missing)}. Unpack the archive again ({self.source})"
            )
        return found

    def image_folder(self, root: Path) -> Path:
        """What the paths of the lists are relative to."""
        return root / self.folder / self.layout.images

    def load(self, root: str | Path | None = None) -> Dataset:
        """Read the data set from below a root folder; None takes the one of `ROOT_VARIABLE`.

        Raises:
            PromptPrismError: see `lists` and `faults`.
        """
        place = find_root(root, self.name)
        lists = self.lists(place)
        if faults := self.faults(lists, place):
            raise PromptPrismError(f"{self.title}: {'; '.join(faults)}")
        folder = self.image_folder(place)
        # Text, not Path: ImageNet has 1.3 million images.
        records = {
            split: tuple(Record(f"{folder}{os.sep}{path}", label) for path, label, _ in items)
            for split, items in lists.items()
        }
        return Dataset(
            self.name,
            class_names(lists),
            records.get("train", ()),
            records.get("val", ()),
            records["test"],
            self.phrase,
            folder=folder,
        )


def find_root(root: str | Path | None, name: str) -> Path:
    """The folder that holds the data sets' folders.

    Raises:
        PromptPrismError: none is given, or there is no such folder.
    """
    given = os.environ.get(ROOT_VARIABLE) if root is None else root
    if not given:
        raise PromptPrismError(
            f"where is '{name}'? Give the folder that holds the data sets' folders (root=..., --root), or "
            f"set {ROOT_VARIABLE}"
        )
    if not Path(given).is_dir():
        raise PromptPrismError(f"no such root folder: '{given}'. Check the path and its spelling")
    return Path(given)


def _first(names: list[str]) -> str:
    return f"first: {', '.join(map(repr, names[:5]))}"


def _counts(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"

CATALOG: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        Benchmark(
            "imagenet", "ImageNet", "imagenet",
            WordNetFolders("images", (("train", "train"), ("test", "val"))),
            1000, {"train": 1281167, "test": 50000}, "https://image-net.org",
        ),
        Benchmark(
            "caltech101", "Caltech101", "caltech-101",
            SplitFile("split_zhou_Caltech101.json", "101_ObjectCategories"),
            100, _counts(4128, 1649, 2465), "https://data.caltech.edu/records/mzrjq-6wc02",
        ),
        Benchmark(
            "oxford_pets", "OxfordPets", "oxford_pets",
            SplitFile("split_zhou_OxfordPets.json", "images"),
            37, _counts(2944, 736, 3669), f"{_VGG}/pets/", "a photo of a {}, a type of pet.",
        ),
        Benchmark(
            "stanford_cars", "StanfordCars", "stanford_cars",
            SplitFile("split_zhou_StanfordCars.json", "."),
            196, _counts(6509, 1635, 8041), "cars_train.tgz and cars_test.tgz, as the guide says",
        ),
        Benchmark(
            "oxford_flowers", "Flowers102", "oxford_flowers",
            SplitFile("split_zhou_OxfordFlowers.json", "jpg"),
            102, _counts(4093, 1633, 2463), f"{_VGG}/flowers/102/", "a photo of a {}, a type of flower.",
        ),
        Benchmark(
            "food101", "Food101", "food-101",
            SplitFile("split_zhou_Food101.json", "images"),
            101, _counts(50500, 20200, 30300), "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
            "a photo of {}, a type of food.",
        ),
        Benchmark(
            "fgvc_aircraft", "FGVCAircraft", "fgvc_aircraft", VariantLists(),
            100, _counts(3334, 3333, 3333), f"{_VGG}/fgvc-aircraft/", "a photo of a {}, a type of aircraft.",
        ),
        Benchmark(
            "sun397", "SUN397", "sun397",
            SplitFile("split_zhou_SUN397.json", "SUN397"),
            397, _counts(15880, 3970, 19850), "https://vision.princeton.edu/projects/2010/SUN/",
        ),
        Benchmark(
            "dtd", "DTD", "dtd",
            SplitFile("split_zhou_DescribableTextures.json", "images"),
            47, _counts(2820, 1128, 1692), f"{_VGG}/dtd/", "{} texture.",
        ),
        Benchmark(
            "eurosat", "EuroSAT", "eurosat",
            SplitFile("split_zhou_EuroSAT.json", "2750"),
            10, _counts(13500, 5400, 8100), "https://zenodo.org/records/7711810",
            "a centered satellite photo of {}.",
        ),
        Benchmark(
            "ucf101", "UCF101", "ucf101",
            SplitFile("split_zhou_UCF101.json", "UCF-101-midframes"),
            101, _counts(7639, 1898, 3783), "UCF-101-midframes.zip, as the guide says",
            "a photo of a person doing {}.",
        ),
        Benchmark(
            "imagenetv2", "ImageNetV2", "imagenetv2",
            WordNetFolders("imagenetv2-matched-frequency-format-val", numbered=True),
            1000, {"test": 10000}, "https://huggingface.co/datasets/vaishaal/ImageNetV2",
        ),
        Benchmark(
            "imagenet_sketch", "ImageNet-Sketch", "imagenet-sketch", WordNetFolders("images"),
            1000, {"test": 50889}, "https://github.com/HaohanWang/ImageNet-Sketch",
        ),
        Benchmark(
            "imagenet_a", "ImageNet-A", "imagenet-adversarial", WordNetFolders("imagenet-a", subset=True),
            200, {"test": 7500}, "https://github.com/hendrycks/natural-adv-examples",
        ),
        Benchmark(
            "imagenet_r", "ImageNet-R", "imagenet-rendition", WordNetFolders("imagenet-r", subset=True),
            200, {"test": 30000}, "https://github.com/hendrycks/imagenet-r",
        ),
    )
}  # fmt: skip

_FIELD = tuple(CATALOG)
#: The eleven of base-to-new; ImageNet is also the source of the other protocols.
ELEVEN = _FIELD[:11]
#: ImageNet's four shifts.
SHIFTS = _FIELD[11:]
