import os
import re
from pathlib import Path

import pytest
from PIL import Image

from promptprism.data.folders import read_folder
from promptprism.data.registry import load_data
from promptprism.data.tables import read_csv
from promptprism.errors import PromptPrismError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in {".png", ".jpg", ".JPG"}:
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("not an image")
    return root


def listed(root, records):
    return [(Path(os.path.relpath(r.source, root)).as_posix(), r.label) for r in records]


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
        (
            ["a/1.png", "b/x.txt"],
            r"class has no image in '.*': 'b'\. Files such as 'x\.txt' cannot be read",
        ),
        (["train/a/1.png", "test/b/1.png"], r"class has no image in '.*train': 'b'\. Add images, or remove"),
        (
            ["1.png", "2.png"],
            "has no subfolders but 2 loose images: put the images of each class into a",
        ),
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


def write_csv(folder, text, encoding="utf-8"):
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(tmp_path, separator):
    put(tmp_path, "x/1.png", "x/2.png", "3.png")
    text = "Path,Label,split\r\nx/1.png,dog,train\r\nx/2.png,cat,TEST\r\n3.png,cat,\r\n".replace(
        ",", separator
    )
    data = read_csv(write_csv(tmp_path, text.replace(",", separator), "utf-8-sig"))
    assert data.class_names == ("cat", "dog")
    assert listed(tmp_path, data.train) == [("x/1.png", 1), ("3.png", 0)]
    assert listed(tmp_path, data.test) == [("x/2.png", 0)]


def test_csv_with_commas_in_quotes_and_an_absolute_path(tmp_path):
    put(tmp_path, "a, b.png")
    data = read_csv(write_csv(tmp_path, f'label,path\n"cat, black","{tmp_path / "a, b.png"}"\n'))
    assert data.class_names == ("cat, black",) and data.train[0].source == tmp_path / "a, b.png"


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "file,label\n1.png,a\n",
            r"has no column 'path' \(it has: file, label\): its first line must",
        ),
        ("path,class\n1.png,a\n", r"has no column 'label' \(it has: path, class\)"),
        ("", r"has no column 'path' \(it has: nothing\)"),
        ("path,label\n", "lists no images"),
        ("path,label\n1.png,fox, red\n", r"line 2 of CSV '.*' has more fields .*comma into quotes"),
        ("\n\npath;label\n1.png;a\n1.png\n", r"line 5 of CSV '.*' has no label: fill it in"),
        ("path,label\n1.png,a\n1.png\n", r"line 3 of CSV '.*' has no label: fill it in"),
        ("path,label\n1.png,  \n", r"line 2 of CSV '.*' has no label"),
        ("path,label\n,a\n", r"line 2 of CSV '.*' has no path"),
        (
            "path,label,split\n1.png,a,holdout\n",
            "line 2 of CSV '.*' has split 'holdout': use train, val",
        ),
        (
            "path,label\n1.png,a\nno.png,a\n",
            r"1 of 2 images of CSV '.*' do not exist, first: '.*no\.png'\.",
        ),
    ],
)
def test_csv_errors(tmp_path, text, says):
    put(tmp_path, "1.png")
    with pytest.raises(PromptPrismError, match=says):
        read_csv(write_csv(tmp_path, text))


def test_csv_that_is_no_text(tmp_path):
    with pytest.raises(PromptPrismError, match="save it as UTF-8"):
        read_csv(write_csv(tmp_path, "path,label\nä,b", "latin-1"))


def test_load_data_takes_folder_csv_and_data_set(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    data = load_data(tmp_path)
    assert data.class_names == ("a", "b") and load_data(data) is data
    assert load_data(write_csv(tmp_path, "path,label\na/1.png,a\n")).class_names == ("a",)


def test_load_data_errors(tmp_path):
    with pytest.raises(PromptPrismError, match=r"a\.png' is a file but no CSV: give a folder"):
        load_data(put(tmp_path, "a.png") / "a.png")
