import dataclasses
import json
from pathlib import Path

import pytest
from miniatures import miniature, put

from promptprism.data import layouts
from promptprism.data.catalog import CATALOG
from promptprism.data.images import load_image
from promptprism.data.layouts import SplitFile, class_names
from promptprism.data.names import check_class_names, spoken
from promptprism.data.registry import load_data, registered
from promptprism.errors import PromptPrismError

SPLIT_FILES = [name for name, entry in CATALOG.items() if isinstance(entry.layout, SplitFile)]


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_split_file_layout(tmp_path, name):
    lists = miniature(tmp_path, name)
    data = load_data(name, root=tmp_path)
    assert data.name == name and data.phrase == CATALOG[name].phrase
    assert data.class_names[:2] == ("class 0", "class 1") and len(data.class_names) == CATALOG[name].classes
    assert [len(data.train), len(data.val), len(data.test)] == [2 * CATALOG[name].classes] * 3
    below = [Path(record.source).relative_to(data.folder).as_posix() for record in data.test]
    assert below == [row[0] for row in lists["test"]]
    assert load_image(data.train[0].source).size == (6, 5)


def test_aircraft_layout(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    variants = [f"DC-{i}" for i in reversed(range(100))]  # the file's order counts, not the alphabet's
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        rows = [f"{start + i:07d} {name}" for i, name in enumerate(variants)]
        for i in range(100):
            put(folder / "images" / f"{start + i:07d}.jpg")
        (folder / f"images_variant_{split}.txt").write_text("\n".join(rows) + "\n")
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    data = load_data("fgvc_aircraft", root=tmp_path)
    assert data.class_names == tuple(variants) and data.phrase == "a photo of a {}, a type of aircraft."
    assert [(Path(r.source).name, r.label) for r in data.test[:2]] == [("0000200.jpg", 0), ("0000201.jpg", 1)]
    (folder / "variants.txt").write_text("\n".join(variants[1:]))
    with pytest.raises(PromptPrismError, match=r"1 variants that 'variants.txt' lacks, first: 'DC-99'"):
        load_data("fgvc_aircraft", root=tmp_path)


def test_imagenet_and_its_shifts(imagenets):
    root = imagenets

    def load(name):
        classes = 2 if name in ("imagenet_a", "imagenet_r") else 4
        return dataclasses.replace(CATALOG[name], classes=classes).load(root)

    data = load("imagenet")
    four = ("tench", "missile [n03773504]", "missile [n04008634]", "sunglasses")
    assert data.class_names == four == check_class_names(four)
    assert [spoken(name) for name in four] == ["tench", "missile", "missile", "sunglasses"]
    assert [len(data.train), len(data.val), len(data.test)] == [4, 0, 4]
    assert [record.label for record in data.test] == [0, 1, 2, 3]
    assert load("imagenet_sketch").class_names == four
    shifted = load("imagenetv2")
    assert [(Path(r.source).name, r.label) for r in shifted.test] == [(f"a{i}.jpeg", i) for i in range(4)]
    for name in ("imagenet_a", "imagenet_r"):  # their own label space, where each name is there once
        assert load(name).class_names == ("missile [n03773504]", "sunglasses")
        assert [record.label for record in load(name).test] == [0, 1]
    (root / "imagenet-sketch/images/n01440764/sketch_0.JPEG").rename(root / "kept")
    (root / "imagenet-sketch/images/n01440764").rmdir()
    with pytest.raises(PromptPrismError, match=r"lacks 1 of 4 class folders, first: 'n01440764'\. Unpack"):
        load("imagenet_sketch")
    put(root / "imagenet-sketch/images/loose.JPEG")
    with pytest.raises(PromptPrismError, match=r"'n01440764'\. Sort its images into them"):
        load("imagenet_sketch")
    (root / "imagenet/images/val/n99999999").mkdir()
    with pytest.raises(PromptPrismError, match="1 folders that are no class of ImageNet"):
        load("imagenet")
    (root / "imagenet/classnames.txt").write_text("n01440764 Tinca tinca\n")
    with pytest.raises(PromptPrismError, match=r"is not the list .* that CLIP uses: it has 1 names, or"):
        load("imagenetv2")
    (root / "imagenet/classnames.txt").unlink()
    with pytest.raises(PromptPrismError, match=r"fetch classnames\.txt"):
        load("imagenetv2")


def change(root: Path, name: str, edit) -> None:
    path = root / CATALOG[name].folder / CATALOG[name].layout.file
    lists = json.loads(path.read_text())
    edit(lists)
    path.write_text(json.dumps(lists))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda x: x["test"].append(x["train"][0]),
            r"1 test images are in the training list too, first: 'c0/",
        ),
        (
            lambda x: x["val"].append(["c0/none.jpg", 0, "class 0"]),
            r"1 of 61 listed images are not in .*none",
        ),
        (
            lambda x: x["val"].append(["c0/train0.jpg", 11, "class 11"]),
            "labels are not contiguous: 11 classes",
        ),
        (lambda x: x["val"].append(["c0/train0.jpg", 10, "more"]), "1 classes extra: 11 instead of 10"),
        (
            lambda x: x["val"].append(["c0/train0.jpg", 0, "other"]),
            "label 0 has two names, 'class 0' and 'other'",
        ),
        (lambda x: x["val"].append(["c0/train0.jpg", "0", "class 0"]), "is not .path, label, class name"),
        (lambda x: x.pop("val"), "is no split file"),
    ],
)
def test_bad_lists(tmp_path, edit, words):
    miniature(tmp_path, "eurosat")
    change(tmp_path, "eurosat", edit)
    with pytest.raises(PromptPrismError, match=words):
        load_data("eurosat", root=tmp_path)


def test_bad_places(tmp_path, monkeypatch):
    monkeypatch.delenv("PROMPTPRISM_DATA", raising=False)
    with pytest.raises(PromptPrismError, match="where is 'eurosat'"):
        load_data("eurosat")
    with pytest.raises(PromptPrismError, match="no such root folder"):
        load_data("eurosat", root=tmp_path / "nowhere")
    with pytest.raises(PromptPrismError, match="the root must hold 'eurosat'"):
        load_data("eurosat", root=tmp_path)
    miniature(tmp_path, "eurosat")
    with pytest.raises(PromptPrismError, match=f"Did you mean '{tmp_path}'"):
        load_data("eurosat", root=tmp_path / "eurosat")
    monkeypatch.setenv("PROMPTPRISM_DATA", str(tmp_path))
    assert len(load_data("eurosat").train) == 20
    split = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    split.write_text("{")
    with pytest.raises(PromptPrismError, match=r"cannot read .*split_zhou_EuroSAT.json"):
        load_data("eurosat")
    split.unlink()
    (tmp_path / "eurosat" / "EuroSAT.zip").touch()
    with pytest.raises(PromptPrismError, match=r"lacks 'split_zhou_EuroSAT.json': EuroSAT is not") as error:
        load_data("eurosat")
    for remedy in (
        "Unpack 'EuroSAT.zip' there",
        "'eurosat/drawn' can be loaded, whose figures cannot be compared",
        "`promptprism data prepare eurosat` fetches it",
        "lists from https://github.com/KaiyangZhou/CoOp",
    ):
        assert remedy in str(error.value)


def test_all_fifteen_are_registered():
    assert len(CATALOG) == 15 and registered().keys() >= CATALOG.keys()


@pytest.mark.parametrize(
    "name", ["dtd", "oxford_flowers", "oxford_pets", "stanford_cars", "ucf101", "caltech101"]
)
def test_real_split_files(real_data, name):
    entry = CATALOG[name]
    file = entry.layout.file
    lists = entry.layout.lists(real_data(f"{entry.folder}/{file}", f"metadata/splits/{file}").parent)
    assert {split: len(rows) for split, rows in lists.items()} == entry.images
    assert len(check_class_names(class_names(lists))) == entry.classes


def test_real_aircraft_lists(real_data):
    folder = real_data("fgvc_aircraft", "metadata/fgvc_aircraft")
    lists = CATALOG["fgvc_aircraft"].layout.lists(folder)
    assert {split: len(rows) for split, rows in lists.items()} == CATALOG["fgvc_aircraft"].images
    assert len(class_names(lists)) == 100 and lists["test"][0] == ("1514522.jpg", 0, "707-320")


@pytest.fixture
def imagenet_names(real_data):
    return real_data("imagenet/classnames.txt", "metadata/splits/imagenet_classnames.txt").read_text()


def test_real_imagenet_names(imagenet_names, tmp_path):
    (tmp_path / "classnames.txt").write_text(imagenet_names)
    for place in range(1000):
        (tmp_path / "x" / str(place)).mkdir(parents=True)
        (tmp_path / "x" / str(place) / "1.jpeg").touch()
    names = class_names(layouts.WordNetFolders("x", numbered=True).lists(tmp_path))
    assert len(check_class_names(names)) == 1000 and len({spoken(name) for name in names}) == 998
    assert names[836:838] == ("sunglasses [n04355933]", "sunglasses [n04356056]")


def test_real_caltech101_and_eurosat(real_data):
    data = load_data("caltech101", root=real_data("caltech-101").parent)
    assert [len(data.train), len(data.val), len(data.test)] == [4128, 1649, 2465]
    assert data.class_names[:4] == ("face", "leopard", "motorbike", "accordion")
    folder = real_data("eurosat")
    rows = json.loads((folder / "split_zhou_EuroSAT.json").read_text())["test"]
    data = load_data("eurosat", root=folder.parent)
    assert data.class_names[0] == "Annual Crop Land" and len(data.test) == len(rows)
    assert load_image(data.train[0].source).size == (64, 64)


def test_names_that_are_not_those_of_clip(imagenet_names, tmp_path):
    """Lists with the same classes under other names are about: how many names differ is said."""
    lines = imagenet_names.splitlines()
    (tmp_path / "x").mkdir()
    other = [f"{line}, some synonym" if i % 3 else line for i, line in enumerate(lines[:544])] + lines[544:]
    (tmp_path / "classnames.txt").write_text("\n".join(other))
    differing = sum(a != b for a, b in zip(lines, other, strict=True))
    layout = layouts.WordNetFolders("x", numbered=True)
    with pytest.raises(
        PromptPrismError, match=f"{differing} of its 1000 names differ.*'goldfish, some synonym'"
    ):
        layout.lists(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(lines[1:] + lines[:1]))
    with pytest.raises(
        PromptPrismError, match="is not the list of ImageNet's 1,000 class names that CLIP uses"
    ):
        layout.lists(tmp_path)
