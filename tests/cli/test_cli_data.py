import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import pytest
from called import run
from PIL import Image
from toys import put

from promptprism.cli.options import DataOptions, split_names
from promptprism.cli.output import told_warnings
from promptprism.errors import DataWarning, PromptPrismError


@pytest.fixture
def photos(tmp_path):
    files = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("n1", "n2") for i in "ab"]
    return put(tmp_path / "photos", *files)


@pytest.mark.slow
def test_check_of_a_folder(photos):
    shutil.copy(photos / "train" / "n1" / "a.png", photos / "test" / "n1" / "copy.png")
    shown = " ".join(run("data", "check", photos).output.split())
    assert "train 4 4 – test 5 5 – 2 classes 0 images cannot be read" in shown and "✓ can be used" in shown
    assert "1 pictures are in several splits" in shown
    report = json.loads(run("data", "check", photos, "--json", "-").stdout)
    assert report["usable"] and report["expected_classes"] is None and len(report["notes"]) == 1
    shutil.copy(photos / "train" / "n1" / "a.png", photos / "test" / "n2" / "copy.png")
    assert "✗ cannot be used" in run("data", "check", photos, "--quick", code=1).output
    assert "no folder 'none'" in run("data", "check", photos, "--split", "train=none", code=2).stderr


def test_a_single_class_cannot_be_used(tmp_path):
    report = json.loads(run("data", "check", put(tmp_path / "x", "n1/a.png"), "--json", "-", code=1).stdout)
    assert not report["usable"]
    assert report["faults"] == ["there is one class only, 'n1': give at least two to tell apart"]


def test_check_of_a_csv_by_its_own_names(photos):
    rows = [f"{path.relative_to(photos)};{path.parent.name};1" for path in photos.rglob("*.png")]
    (photos / "list.csv").write_text("\n".join(["image;choice;fold", *rows]))
    (photos / "names.csv").write_text("n1,red fox\nn2,wolf\n")
    columns = ("--path-column", "image", "--label-column", "choice", "--split-column", "fold")
    names = ("--split", "train=1", "--names", photos / "names.csv")
    report = json.loads(run("data", "check", photos / "list.csv", *columns, *names, "--json", "-").stdout)
    assert report["splits"]["train"]["present"] == 8 and report["classes"] == 2 and not report["notes"]
    list_file = photos / "few.jsonl"
    run("data", "split", photos / "list.csv", *columns, *names, "--shots", "1", "--out", list_file)
    assert {json.loads(line)["classname"] for line in list_file.read_text().splitlines()} == {
        "red fox",
        "wolf",
    }


def test_splits_are_named_in_pairs():
    assert DataOptions(splits=["Train=a=b", "test=c"]).parse().splits == {"train": "a=b", "test": "c"}
    for pair in ("train", "train=", "holdout=x"):
        with pytest.raises(PromptPrismError, match=r"--split 'train=?' names no split|no split 'holdout'"):
            DataOptions(splits=[pair]).parse()
    with pytest.raises(PromptPrismError, match="--split train is given twice, as a and b"):
        DataOptions(splits=["train=a", "Train=b"]).parse()


def test_classes_may_stand_in_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("Crane, bird\n\n Crane, mechanical \n", encoding="utf-8-sig")
    for given in (f"@{path}", str(path)):
        assert split_names(given) == ["Crane, bird", "Crane, mechanical"]
    assert split_names(" red fox,, wolf") == ["red fox", "wolf"] and split_names(None) == []
    with pytest.raises(PromptPrismError, match="no such file of class names: 'nowhere'"):
        split_names("@nowhere")


def test_warnings_of_data_are_one_line_each_and_told_once(capsys):
    with told_warnings():
        for text in ("one", "two", "one"):
            warnings.warn(text, DataWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"


@pytest.mark.slow
def test_output_is_escaped_where_the_terminal_lacks_a_letter(tmp_path):
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.makedirs(place)  # noqa: PTH103
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    shutil.copy(tmp_path / "x.png", os.fsdecode(place))
    done = subprocess.run(
        [sys.executable, "-m", "promptprism", "data", "check", str(tmp_path)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(rb"error: the name of folder '.*/caf\\xe9' is no UTF-8.*\r?\n", done.stderr)
