"""Miniatures of the makers' own lists, in the formats they come in."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from miniatures import put
from typer.testing import CliRunner

from promptprism.cli import app
from promptprism.data import makers
from promptprism.data.catalog import ALTERNATIVES, CATALOG, find_dataset
from promptprism.data.layouts import class_names
from promptprism.data.registry import load_data
from promptprism.errors import PromptPrismError


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def small(monkeypatch, name, classes):
    """The entry, for a label space of this size."""
    monkeypatch.setitem(ALTERNATIVES[name].__dict__, "classes", classes)


def shown(data):
    """Path below the image folder, and label, of each image by split."""
    return {
        split: [
            (Path(os.path.relpath(r.source, data.folder)).as_posix(), r.label) for r in getattr(data, split)
        ]
        for split in ("train", "val", "test")
    }


def test_pets(tmp_path, monkeypatch):
    small(monkeypatch, "oxford_pets/official", 2)
    folder = tmp_path / "oxford_pets"
    head = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids"]
    write(folder / "annotations/trainval.txt", ["American_Bulldog_1 2 2 1", "Abyssinian_100 1 1 1"])
    write(folder / "annotations/test.txt", ["Abyssinian_201 1 1 1", "American_Bulldog_203 2 2 1"])
    write(folder / "annotations/list.txt", head)
    put(*(folder / f"images/{name}.jpg" for name in ("American_Bulldog_1", "Abyssinian_100")))
    put(*(folder / f"images/{name}.jpg" for name in ("Abyssinian_201", "American_Bulldog_203")))
    (folder / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB 5.0")  # they lie there
    data = load_data("oxford_pets/official", tmp_path)
    assert data.class_names == ("abyssinian", "american_bulldog")
    assert data.name == "oxford_pets/official" and data.phrase == "a photo of a {}, a type of pet."
    assert shown(data) == {
        "train": [("American_Bulldog_1.jpg", 1), ("Abyssinian_100.jpg", 0)],
        "val": [],
        "test": [("Abyssinian_201.jpg", 0), ("American_Bulldog_203.jpg", 1)],
    }
    args = ["data", "check", "oxford_pets/official", "--root", str(tmp_path), "--json", "-"]
    report = json.loads(CliRunner().invoke(app, args).stdout)
    assert report["usable"] and report["other_files"] == 1 and report["splits"]["train"]["expected"] == 3680
    write(folder / "annotations/test.txt", ["Abyssinian_201 1"])
    with pytest.raises(PromptPrismError, match=r"annotations/test\.txt\) are not as their makers wrote them"):
        load_data("oxford_pets/official", tmp_path)


def devkit(folder, makes, train, test):
    """Stanford Cars as its makers ship it: MATLAB 5 files with a struct array and a cell array."""
    matlab = pytest.importorskip("scipy.io")
    (folder / "devkit").mkdir(parents=True)
    matlab.savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([makes], dtype=object)})
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for file, rows in (("devkit/cars_train_annos.mat", train), ("cars_test_annos_withlabels.mat", test)):
        array = np.array([[(1, 2, 3, 4, label, name) for name, label in rows]], dtype=fields)
        matlab.savemat(folder / file, {"annotations": array})


def test_cars(tmp_path, monkeypatch):
    small(monkeypatch, "stanford_cars/official", 2)
    folder = tmp_path / "stanford_cars"
    makes = ["Audi TTS Coupe 2012", "smart fortwo Convertible 2012"]
    devkit(folder, makes, [("00001.jpg", 2), ("00002.jpg", 1)], [("00001.jpg", 1), ("00002.jpg", 2)])
    put(*(folder / f"cars_{split}/0000{i}.jpg" for split in ("train", "test") for i in (1, 2)))
    data = load_data("stanford_cars/official", tmp_path)
    assert data.class_names == ("2012 Audi TTS Coupe", "2012 smart fortwo Convertible")
    assert shown(data)["train"] == [("cars_train/00001.jpg", 1), ("cars_train/00002.jpg", 0)]
    assert shown(data)["test"] == [("cars_test/00001.jpg", 0), ("cars_test/00002.jpg", 1)]
    (folder / "cars_test_annos_withlabels.mat").write_bytes(b"half a file")
    with pytest.raises(PromptPrismError, match=r"cannot read '.*withlabels\.mat' .*: fetch the file again"):
        load_data("stanford_cars/official", tmp_path)
    monkeypatch.setattr(makers.importlib, "import_module", lambda name: __import__("no_such_module"))
    with pytest.raises(PromptPrismError, match=r"cars_meta\.mat' needs .*'promptprism\[data\]'"):
        load_data("stanford_cars/official", tmp_path)


def test_flowers(tmp_path, monkeypatch):
    matlab = pytest.importorskip("scipy.io")
    small(monkeypatch, "oxford_flowers/official", 3)
    folder = tmp_path / "oxford_flowers"
    put(*(folder / f"jpg/image_{i:05}.jpg" for i in range(1, 9)))
    matlab.savemat(folder / "imagelabels.mat", {"labels": np.array([[3, 3, 1, 1, 2, 2, 2, 1]], np.uint8)})
    sets = {"trnid": [[1, 3, 5]], "valid": [[2, 6, 8]], "tstid": [[4, 7]]}
    matlab.savemat(folder / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in sets.items()})
    names = {"2": "hard-leaved pocket orchid", "1": "pink primrose", "3": "canterbury bells"}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    data = load_data("oxford_flowers/official", tmp_path)
    assert data.class_names == ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")
    assert shown(data) == {
        "train": [("image_00001.jpg", 2), ("image_00003.jpg", 0), ("image_00005.jpg", 1)],
        "val": [("image_00002.jpg", 2), ("image_00006.jpg", 1), ("image_00008.jpg", 0)],
        "test": [("image_00004.jpg", 0), ("image_00007.jpg", 1)],
    }
    del names["2"]
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    with pytest.raises(PromptPrismError, match=r"the train list .* has 1 classes that are none, first: '2'"):
        load_data("oxford_flowers/official", tmp_path)


def test_food(tmp_path, monkeypatch):
    small(monkeypatch, "food101/official", 2)
    folder = tmp_path / "food-101"
    lists = {
        "train": {"waffles": ["waffles/7"], "apple_pie": ["apple_pie/1", "apple_pie/2"]},
        "test": {"apple_pie": ["apple_pie/3"], "waffles": ["waffles/9"]},
    }
    (folder / "meta").mkdir(parents=True)
    for split, content in lists.items():
        (folder / f"meta/{split}.json").write_text(json.dumps(content))
        put(*(folder / f"images/{name}.jpg" for names in content.values() for name in names))
    data = load_data("food101/official", tmp_path)
    assert data.class_names == ("apple_pie", "waffles")
    assert shown(data)["train"] == [("waffles/7.jpg", 1), ("apple_pie/1.jpg", 0), ("apple_pie/2.jpg", 0)]
    assert shown(data)["test"] == [("apple_pie/3.jpg", 0), ("waffles/9.jpg", 1)]


def test_sun(tmp_path, monkeypatch):
    small(monkeypatch, "sun397/official", 3)
    folder = tmp_path / "sun397"
    write(folder / "ClassName.txt", ["/a/abbey", "/a/apartment_building/outdoor", "/y/youth_hostel"])
    train = ["/y/youth_hostel/sun_a.jpg", "/a/apartment_building/outdoor/sun_b.jpg"]
    write(folder / "Training_01.txt", train)
    write(folder / "Testing_01.txt", ["/a/abbey/sun_c.jpg"])
    put(*(folder / f"SUN397{path}" for path in (*train, "/a/abbey/sun_c.jpg")))
    data = load_data("sun397/official", tmp_path)
    assert data.class_names == ("abbey", "outdoor apartment_building", "youth_hostel")
    assert shown(data)["train"] == [(path[1:], label) for path, label in zip(train, (2, 1), strict=True)]
    assert shown(data)["test"] == [("a/abbey/sun_c.jpg", 0)]


def test_textures(tmp_path, monkeypatch):
    small(monkeypatch, "dtd/official", 2)
    folder = tmp_path / "dtd"
    for number, split in enumerate(("train", "val", "test")):
        rows = [f"{name}/{name}_{number:04}.jpg" for name in ("polka-dotted", "banded")]
        write(folder / f"labels/{split}1.txt", rows)
        put(*(folder / "images" / row for row in rows))
    data = load_data("dtd/official", tmp_path)
    assert data.class_names == ("banded", "polka-dotted") and data.phrase == "{} texture."
    assert shown(data)["val"] == [("polka-dotted/polka-dotted_0001.jpg", 1), ("banded/banded_0001.jpg", 0)]


def test_actions(tmp_path, monkeypatch):
    small(monkeypatch, "ucf101/official", 2)
    folder = tmp_path / "ucf101"
    write(folder / "ucfTrainTestlist/classInd.txt", ["1 ApplyEyeMakeup", "2 HandstandPushups"])
    train = ["HandstandPushups/v_HandStandPushups_g08_c01", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01"]
    write(folder / "ucfTrainTestlist/trainlist01.txt", [f"{train[0]}.avi 2", f"{train[1]}.avi 1"])
    write(folder / "ucfTrainTestlist/testlist01.txt", ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"])
    frames = folder / "UCF-101-midframes"
    put(frames / "Handstand_Pushups/v_HandStandPushups_g08_c01.jpg")
    put(*(frames / f"Apply_Eye_Makeup/v_ApplyEyeMakeup_g0{i}_c01.jpg" for i in (8, 1)))
    data = load_data("ucf101/official", tmp_path)
    assert data.class_names == ("Apply_Eye_Makeup", "Handstand_Pushups")
    assert shown(data)["train"] == [
        ("Handstand_Pushups/v_HandStandPushups_g08_c01.jpg", 1),
        ("Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c01.jpg", 0),
    ]
    write(folder / "ucfTrainTestlist/trainlist01.txt", ["Knitting/v_Knitting_g01_c01.avi 3"])
    with pytest.raises(PromptPrismError, match=r"not as their makers wrote them \(KeyError\('Knitting'\)\)"):
        load_data("ucf101/official", tmp_path)


def test_drawn_splits(tmp_path, monkeypatch):
    small(monkeypatch, "caltech101/drawn", 3)
    folder = tmp_path / "caltech-101" / "101_ObjectCategories"
    for name, count in (("Faces", 10), ("accordion", 20), ("airplanes", 7), ("Faces_easy", 3)):
        put(*(folder / f"{name}/image_{i:04}.jpg" for i in range(count)))
    put(folder / "BACKGROUND_Google" / "image_0001.jpg")
    (folder / "accordion" / "annotation_0001.mat").write_bytes(b"MATLAB 5.0")
    data = load_data("caltech101/drawn", tmp_path)
    assert data.class_names == ("face", "accordion", "airplane")  # as the canonical split has them
    assert [list(data.counts(r).values()) for r in (data.train, data.val, data.test)] == [
        [5, 10, 4],
        [2, 4, 1],
        [3, 6, 2],
    ]
    together = [path for split in shown(data).values() for path, _ in split]
    assert len(together) == len(set(together)) == 37
    assert shown(load_data("caltech101/drawn", tmp_path)) == shown(data)
    faces = [path for path, label in shown(data)["train"] if not label]
    assert faces == [f"Faces/image_{i:04}.jpg" for i in (1, 2, 3, 4, 6)]  # the same on every machine


def test_every_canonical_split_has_an_alternative():
    with_split = {name for name, entry in CATALOG.items() if entry.layout.needs[0].startswith("split_zhou")}
    assert {CATALOG[name].alternative for name in with_split} == set(ALTERNATIVES) and len(ALTERNATIVES) == 9
    for name, entry in ALTERNATIVES.items():
        whole = CATALOG[name.partition("/")[0]]
        assert sum(entry.images.values()) >= 0.67 * sum(whole.images.values())
        assert (entry.classes, entry.phrase, entry.folder) == (whole.classes, whole.phrase, whole.folder)
        assert entry.layout.images == whole.layout.images
    with pytest.raises(PromptPrismError, match=r"no data set 'dtd/offical' .* Did you mean dtd/official"):
        find_dataset("dtd/offical")


def test_drawn_splits_of_the_real_images(real_data):
    root = real_data("caltech-101").parent
    caltech = load_data("caltech101/drawn", root)
    canonical = load_data("caltech101", root)
    assert caltech.class_names == canonical.class_names
    for split in ("train", "val", "test"):
        images = getattr(caltech, split)
        assert len(images) == CATALOG["caltech101"].images[split]
        assert caltech.counts(images) == canonical.counts(getattr(canonical, split))
    root = real_data("eurosat").parent
    assert load_data("eurosat/drawn", root).class_names == load_data("eurosat", root).class_names


@pytest.mark.parametrize("name", ["oxford_pets", "stanford_cars", "oxford_flowers", "dtd", "ucf101"])
def test_names_and_labels_are_those_of_the_canonical_splits(real_data, tmp_path, name):
    """The makers' lists, written with the images of the real split, give its classes back."""
    folder, file = CATALOG[name].folder, CATALOG[name].layout.file
    rows = json.loads(real_data(f"{folder}/{file}", f"metadata/splits/{file}").read_text())
    if name == "stanford_cars":  # writing thousands of MATLAB structures takes minutes
        rows = {split: items[:: 5 if split == "train" else 40] for split, items in rows.items()}
    train, test = rows["train"] + rows["val"], rows["test"]
    if name == "oxford_pets":
        for file, items in (("trainval", train), ("test", test)):
            lines = [f"{path.removesuffix('.jpg')} {label + 1} 1 1" for path, label, _ in items]
            write(tmp_path / f"annotations/{file}.txt", lines)
    elif name == "stanford_cars":
        names = {label: spoken.partition(" ") for _, label, spoken in train}
        makes = [f"{names[label][2]} {names[label][0]}" for label in sorted(names)]
        files = [[(Path(path).name, label + 1) for path, label, _ in items] for items in (train, test)]
        devkit(tmp_path, makes, *files)
    elif name == "oxford_flowers":
        matlab = pytest.importorskip("scipy.io")
        place = {int(path[6:11]): label + 1 for path, label, _ in train + test}
        labels = np.array([[place[i] for i in range(1, len(place) + 1)]], np.uint8)
        matlab.savemat(tmp_path / "imagelabels.mat", {"labels": labels})
        parts = {"trnid": rows["train"], "valid": rows["val"], "tstid": test}
        numbers = {key: np.array([[int(row[0][6:11]) for row in part]]) for key, part in parts.items()}
        matlab.savemat(tmp_path / "setid.mat", numbers)
        names = real_data(f"{folder}/cat_to_name.json", "metadata/splits/cat_to_name.json")
        (tmp_path / "cat_to_name.json").write_bytes(names.read_bytes())
    elif name == "dtd":
        for split, items in rows.items():
            write(tmp_path / f"labels/{split}1.txt", [path for path, _, _ in items])
    else:
        actions = {label: spoken.replace("_", "") for _, label, spoken in train}
        write(tmp_path / "ucfTrainTestlist/classInd.txt", [f"{i + 1} {actions[i]}" for i in sorted(actions)])
        for split, items in (("train", train), ("test", test)):
            lines = [f"{actions[label]}/{Path(path).stem}.avi {label + 1}" for path, label, _ in items]
            write(tmp_path / f"ucfTrainTestlist/{split}list01.txt", lines)
    entry = ALTERNATIVES[CATALOG[name].alternative]
    lists = entry.layout.lists(tmp_path)
    everything = {tuple(row) for split in rows.values() for row in split}
    assert {item for split in lists.values() for item in split} == everything
    assert class_names(lists) == class_names({k: [tuple(r) for r in v] for k, v in rows.items()})
    if name in ("oxford_pets", "ucf101"):  # the makers' test images are the field's
        assert {split: len(items) for split, items in lists.items()} == entry.images
