import os
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toys import listed, picture, put

from promptprism.data.folders import read_folder
from promptprism.data.reading import Reading, read_names, renamed, split_of
from promptprism.data.registry import load_data
from promptprism.errors import DataWarning, PromptPrismError


@pytest.mark.filterwarnings("ignore:each is taken for one class")
def test_folder_of_classes(tmp_path):
    put(
        tmp_path,
        "b/2.png",
        "b/1.JPG",
        "a/deep/er/1.png",
        "a/notes.txt",
        ".hidden/x.png",
        "b/.x.png",
        "README.md",
    )
    data = read_folder(tmp_path)
    assert data.class_names == ("a", "b") and data.phrase == "a photo of a {}."
    assert listed(tmp_path, data.train) == [("a/deep/er/1.png", 0), ("b/1.JPG", 1), ("b/2.png", 1)]
    assert data.test == data.val == () and data.evaluation == data.train
    assert [path.name for path in data.skipped] == ["README.md", "notes.txt"]
    assert data.counts(data.train) == {"a": 1, "b": 2}


def test_folder_with_splits(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "Test/b/2.png", "valid/a/3.png", "extra/z.png")
    data = read_folder(tmp_path)
    assert listed(tmp_path, data.train) == [("train/a/1.png", 0), ("train/b/1.png", 1)]
    assert listed(tmp_path, data.val) == [("valid/a/3.png", 0)]
    assert listed(tmp_path, data.test) == listed(tmp_path, data.evaluation) == [("Test/b/2.png", 1)]
    assert [path.name for path in data.skipped] == ["z.png"]


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, "bus/1.png", "train/1.png")
    assert read_folder(tmp_path).class_names == ("bus", "train")


def test_names_of_every_script_are_kept(tmp_path):
    put(tmp_path, "Gänseblümchen/1.png", "たんぽぽ/1.png", "🌻/1.png", "lily_of the-valley/1.png")
    assert set(read_folder(tmp_path).class_names) == {"Gänseblümchen", "たんぽぽ", "🌻", "lily_of the-valley"}


@pytest.mark.parametrize(
    "files, says",
    [
        (["a/1.png", "b/x.txt"], r"class has no image in '.*': 'b'\. Files such as 'x\.txt' cannot be read"),
        (["train/a/1.png", "test/b/1.png"], r"class has no image in '.*train': 'b'\. Add images, or remove"),
        (["1.png", "2.png"], "has no subfolders but 2 loose images: put the images of each class into a"),
        ([], "has no subfolders: put the images"),
    ],
)
def test_folder_errors(tmp_path, files, says):
    put(tmp_path, *files)
    with pytest.raises(PromptPrismError, match=says):
        read_folder(tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(PromptPrismError, match=rf"no such folder: '{re.escape(str(tmp_path / 'x'))}'"):
        read_folder(tmp_path / "x")


def test_load_data_takes_folder_csv_and_data_set(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    data = load_data(tmp_path)
    assert data.class_names == ("a", "b") and load_data(data) is data
    (tmp_path / "list.csv").write_text("path,label\na/1.png,a\n")
    assert load_data(tmp_path / "list.csv").class_names == ("a",)


def test_load_data_errors(tmp_path):
    with pytest.raises(PromptPrismError, match=r"a\.png' is a file but no CSV: give a folder"):
        load_data(put(tmp_path, "a.png") / "a.png")


def test_each_real_folder_is_read_once(tmp_path):
    put(tmp_path, "set/apple/1.png", "set/banana/2.png", "elsewhere/3.png")
    for place, to in (
        ("apple/up", "set"),
        ("apple/further", "."),
        ("apple/other", "set/banana"),  # a class of its own, though it comes later
        ("apple/own", "set/apple"),
        ("pear", "elsewhere"),
    ):
        (tmp_path / "set" / place).symlink_to(tmp_path / to, target_is_directory=True)
    with pytest.warns(DataWarning, match=r"what they lead to was read already: '.*apple/further', '.*other'"):
        data = read_folder(tmp_path / "set")
    assert listed(tmp_path / "set", data.train) == [
        ("apple/1.png", 0),
        ("banana/2.png", 1),
        ("pear/3.png", 2),
    ]


def test_service_folders_and_files_are_no_data(tmp_path):
    put(
        tmp_path,
        *("a/1.png", "b/1.png", "a/@eaDir/1.png/SYNOFILE_THUMB_M.png", "__MACOSX/a/1.png", "@eaDir/x/1.png"),
        *("a/.ipynb_checkpoints/1.png", ".ipynb_checkpoints/1.png", "a/Thumbs.db", "#recycle/1.png"),
    )
    data = read_folder(tmp_path)
    assert listed(tmp_path, data.train) == [("a/1.png", 0), ("b/1.png", 1)] and not data.skipped


def test_what_was_sorted_without_an_answer_is_no_class(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "_abstained/1.png")
    assert read_folder(tmp_path).class_names == ("_abstained", "a", "b")
    put(tmp_path, "sorted.csv")
    with pytest.warns(DataWarning, match=r"_abstained' holds photos that were sorted without an answer"):
        assert read_folder(tmp_path).class_names == ("a", "b")


def test_a_class_of_folders_only_is_named(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "runs/classify/1.png")
    with pytest.warns(DataWarning, match="no image of its own, only folders: 'runs'. If one is no class"):
        assert read_folder(tmp_path).class_names == ("a", "b", "runs")
    put(tmp_path / "deep", "x/x/train/a/1.png", "x/x/test/a/1.png")
    with pytest.raises(PromptPrismError, match=r"one subfolder 'x'.*: 'test', 'train'.*: give '.*deep/x/x'"):
        read_folder(tmp_path / "deep" / "x")


def test_what_cannot_be_looked_into_is_said(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/shut/2.png", "b/1.png")
    scan = os.scandir

    def shut(place):
        if str(place).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.warns(
        DataWarning, match=r"1 folders cannot be looked into .* '.*shut' \(Permission denied\)"
    ):
        assert len(read_folder(tmp_path).train) == 2


@pytest.mark.parametrize(
    "name, split",
    [
        *(("train", "train"), ("Training_Set", "train"), ("seg_train", "train"), ("train2017", "train")),
        *(("TrainImages", "train"), ("trainset", "train"), ("test1", "test"), ("seg-test", "test")),
        *(("TEST", "test"), ("valid", "val"), ("validation_data", "val"), ("dev set", "val")),
        *(("train_val", None), ("trainer", None), ("test tube", None), ("data", None), ("", None)),
        *(("поезд", None), ("red", None), ("testés", None)),
    ],
)
def test_usual_spellings_of_splits(name, split):
    assert split_of(name) == split


def test_splits_in_usual_spellings_and_in_folders_of_their_own(tmp_path):
    put(
        tmp_path,
        *("seg_train/seg_train/ice/1.png", "seg_train/seg_train/wood/1.png", "seg_pred/seg_pred/9.png"),
        *("seg_test/seg_test/ice/2.png", "valid_set/wood/3.png"),
    )
    data = read_folder(tmp_path)
    assert data.class_names == ("ice", "wood") and len(data.train) == 2
    assert listed(tmp_path, data.test) == [("seg_test/seg_test/ice/2.png", 0)]
    assert listed(tmp_path, data.val) == [("valid_set/wood/3.png", 1)]
    assert [path.name for path in data.skipped] == ["9.png"]


def test_two_folders_for_one_split_are_refused_until_one_is_named(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "training/a/2.png", "training/b/2.png", "odd/a/3.png")
    with pytest.raises(
        PromptPrismError, match=r"2 folders .* train split: 'train', 'training'.*--split train="
    ):
        read_folder(tmp_path)
    data = read_folder(tmp_path, reading=Reading({"train": "Training", "test": "odd"}))
    assert listed(tmp_path, data.train) == [("training/a/2.png", 0), ("training/b/2.png", 1)]
    assert listed(tmp_path, data.test) == [("odd/a/3.png", 0)]
    with pytest.raises(PromptPrismError, match="has no folder 'none' to take for a split"):
        read_folder(tmp_path, reading=Reading({"train": "none"}))
    with pytest.raises(PromptPrismError, match="there is no split 'holdout'"):
        Reading({"holdout": "odd"})


def test_splits_are_not_taken_for_classes(tmp_path):
    put(tmp_path, "train/cat.1.png", "test1/2.png")
    with pytest.raises(
        PromptPrismError, match=r"look like splits, not classes: 'test1', 'train'; .* file names"
    ):
        read_folder(tmp_path)
    put(tmp_path, "train/_classes.csv")
    with pytest.raises(PromptPrismError, match=r"such as '.*train/_classes\.csv' has them"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "kind, files",
    [
        ("YOLO", ["train/images/1.png", "train/labels/1.txt", "data.yaml"]),
        ("YOLO", ["images/train/1.png", "labels/train/1.txt"]),
        ("COCO", ["train/1.png", "train/_annotations.coco.json", "train/x/2.png", "_annotations.coco.json"]),
        ("Pascal VOC", ["JPEGImages/1.png", "Annotations/1.xml"]),
    ],
)
def test_layouts_of_boxes_are_recognised(tmp_path, kind, files):
    put(tmp_path, *files)
    with pytest.raises(PromptPrismError, match=f"is laid out as a {kind} data set.*export it for classif"):
        read_folder(tmp_path)


def test_a_class_is_the_same_composed_and_decomposed(tmp_path):
    put(tmp_path, *(f"{unicodedata.normalize(form, f'{split}/café/{split}.png')}" for form, split in
                    (("NFD", "train"), ("NFC", "test"))), "train/tea/1.png")  # fmt: skip
    data = read_folder(tmp_path)
    assert data.class_names == (unicodedata.normalize("NFC", "café"), "tea")
    assert [record.label for record in data.test] == [0]


def test_a_folder_whose_name_is_no_text(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(PromptPrismError, match=r"folder '.*caf\\xe9' is no UTF-8.*convmv"):
        read_folder(tmp_path)


def test_images_are_known_by_their_content(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    for name in ("a/IMG_1.HEIC", "a/2", "b/3.bak"):
        Image.fromarray(picture("red", 0)).save(tmp_path / name, "JPEG")
    os.mkfifo(tmp_path / "b" / "pipe")
    assert len(read_folder(tmp_path).train) == 5


@pytest.mark.slow
def test_numbers_and_synsets_for_names_are_warned_of_and_replaced(tmp_path):
    put(tmp_path / "set", "n02084071/1.png", "n02121620/1.png")
    with pytest.warns(DataWarning, match=r"2 of 2 classes of .*'n02084071', which say nothing.*--names FILE"):
        data = load_data(tmp_path / "set")
    names = tmp_path / "names.csv"
    for text in (
        "n02084071,dog\nn02121620,cat\nn1,other\n",
        "n02084071\tdog\nn02121620\tcat\n",
        '"n02084071";"dog"\n\nn02121620;cat',
        "n02084071 dog\nn02121620 cat\n",
        '{"n02084071": "dog", "n02121620": "cat"}',
    ):
        names.write_text(text)
        assert load_data(tmp_path / "set", reading=Reading(names=names)).class_names == ("dog", "cat")
    names.write_text('["zero", "one"]')
    assert read_names(names) == {"0": "zero", "1": "one"}
    for text, says in (
        ("n02084071,dog", "has no name for 1 of 2 classes, first: 'n02121620'"),
        ("n02084071,dog\nn02121620,dog", "'dog' and 'dog' read the same"),
        ("n02084071,dog\nn02121620,a,b", "line 2 of '.*' is 'n02121620,a,b': write what"),
        ("[1]", "has 1 where a class name should be"),
        ("{", "is no JSON"),
    ):
        names.write_text(text)
        with pytest.raises(PromptPrismError, match=says):
            renamed(data, names)
    with pytest.raises(PromptPrismError, match="'mini/food' is a registered data set, which says itself"):
        load_data("mini/food", reading=Reading(names=names))


@given(st.binary(max_size=200))
def test_hostile_files_of_names(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("names") / "names"
    path.write_bytes(content)
    try:
        names = read_names(path)
    except PromptPrismError:
        return
    assert all(isinstance(text, str) for pair in names.items() for text in pair)
