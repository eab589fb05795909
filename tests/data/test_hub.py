import json

import numpy as np
import pytest
from PIL import Image

from promptprism.data import hub
from promptprism.data.content import same_pictures
from promptprism.data.hub import read_hub
from promptprism.data.images import load_image
from promptprism.data.reading import Reading
from promptprism.data.registry import load_data
from promptprism.errors import PromptPrismError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No network, and nothing left in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(labels, feature=None):
    content = {"image": [Image.new("RGB", (3, 2), (10 * i, 0, 0)) for i in range(len(labels))], "y": labels}
    features = datasets.Features({"image": datasets.Image(), "y": feature or NAMES})
    return datasets.Dataset.from_dict(content, features=features)


NAMES = datasets.ClassLabel(names=["wolf", "red fox"])


def load(tmp_path, **tables):
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    return load_data(f"hf:{tmp_path}/saved")


def test_saved_splits(tmp_path):
    data = load(tmp_path, train=table([0, 1, 1]), validation=table([1]), test=table([1, 0]))
    assert data.class_names == ("wolf", "red fox") and data.name == f"hf:{tmp_path}/saved"
    assert [[r.label for r in records] for records in (data.train, data.val, data.test)] == [
        [0, 1, 1],
        [1],
        [1, 0],
    ]
    assert [np.asarray(load_image(r.source))[0, 0, 0] for r in data.train] == [0, 10, 20]
    assert data.test[1].source.key == "saved/test/1"
    assert str(data.test[1].source) == f"{tmp_path}/saved/test/1"


def test_one_table_is_for_training_and_unlabelled_images_are_left_out(tmp_path):
    table([0, 1]).save_to_disk(str(tmp_path / "one"))
    data = load_data(f"hf:{tmp_path}/one")
    assert len(data.train) == 2 and not data.test
    data = load(tmp_path, train=table([0, 1]), test=table([-1, -1]))
    assert len(data.train) == 2 and not data.test


def test_labels_may_be_text(tmp_path):
    column = table(["b", "a"], datasets.Value("string")).rename_column("y", "label")
    data = load(tmp_path, train=column)
    assert data.class_names == ("a", "b") and [record.label for record in data.train] == [1, 0]


def test_a_folder_of_images_with_a_damaged_one(tmp_path):
    for split, name in (("train", "cat"), ("train", "dog"), ("test", "dog")):
        path = tmp_path / "images" / split / name / "1.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (2, 2), 9).save(path)
    (tmp_path / "images" / "test" / "dog" / "1.png").write_bytes(b"half")
    data = load_data(f"hf:{tmp_path}/images")
    assert data.class_names == ("cat", "dog") and [r.label for r in data.train] == [0, 1]
    assert load_image(data.train[0].source).getpixel((0, 0)) == (9, 9, 9)
    with pytest.raises(PromptPrismError, match=r"images/test/0' is not an image that can be read"):
        load_image(data.test[0].source)


def number(labels):
    return table(labels, datasets.Value("int64")).rename_column("y", "label")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"train": number([3, 4])}, "column 'label' of .* has [34], which is no class"),
        ({"train": table([0, None])}, "column 'y' of .* has None, which is no class"),
        ({"train": table([0]).remove_columns("y")}, r"one of labels .* but has image \(Image\)"),
        ({"train": table([0]).add_column("more", ["x"]).remove_columns("image")}, r"y \(ClassLabel\), more"),
        ({"train": table([0]), "holdout": table([0])}, "nothing says what 'holdout' is for"),
        ({"test": table([-1])}, "no labelled image in any of the splits test"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, tables, words):
    with pytest.raises(PromptPrismError, match=words):
        load(tmp_path, **tables)


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(PromptPrismError, match=r"cannot load 'hf:someone/nothing' \(.*Without a network"):
        load_data("hf:someone/nothing")
    load(tmp_path, train=table([0]))
    state = tmp_path / "saved" / "train" / "state.json"
    state.write_text(
        json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": "gone.arrow"}]})
    )
    with pytest.raises(PromptPrismError, match=r"cannot load .*gone\.arrow"):
        load_data(f"hf:{tmp_path}/saved")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(PromptPrismError, match=r"datasets is 3\.6\.0, which may run code"):
        load_data(f"hf:{tmp_path}/saved")
    monkeypatch.setattr(hub.importlib, "import_module", lambda name: __import__("no_such_module"))
    with pytest.raises(PromptPrismError, match=r"pip install 'promptprism\[hf\]'"):
        load_data("hf:x")


def test_several_labels_per_image_are_refused(tmp_path):
    feature = datasets.List(NAMES) if hasattr(datasets, "List") else datasets.Sequence(NAMES)
    column = table([[0], [0, 1]], feature).rename_column("y", "labels")
    with pytest.raises(PromptPrismError, match=r"column 'labels' of 'hf:.*' has several labels per image"):
        load(tmp_path, train=column)


def test_splits_may_be_named(tmp_path):
    load(tmp_path, train=table([0, 1]), test=table([1]))
    name = f"{tmp_path}/saved"
    data = read_hub(name, Reading({"train": "test"}))
    assert len(data.train) == 1 and not data.test
    with pytest.raises(PromptPrismError, match=r"has no split 'extra' \(it has: train, test\)"):
        read_hub(name, Reading({"train": "extra"}))


def test_pictures_in_tables_are_compared(tmp_path):
    data = load(tmp_path, train=table([0, 1]), test=table([0, 1]))
    assert len(same_pictures(data).splits) == 2
