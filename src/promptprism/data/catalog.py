"""The fifteen data sets of the field, in the on-disk layout that CoOp's users have. One entry each."""

import difflib
from dataclasses import replace

from promptprism.data import makers
from promptprism.data.layouts import CLASS_NAMES, Layout, SplitFile, VariantLists, WordNetFolders
from promptprism.data.published import PublishedDataset
from promptprism.data.sources import Archive, Original, drive
from promptprism.errors import PromptPrismError

_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_IMAGENET = "https://image-net.org/download-images"
_SORTED = "a folder per class"
_NAMES = drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", CLASS_NAMES)


def _counts(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


CATALOG: dict[str, PublishedDataset] = {
    entry.name: entry
    for entry in (
        PublishedDataset(
            "imagenet", "ImageNet", "imagenet",
            WordNetFolders("images", (("train", "train"), ("test", "val"))),
            1000, {"train": 1281167, "test": 50000},
            None,
            (
                Original(_IMAGENET, "ILSVRC2012_img_train.tar", "imagenet/images/train", _SORTED),
                Original(_IMAGENET, "ILSVRC2012_img_val.tar", "imagenet/images/val", _SORTED),
                _NAMES,
            ),
        ),
        PublishedDataset(
            "caltech101", "Caltech101", "caltech-101",
            SplitFile("split_zhou_Caltech101.json", "101_ObjectCategories"),
            100, _counts(4128, 1649, 2465),
            Archive("caltech-101.zip", "ef7dced0802c60cf962273331dafb6b247059f22569edc87c3190d39f29c6f1c"),
            (
                Original(
                    "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                    folder="", then="and the 101_ObjectCategories.tar.gz in it",
                ),
                drive("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", "split_zhou_Caltech101.json"),
            ),
            alternative="caltech101/drawn",
        ),
        PublishedDataset(
            "oxford_pets", "OxfordPets", "oxford_pets",
            SplitFile("split_zhou_OxfordPets.json", "images"),
            37, _counts(2944, 736, 3669),
            Archive("oxford_pets.zip"),
            (
                Original(f"{_VGG}/pets/data/images.tar.gz"),
                drive("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", "split_zhou_OxfordPets.json"),
            ),
            "a photo of a {}, a type of pet.",
            "oxford_pets/official",
        ),
        PublishedDataset(
            "stanford_cars", "StanfordCars", "stanford_cars",
            SplitFile("split_zhou_StanfordCars.json", "."),
            196, _counts(6509, 1635, 8041),
            Archive("stanford_cars.zip"),
            (
                Original("http://ai.stanford.edu/~jkrause/car196/cars_train.tgz"),
                Original("http://ai.stanford.edu/~jkrause/car196/cars_test.tgz"),
                drive("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", "split_zhou_StanfordCars.json"),
            ),
            alternative="stanford_cars/official",
        ),
        PublishedDataset(
            "oxford_flowers", "Flowers102", "oxford_flowers",
            SplitFile("split_zhou_OxfordFlowers.json", "jpg"),
            102, _counts(4093, 1633, 2463),
            Archive("oxford_flowers.zip"),
            (
                Original(f"{_VGG}/flowers/102/102flowers.tgz"),
                drive("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", "split_zhou_OxfordFlowers.json"),
            ),
            "a photo of a {}, a type of flower.",
            "oxford_flowers/official",
        ),
        PublishedDataset(
            "food101", "Food101", "food-101",
            SplitFile("split_zhou_Food101.json", "images"),
            101, _counts(50500, 20200, 30300),
            Archive("food101.zip"),
            (
                Original("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", folder=""),
                drive("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", "split_zhou_Food101.json"),
            ),
            "a photo of {}, a type of food.",
            "food101/official",
        ),
        PublishedDataset(
            "fgvc_aircraft", "FGVCAircraft", "fgvc_aircraft",
            VariantLists(),
            100, _counts(3334, 3333, 3333),
            Archive("fgvc_aircraft.zip"),
            (
                Original(
                    f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                    folder="", then="keep its folder data alone, renamed fgvc_aircraft",
                ),
            ),
            "a photo of a {}, a type of aircraft.",
        ),
        PublishedDataset(
            "sun397", "SUN397", "sun397",
            SplitFile("split_zhou_SUN397.json", "SUN397"),
            397, _counts(15880, 3970, 19850),
            Archive("sun397.zip"),
            (
                Original("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"),
                drive("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", "split_zhou_SUN397.json"),
            ),
            alternative="sun397/official",
        ),
        PublishedDataset(
            "dtd", "DTD", "dtd",
            SplitFile("split_zhou_DescribableTextures.json", "images"),
            47, _counts(2820, 1128, 1692),
            Archive("dtd.zip", "5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b"),
            (
                Original(f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz", folder=""),
                drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", "split_zhou_DescribableTextures.json"),
            ),
            "{} texture.",
            "dtd/official",
        ),
        PublishedDataset(
            "eurosat", "EuroSAT", "eurosat",
            SplitFile("split_zhou_EuroSAT.json", "2750"),
            10, _counts(13500, 5400, 8100),
            Archive("eurosat.zip", "cedceda1690cad47bc3b41eb6bf2d0a134ec7413558128409928829f06c74613"),
            (
                Original("https://huggingface.co/datasets/torchgeo/eurosat/resolve/main/EuroSAT.zip"),
                drive("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "split_zhou_EuroSAT.json"),
            ),
            "a centered satellite photo of {}.",
            "eurosat/drawn",
        ),
        PublishedDataset(
            "ucf101", "UCF101", "ucf101",
            SplitFile("split_zhou_UCF101.json", "UCF-101-midframes"),
            101, _counts(7639, 1898, 3783),
            Archive("ucf101.zip"),
            (
                drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", "UCF-101-midframes.zip"),
                drive("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", "split_zhou_UCF101.json"),
            ),
            "a photo of a person doing {}.",
            "ucf101/official",
        ),
        PublishedDataset(
            "imagenetv2", "ImageNetV2", "imagenetv2",
            WordNetFolders("imagenetv2-matched-frequency-format-val", numbered=True),
            1000, {"test": 10000},
            Archive("imagenetv2.zip"),
            (
                Original(
                    "https://huggingface.co/datasets/vaishaal/ImageNetV2",
                    "imagenetv2-matched-frequency.tar.gz",
                ),
                _NAMES,
            ),
        ),
        PublishedDataset(
            "imagenet_sketch", "ImageNet-Sketch", "imagenet-sketch",
            WordNetFolders("images"),
            1000, {"test": 50889},
            Archive("imagenet-sketch.zip"),
            (
                Original(
                    "https://github.com/HaohanWang/ImageNet-Sketch", "ImageNet-Sketch.zip",
                    then="its folder sketch renamed images",
                ),
                _NAMES,
            ),
        ),
        PublishedDataset(
            "imagenet_a", "ImageNet-A", "imagenet-adversarial",
            WordNetFolders("imagenet-a", subset=True),
            200, {"test": 7500},
            Archive("imagenet-adversarial.zip"),
            (Original("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"), _NAMES),
        ),
        PublishedDataset(
            "imagenet_r", "ImageNet-R", "imagenet-rendition",
            WordNetFolders("imagenet-r", subset=True),
            200, {"test": 30000},
            Archive("imagenet-rendition.zip"),
            (Original("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"), _NAMES),
        ),
    )
}  # fmt: skip


def _without_split(name: str, layout: Layout, images: dict[str, int], *lists: Original) -> PublishedDataset:
    """An entry's images with the makers' own lists, or a split drawn here, under a name that says so."""
    entry = CATALOG[name]
    return replace(
        entry,
        name=entry.alternative,
        layout=layout,
        images=images,
        archive=None,
        originals=(*(file for file in entry.originals if not file.file.startswith("split_zhou")), *lists),
        alternative="",
    )


#: The same images without the canonical split. Figures on these splits are no others' figures.
ALTERNATIVES: dict[str, PublishedDataset] = {
    entry.name: entry
    for entry in (
        _without_split("caltech101", makers.CALTECH, _counts(4128, 1649, 2465)),
        _without_split(
            "oxford_pets", makers.PETS, {"train": 3680, "test": 3669},
            Original(f"{_VGG}/pets/data/annotations.tar.gz"),
        ),
        _without_split(
            "stanford_cars", makers.CARS, {"train": 8144, "test": 8041},
            Original("https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz"),
            Original("http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat"),
        ),
        _without_split(
            "oxford_flowers", makers.FLOWERS, _counts(1020, 1020, 6149),
            Original(f"{_VGG}/flowers/102/imagelabels.mat"),
            Original(f"{_VGG}/flowers/102/setid.mat"),
            drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", "cat_to_name.json"),
        ),
        _without_split("food101", makers.FOOD, {"train": 75750, "test": 25250}),
        _without_split(
            "sun397", makers.SUN, {"train": 19850, "test": 19850},
            Original("https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"),
        ),
        _without_split("dtd", makers.DTD, _counts(1880, 1880, 1880)),
        _without_split("eurosat", makers.EUROSAT, _counts(13500, 5400, 8100)),
        _without_split(
            "ucf101", makers.UCF, {"train": 9537, "test": 3783},
            Original("https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"),
        ),
    )
}  # fmt: skip


def find_dataset(name: str) -> PublishedDataset:
    """A data set of the field by name.

    Raises:
        PromptPrismError: there is none of that name.
    """
    entries = CATALOG | ALTERNATIVES
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`promptprism data list` lists them"
        raise PromptPrismError(f"no data set '{name}' among the field's. {hint}")
    return entries[name]
